/* fs-verity digests of many files. A thread takes some files together and hashes all their blocks at once: alone, most files would leave
 * most of a kernel's lanes empty. Large files, and those whose pages cannot be had, are read piece by piece, each alone. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES (256u << 10) /* read at once of a file that is taken alone */
#define REGIONS_BYTES (32u << 20) /* of all threads: where files that are taken together are mapped, one behind the other */
#define REGION_LEAST (1u << 20)
#define REGION_MOST (8u << 20)
#define SMALL_BYTES (32u << 10)  /* cheaper to read than to map */
#define MOST_FILES 64

/* A file of those that are taken together. */
typedef struct {
    uint64_t unit, size;
    struct stat before;
    int file, status, error;
    const uint8_t *mapped; /* NULL: its blocks are in the spare room already */
    uint8_t *tail;         /* where the last, cut-off block goes; it is zero behind */
    uint8_t *digests;      /* of the level that was hashed last */
    uint64_t count;
} one_file;

typedef struct {
    const measure_task *task;
    hasher_thread thread;
    uint8_t *region, *spare, *piece, *levels[2];
    size_t region_used, spare_used, level_used, blocks_count;
    const uint8_t **blocks;
    uint8_t **outs;
    one_file files[MOST_FILES];
    unsigned count;
} measure_scratch;

static size_t round_up(uint64_t size, size_t step) { return (size_t)((size + step - 1) / step * step); }

static size_t most_blocks(const measure_task *t) { return (t->region_bytes + t->spare_bytes) / t->hash.block_size + MOST_FILES; }

/* Room for the digests of a level, whole: of the largest file that is taken alone, or of all that are taken together. */
static size_t level_room(const measure_task *t) {
    size_t block_size = t->hash.block_size, digest_size = t->hash.algorithm->digest_size;
    size_t alone = (size_t)(t->big / block_size + 1) * digest_size + block_size;
    size_t together = most_blocks(t) * digest_size + MOST_FILES * block_size;
    return round_up(alone > together ? alone : together, 64);
}

/* --- One file alone -------------------------------------------------------------------------------------------------------------- */

/* Hashes whole blocks that follow each other; so do their digests at `to`. */
static int hash_run(measure_scratch *s, const uint8_t *from, uint64_t count, uint8_t *to) {
    const hasher *h = &s->task->hash;
    const uint8_t *blocks[MAX_LANES];
    uint8_t *outs[MAX_LANES];
    for (uint64_t done = 0; done < count;) {
        size_t some = 0;
        for (; some < MAX_LANES && done < count; some++, done++) {
            blocks[some] = from + done * h->block_size;
            outs[some] = to + done * h->algorithm->digest_size;
        }
        if (hasher_many(h, &s->thread, blocks, outs, some)) return -1;
    }
    return 0;
}

/* Computes the root hash of an open file of `size` bytes into `root`. A status; errno in *error. */
static int root_alone(measure_scratch *s, int file, uint64_t size, uint8_t *root, int *error) {
    size_t block_size = s->task->hash.block_size, digest_size = s->task->hash.algorithm->digest_size;
    uint64_t digests = 0, at;
    int turn = 0;
    for (uint64_t offset = 0; offset < size; offset += PIECE_BYTES) {
        size_t part = size - offset < PIECE_BYTES ? (size_t)(size - offset) : PIECE_BYTES, padded = round_up(part, block_size);
        int status = read_all(file, s->piece, part, offset, &at, error);
        if (status) return status;
        memset(s->piece + part, 0, padded - part);
        if (hash_run(s, s->piece, padded / block_size, s->levels[0] + digests * digest_size)) return STATUS_INTERNAL;
        digests += padded / block_size;
    }
    while (digests > 1) {
        size_t bytes = (size_t)digests * digest_size, padded = round_up(bytes, block_size);
        memset(s->levels[turn] + bytes, 0, padded - bytes);
        digests = padded / block_size;
        if (hash_run(s, s->levels[turn], digests, s->levels[!turn])) return STATUS_INTERNAL;
        turn = !turn;
    }
    if (size) memcpy(root, s->levels[turn], digest_size);
    return STATUS_OK;
}

static void put_le(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++, value >>= 8) at[i] = (uint8_t)value;
}

/* struct fsverity_descriptor, 256 bytes: its digest is the file's. */
static int file_digest(measure_scratch *s, uint64_t size, const uint8_t *root, uint8_t *digest) {
    const measure_task *t = s->task;
    uint8_t descriptor[256] = {1, (uint8_t)t->algorithm_number, (uint8_t)t->log_block_size, (uint8_t)t->salt_size};
    put_le(descriptor + 8, size, 8);
    memcpy(descriptor + 16, root, MAX_DIGEST);
    memcpy(descriptor + 80, t->salt, t->salt_size);
    return hasher_message(&t->hash, &s->thread, descriptor, sizeof descriptor, digest);
}

/* Ends with a file: its root hash, if its status is still fine, is in its record. */
static void settle(crew *c, measure_scratch *s, one_file *f) {
    uint8_t *record = s->task->records + f->unit * MEASURE_RECORD;
    struct stat after;
    if (!f->status && fstat(f->file, &after)) f->error = errno, f->status = STATUS_READ;
    if (!f->status && (after.st_size != f->before.st_size || after.st_mtim.tv_sec != f->before.st_mtim.tv_sec ||
                       after.st_mtim.tv_nsec != f->before.st_mtim.tv_nsec))
        f->status = MEASURE_CHANGED;
    if (!f->status && file_digest(s, f->size, record + 16, record + 80)) f->status = STATUS_INTERNAL;
    put_le(record, (uint64_t)f->status, 4);
    put_le(record + 4, (uint64_t)f->error, 4);
    put_le(record + 8, f->size, 8);
    if (f->file >= 0) close(f->file);
    atomic_fetch_add(&c->done, 1);
}

/* --- Files together -------------------------------------------------------------------------------------------------------------- */

static void push(measure_scratch *s, const uint8_t *from, uint64_t count, uint8_t *to) {
    for (uint64_t i = 0; i < count; i++) {
        s->blocks[s->blocks_count] = from + i * s->task->hash.block_size;
        s->outs[s->blocks_count++] = to + i * s->task->hash.algorithm->digest_size;
    }
}

/* Hashes what was pushed; guarded, since some of it may be mapped. */
static int hash_pushed(void *data) {
    measure_scratch *s = data;
    size_t block_size = s->task->hash.block_size;
    /* All at once and beforehand: nothing can be fetched into the cache from a page that is not mapped yet. */
    if (s->region_used) view_populate(s->region, s->region_used);
    for (one_file *f = s->files; f < s->files + s->count; f++) {
        if (!f->mapped || !f->tail) continue;
        size_t whole = (size_t)f->size / block_size * block_size;
        memcpy(f->tail, f->mapped + whole, (size_t)f->size - whole);
    }
    return hasher_many(&s->task->hash, &s->thread, s->blocks, s->outs, s->blocks_count);
}

/* Hashes the digests of all files again and again until each has one left. */
static int hash_upwards(measure_scratch *s) {
    size_t block_size = s->task->hash.block_size, digest_size = s->task->hash.algorithm->digest_size;
    for (int turn = 1;; turn = !turn) {
        s->blocks_count = s->level_used = 0;
        for (one_file *f = s->files; f < s->files + s->count; f++) {
            if (f->count == 1) memcpy(s->task->records + f->unit * MEASURE_RECORD + 16, f->digests, digest_size);
            if (f->count <= 1) {
                f->count = 0;
                continue;
            }
            size_t bytes = (size_t)f->count * digest_size, padded = round_up(bytes, block_size);
            memset(f->digests + bytes, 0, padded - bytes);
            f->count = padded / block_size;
            push(s, f->digests, f->count, s->levels[turn] + s->level_used);
            f->digests = s->levels[turn] + s->level_used;
            s->level_used += round_up(f->count * digest_size, block_size);
        }
        if (!s->blocks_count) return 0;
        if (hasher_many(&s->task->hash, &s->thread, s->blocks, s->outs, s->blocks_count)) return -1;
    }
}

/* Hashes the files that were taken, fills in their records and forgets them. */
static void finish_batch(crew *c, measure_scratch *s) {
    int failed = s->region_used ? bus_guard(hash_pushed, s) : hash_pushed(s);
    if (!failed) failed = hash_upwards(s);
    if (s->region_used) /* one call, and one interruption of the other processors, for all */
        mmap(s->region, s->region_used, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    for (one_file *f = s->files; f < s->files + s->count; f++) {
        if (failed) f->status = root_alone(s, f->file, f->size, s->task->records + f->unit * MEASURE_RECORD + 16, &f->error);
        settle(c, s, f);
    }
    s->count = 0;
    s->region_used = s->spare_used = s->level_used = s->blocks_count = 0;
}

/* Puts a file to those that are hashed together. 0 when it cannot be: it is large, cannot be mapped, or OpenSSL hashes. */
static int take(crew *c, measure_scratch *s, const one_file *new) {
    const measure_task *t = s->task;
    size_t block_size = t->hash.block_size, digest_size = t->hash.algorithm->digest_size;
    int small = new->size < SMALL_BYTES;
    if (!s->region || !new->size || new->size > t->region_bytes - block_size) return 0;
    size_t span = round_up(new->size, 4096), padded = round_up(new->size, block_size), spare = small ? padded : block_size;
    if (s->count == t->most_files || s->region_used + span > t->region_bytes || s->spare_used + spare > t->spare_bytes) finish_batch(c, s);
    one_file *f = &s->files[s->count];
    uint8_t *room = s->spare + s->spare_used, *place = s->region + s->region_used;
    uint64_t whole = new->size / block_size, at;
    *f = *new;
    f->tail = new->size % block_size ? room : NULL;
    f->digests = s->levels[0] + s->level_used;
    f->count = padded / block_size;
    if (small) {
        f->status = read_all(f->file, room, (size_t)f->size, 0, &at, &f->error);
        if (f->status) return settle(c, s, f), 1;
        memset(room + f->size, 0, padded - (size_t)f->size);
        push(s, room, f->count, f->digests);
    } else {
        if (mmap(place, span, PROT_READ, MAP_SHARED | MAP_FIXED, f->file, 0) == MAP_FAILED) return 0;
        f->mapped = place;
        s->region_used += span;
        push(s, place, whole, f->digests);
        if (f->tail) {
            memset(room, 0, block_size);
            push(s, room, 1, f->digests + whole * digest_size);
        }
    }
    s->spare_used += spare;
    s->level_used += round_up(f->count * digest_size, block_size);
    s->count++;
    return 1;
}

static void measure_one(crew *c, measure_scratch *s, uint64_t unit) {
    const measure_task *t = s->task;
    one_file f = {.unit = unit, .file = open(t->paths[unit], O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (f.file < 0)
        f.error = errno, f.status = MEASURE_OPEN;
    else if (fstat(f.file, &f.before))
        f.error = errno, f.status = STATUS_READ;
    else if (!S_ISREG(f.before.st_mode))
        f.status = MEASURE_KIND;
    else if ((f.size = (uint64_t)f.before.st_size) >= t->big)
        f.status = MEASURE_BIG;
    else if (take(c, s, &f))
        return;
    else {
        if (s->count) finish_batch(c, s); /* it uses the same room */
        f.status = root_alone(s, f.file, f.size, t->records + unit * MEASURE_RECORD + 16, &f.error);
    }
    settle(c, s, &f);
}

static void measure_work(crew *c, void *scratch) {
    const measure_task *t = c->task;
    measure_scratch *s = scratch;
    memset(s, 0, sizeof *s);
    s->task = t;
    s->spare = (uint8_t *)scratch + round_up(sizeof *s, 4096);
    s->piece = s->spare + t->spare_bytes;
    s->levels[0] = s->piece + PIECE_BYTES;
    s->levels[1] = s->levels[0] + level_room(t);
    s->blocks = (const uint8_t **)(s->levels[1] + level_room(t));
    s->outs = (uint8_t **)(s->blocks + most_blocks(t));
    if (hasher_thread_init(&t->hash, &s->thread)) {
        crew_fail(c, STATUS_INTERNAL, EIO, 0);
        return;
    }
    if (t->hash.kernel && sysconf(_SC_PAGESIZE) == 4096) { /* never with a signal's jump through OpenSSL */
        void *region = mmap(NULL, t->region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        s->region = region == MAP_FAILED ? NULL : region;
    }
    for (uint64_t unit, units; (units = crew_take(c, t->most_files, &unit));) {
        for (uint64_t end = unit + units; unit < end; unit++)
            if (!atomic_load_explicit(&c->cancelled, memory_order_relaxed)) measure_one(c, s, unit);
        if (s->count) finish_batch(c, s);
    }
    if (s->region) munmap(s->region, t->region_bytes);
    hasher_thread_end(&t->hash, &s->thread);
}

int measure_prepare(measure_task *t, crew *c, uint64_t count, unsigned threads) {
    t->most_files = threads <= 8 ? MOST_FILES : MOST_FILES * 8 / threads + 1; /* open files of all threads stay within the usual 1024 */
    size_t region = REGIONS_BYTES / (threads ? threads : 1) & ~(size_t)4095;
    t->region_bytes = region < REGION_LEAST ? REGION_LEAST : region > REGION_MOST ? REGION_MOST : region;
    t->spare_bytes = t->region_bytes / 4; /* small files, and the last blocks of the mapped ones */
    c->work = measure_work;
    c->task = t;
    c->units = count;
    c->scratch_size = round_up(sizeof(measure_scratch), 4096) + t->spare_bytes + PIECE_BYTES + 2 * level_room(t) +
                      2 * most_blocks(t) * sizeof(void *);
    return 0;
}
