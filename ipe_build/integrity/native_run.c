/* Threads, files and holes: the blocks of a level are read with pread in chunks, hashed, and their digests written or compared. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (1u << 20)
#define UNIT_CHUNKS 4
#define TICK_NS 100000000L

/* --- Threads ------------------------------------------------------------------------------------------------------------------ */

void crew_fail(crew *c, int status, int error, uint64_t offset) {
    pthread_mutex_lock(&c->lock);
    if (c->status == STATUS_OK || offset < c->offset) {
        c->status = status;
        c->error = error;
        c->offset = offset;
    }
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->failed, 1);
}

int crew_next(crew *c, uint64_t *unit) {
    if (atomic_load(&c->failed) || atomic_load(&c->cancelled)) return 0;
    *unit = atomic_fetch_add(&c->next, 1);
    return *unit < c->units;
}

static void bus_begin(void);
static void bus_end(void);

static void *crew_thread(void *data) {
    crew *c = data;
    void *scratch = NULL;
    if (posix_memalign(&scratch, 4096, c->scratch_size))
        crew_fail(c, STATUS_INTERNAL, ENOMEM, 0);
    else
        c->work(c, scratch);
    free(scratch);
    pthread_mutex_lock(&c->lock);
    c->running--;
    pthread_cond_signal(&c->idle);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

void crew_run(crew *c, unsigned threads, int (*tick)(void *, uint64_t done), void *tick_data) {
    pthread_condattr_t attributes;
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    if (threads > c->units) threads = c->units ? (unsigned)c->units : 1;
    bus_begin();
    pthread_t *handles = calloc(threads, sizeof *handles);
    unsigned started = 0;
    while (handles && threads > 1 && started < threads) {
        pthread_mutex_lock(&c->lock);
        c->running++;
        pthread_mutex_unlock(&c->lock);
        if (pthread_create(&handles[started], NULL, crew_thread, c)) {
            pthread_mutex_lock(&c->lock);
            c->running--;
            pthread_mutex_unlock(&c->lock);
            break;
        }
        started++;
    }
    if (!started) { /* a single unit, or no thread to be had: do it here */
        c->running++;
        crew_thread(c);
    }
    pthread_mutex_lock(&c->lock);
    while (c->running) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_NS;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        if (pthread_cond_timedwait(&c->idle, &c->lock, &until) == ETIMEDOUT && tick) {
            pthread_mutex_unlock(&c->lock);
            if (tick(tick_data, atomic_load(&c->done))) atomic_store(&c->cancelled, 1);
            pthread_mutex_lock(&c->lock);
        }
    }
    pthread_mutex_unlock(&c->lock);
    for (unsigned i = 0; i < started; i++) pthread_join(handles[i], NULL);
    free(handles);
    bus_end();
    pthread_cond_destroy(&c->idle);
    pthread_mutex_destroy(&c->lock);
}

/* --- Files --------------------------------------------------------------------------------------------------------------------- */

/* Reads all of `size` bytes. A STATUS_…; *at is then where it failed. */
static int read_all(int file, uint8_t *to, size_t size, uint64_t offset, uint64_t *at, int *error) {
    for (size_t have = 0; have < size;) {
        ssize_t got = pread(file, to + have, size - have, (off_t)(offset + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            *at = offset + have;
            *error = got ? errno : 0;
            return got ? STATUS_READ : STATUS_SHORT;
        }
        have += (size_t)got;
    }
    return STATUS_OK;
}

static int write_all(int file, const uint8_t *from, size_t size, uint64_t offset, uint64_t *at, int *error) {
    for (size_t have = 0; have < size;) {
        ssize_t got = pwrite(file, from + have, size - have, (off_t)(offset + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            *at = offset + have;
            *error = got ? errno : ENOSPC;
            return STATUS_WRITE;
        }
        have += (size_t)got;
    }
    return STATUS_OK;
}

/* Most blocks differ from zero in their first bytes; the rest is compared with itself, shifted. */
static int is_zero(const uint8_t *data, size_t size) {
    uint64_t first[2];
    memcpy(first, data, 16);
    return !(first[0] | first[1]) && !memcmp(data, data + 16, size - 16);
}

/* Whether [start, end) of the file lies in a hole. `data_from` and `asked` remember the last answer of this thread. */
static int in_hole(int file, uint64_t start, uint64_t end, uint64_t *asked, uint64_t *data_from) {
    if (start < *asked || start >= *data_from) {
        off_t found = lseek(file, (off_t)start, SEEK_DATA);
        *asked = start;
        *data_from = start;
        if (found >= 0) {
            *data_from = (uint64_t)found;
        } else if (errno == ENXIO) { /* a hole up to the end: of the file as it is now */
            struct stat now;
            if (!fstat(file, &now)) *data_from = (uint64_t)now.st_size;
        }
    }
    return end <= *data_from;
}

/* --- The page cache as it is -------------------------------------------------------------------------------------------------- */

/* Copying a file out of the page cache with pread costs half as much as hashing it does, so full chunks are mapped and hashed where they
 * are. A page that cannot be read, or is no longer there since the file was cut, then shows as SIGBUS: the handler leaves the hashing, and
 * the chunk is read with pread, which says what is wrong and where. */
static _Thread_local sigjmp_buf bus_escape;
static _Thread_local volatile sig_atomic_t bus_armed;
static pthread_mutex_t bus_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned bus_users;
static struct sigaction bus_before;

static void on_bus(int number) {
    if (bus_armed) {
        bus_armed = 0;
        siglongjmp(bus_escape, 1);
    }
    sigaction(number, &bus_before, NULL); /* not ours: the access is repeated, and meets the handler that was there before */
}

static void bus_begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_bus;
    action.sa_flags = SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&bus_lock);
    if (!bus_users++) sigaction(SIGBUS, &action, &bus_before);
    pthread_mutex_unlock(&bus_lock);
}

static void bus_end(void) {
    pthread_mutex_lock(&bus_lock);
    if (!--bus_users) sigaction(SIGBUS, &bus_before, NULL);
    pthread_mutex_unlock(&bus_lock);
}

#define MAP_FROM (64u << 10)

/* Maps [offset, offset + size) of a file; NULL when it is small or cannot be mapped. */
static const uint8_t *map_part(int file, uint64_t offset, size_t size, void **mapping, size_t *mapped) {
    size_t before = (size_t)(offset % 4096);
    if (size < MAP_FROM || sysconf(_SC_PAGESIZE) != 4096) return NULL;
    *mapped = size + before;
    *mapping = mmap(NULL, *mapped, PROT_READ, MAP_SHARED | MAP_POPULATE, file, (off_t)(offset - before));
    return *mapping == MAP_FAILED ? NULL : (const uint8_t *)*mapping + before;
}

/* --- A level of a tree --------------------------------------------------------------------------------------------------------- */

static uint64_t slot_offset(const level_task *t, uint64_t index) {
    return index / t->per_block * t->hash_block_size + index % t->per_block * t->slot_size;
}

typedef struct {
    hasher_thread thread;
    uint8_t *data;    /* chunk_blocks blocks */
    uint8_t *digests; /* as they lie in the target, for unit_blocks blocks */
    uint8_t *stored;  /* the same, read */
    const uint8_t **blocks;
    uint8_t **outs;
} level_scratch;

static size_t digests_room(const level_task *t) { return (t->unit_blocks / t->per_block + 2) * t->hash_block_size; }

/* Puts the digests of `count` blocks at `data` (NULL: of zeros) to their places behind s->digests, where block `base`'s lies. */
static int level_blocks(const level_task *t, level_scratch *s, const uint8_t *data, uint64_t base, uint64_t first, size_t count) {
    size_t block_size = t->hash.block_size, digest_size = t->hash.algorithm->digest_size, some = 0;
    for (size_t i = 0; i < count; i++) {
        uint8_t *out = s->digests + (slot_offset(t, first + i) - slot_offset(t, base));
        const uint8_t *block = data + i * block_size;
        if (!data || is_zero(block, block_size)) {
            memcpy(out, t->zero_digest, digest_size);
        } else {
            s->blocks[some] = block;
            s->outs[some++] = out;
        }
    }
    return hasher_many(&t->hash, &s->thread, s->blocks, s->outs, some);
}

/* The same where the file's pages are. 1 when that cannot be done: the chunk must be read. */
static int level_mapped(const level_task *t, level_scratch *s, uint64_t offset, uint64_t base, uint64_t first, size_t count) {
    void *volatile mapping = NULL;
    volatile size_t mapped = 0;
    void *place = NULL;
    size_t size = 0;
    const uint8_t *data = map_part(t->source, offset, count * t->hash.block_size, &place, &size);
    if (!data) return 1;
    mapping = place;
    mapped = size;
    volatile int result = 1;
    if (!sigsetjmp(bus_escape, 0)) {
        bus_armed = 1;
        result = level_blocks(t, s, data, base, first, count) ? -1 : 0;
        bus_armed = 0;
    }
    munmap(mapping, mapped);
    return result;
}

static int level_chunk(crew *c, const level_task *t, level_scratch *s, uint64_t base, uint64_t first, size_t count, uint64_t *seen) {
    size_t block_size = t->hash.block_size;
    uint64_t start = first * block_size, offset = t->source_offset + start, at;
    uint64_t left = t->source_bytes - start;
    size_t size = left < count * block_size ? (size_t)left : count * block_size;
    const uint8_t *data = s->data;
    int error, failed = 1;
    if (in_hole(t->source, offset, offset + size, &seen[0], &seen[1]))
        data = NULL;
    else if (t->hash.kernel && size == count * block_size) /* never with a signal's jump through OpenSSL */
        failed = level_mapped(t, s, offset, base, first, count);
    if (failed > 0) {
        if (data) {
            int status = read_all(t->source, s->data, size, offset, &at, &error);
            if (status) return crew_fail(c, status, error, at), -1;
            memset(s->data + size, 0, count * block_size - size);
        }
        failed = level_blocks(t, s, data, base, first, count);
    }
    return failed ? crew_fail(c, STATUS_INTERNAL, EIO, offset), -1 : 0;
}

/* Compares a unit's digests with the target's. */
static int level_compare(crew *c, const level_task *t, level_scratch *s, uint64_t first, uint64_t last, size_t size) {
    uint64_t base = slot_offset(t, first), at;
    int error;
    int status = read_all(t->target, s->stored, size, t->target_offset + base, &at, &error);
    if (status) return crew_fail(c, status == STATUS_READ ? STATUS_TARGET_READ : STATUS_TARGET_SHORT, error, at), -1;
    if (!memcmp(s->digests, s->stored, size)) return 0;
    for (uint64_t i = first; i < last; i++) {
        size_t place = (size_t)(slot_offset(t, i) - base);
        if (memcmp(s->digests + place, s->stored + place, t->hash.algorithm->digest_size))
            t->bitmap[i / 8] |= (uint8_t)(1u << i % 8); /* a unit's bytes are its own: it has a multiple of eight blocks */
    }
    return 0;
}

static int level_unit(crew *c, const level_task *t, level_scratch *s, uint64_t unit, uint64_t *seen) {
    uint64_t first = unit * t->unit_blocks, last = first + t->unit_blocks, at;
    if (last > t->blocks) last = t->blocks;
    uint64_t base = slot_offset(t, first);
    size_t size = (size_t)(slot_offset(t, last - 1) + t->hash.algorithm->digest_size - base);
    int error;
    memset(s->digests, 0, size);
    for (uint64_t i = first; i < last; i += t->chunk_blocks) {
        size_t count = last - i < t->chunk_blocks ? (size_t)(last - i) : t->chunk_blocks;
        if (atomic_load_explicit(&c->cancelled, memory_order_relaxed) || level_chunk(c, t, s, first, i, count, seen)) return -1;
    }
    if (t->bitmap) {
        if (level_compare(c, t, s, first, last, size)) return -1;
    } else {
        int status = write_all(t->target, s->digests, size, t->target_offset + base, &at, &error);
        if (status) return crew_fail(c, status, error, at), -1;
    }
    atomic_fetch_add(&c->done, (last - first) * t->hash.block_size);
    return 0;
}

static void level_work(crew *c, void *scratch) {
    const level_task *t = c->task;
    uint8_t *room = scratch;
    level_scratch s;
    uint64_t seen[2] = {1, 0};
    s.data = room;
    s.digests = s.data + t->chunk_blocks * t->hash.block_size;
    s.stored = s.digests + digests_room(t);
    s.blocks = (const uint8_t **)(s.stored + digests_room(t));
    s.outs = (uint8_t **)(s.blocks + t->chunk_blocks);
    if (hasher_thread_init(&t->hash, &s.thread)) {
        crew_fail(c, STATUS_INTERNAL, EIO, t->source_offset);
        return;
    }
    for (uint64_t unit; crew_next(c, &unit);)
        if (level_unit(c, t, &s, unit, seen)) break;
    hasher_thread_end(&t->hash, &s.thread);
}

int level_prepare(level_task *t, crew *c) {
    size_t block_size = t->hash.block_size;
    hasher_thread thread;
    t->blocks = (t->source_bytes + block_size - 1) / block_size;
    t->chunk_blocks = block_size < CHUNK ? CHUNK / block_size : 1;
    t->unit_blocks = t->chunk_blocks * UNIT_CHUNKS < 8 ? 8 : t->chunk_blocks * UNIT_CHUNKS;
    uint8_t *zero = calloc(1, block_size), *out = t->zero_digest;
    const uint8_t *block = zero;
    int failed = !zero || hasher_thread_init(&t->hash, &thread);
    if (!failed) {
        failed = hasher_many(&t->hash, &thread, &block, &out, 1);
        hasher_thread_end(&t->hash, &thread);
    }
    free(zero);
    if (failed) return -1;
    c->work = level_work;
    c->task = t;
    c->units = (t->blocks + t->unit_blocks - 1) / t->unit_blocks;
    c->scratch_size = t->chunk_blocks * (block_size + 2 * sizeof(void *)) + 2 * digests_room(t);
    return 0;
}

/* --- fs-verity over many files -------------------------------------------------------------------------------------------------- */

typedef struct {
    hasher_thread thread;
    uint8_t *data;
    uint8_t *levels[2]; /* the digests of a level and of the next, whole: the files are small */
    const uint8_t **blocks;
    uint8_t **outs;
} measure_scratch;

static uint64_t level_room(const measure_task *t) {
    uint64_t blocks = t->big / t->hash.block_size + 1;
    return blocks * t->hash.algorithm->digest_size + t->hash.block_size;
}

/* Hashes whole blocks of memory; their digests follow each other at `to`. */
static int hash_run(const measure_task *t, measure_scratch *s, const uint8_t *from, uint64_t count, uint8_t *to) {
    size_t at_once = CHUNK / t->hash.block_size;
    for (uint64_t done = 0; done < count;) {
        size_t some = count - done < at_once ? (size_t)(count - done) : at_once;
        for (size_t i = 0; i < some; i++) {
            s->blocks[i] = from + (done + i) * t->hash.block_size;
            s->outs[i] = to + (done + i) * t->hash.algorithm->digest_size;
        }
        if (hasher_many(&t->hash, &s->thread, s->blocks, s->outs, some)) return -1;
        done += some;
    }
    return 0;
}

/* The same for blocks of a file, where its pages are; 1 when that cannot be done: they must be read. */
static int hash_mapped(const measure_task *t, measure_scratch *s, int file, uint64_t offset, uint64_t count, uint8_t *to) {
    void *volatile mapping = NULL;
    volatile size_t mapped = 0;
    void *place = NULL;
    size_t size = 0;
    if (!t->hash.kernel || !count) return 1;
    const uint8_t *data = map_part(file, offset, count * t->hash.block_size, &place, &size);
    if (!data) return 1;
    mapping = place;
    mapped = size;
    volatile int result = 1;
    if (!sigsetjmp(bus_escape, 0)) {
        bus_armed = 1;
        result = hash_run(t, s, data, count, to) ? -1 : 0;
        bus_armed = 0;
    }
    munmap(mapping, mapped);
    return result;
}

/* Computes the root hash of an open file of `size` bytes into `root`. A status; errno in *error. */
static int file_root(const measure_task *t, measure_scratch *s, int file, uint64_t size, uint8_t *root, int *error) {
    size_t block_size = t->hash.block_size, digest_size = t->hash.algorithm->digest_size;
    uint64_t digests = 0, at;
    int turn = 0;
    for (uint64_t offset = 0; offset < size; offset += CHUNK) {
        size_t part = size - offset < CHUNK ? (size_t)(size - offset) : CHUNK, whole = part / block_size;
        int failed = hash_mapped(t, s, file, offset, whole, s->levels[0] + digests * digest_size);
        if (failed < 0) return STATUS_INTERNAL;
        size_t skip = failed ? 0 : whole * block_size;
        if (!failed) digests += whole;
        part -= skip;
        int status = read_all(file, s->data, part, offset + skip, &at, error);
        if (status) return status;
        size_t count = (part + block_size - 1) / block_size;
        memset(s->data + part, 0, count * block_size - part);
        if (hash_run(t, s, s->data, count, s->levels[0] + digests * digest_size)) return STATUS_INTERNAL;
        digests += count;
    }
    while (digests > 1) {
        uint64_t bytes = digests * digest_size, count = (bytes + block_size - 1) / block_size;
        memset(s->levels[turn] + bytes, 0, count * block_size - bytes);
        if (hash_run(t, s, s->levels[turn], count, s->levels[!turn])) return STATUS_INTERNAL;
        turn = !turn;
        digests = count;
    }
    if (size) memcpy(root, s->levels[turn], digest_size);
    return STATUS_OK;
}

static void put_le(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++, value >>= 8) at[i] = (uint8_t)value;
}

/* struct fsverity_descriptor, 256 bytes: its digest is the file's. */
static int file_digest(const measure_task *t, measure_scratch *s, uint64_t size, const uint8_t *root, uint8_t *digest) {
    uint8_t descriptor[256] = {1, (uint8_t)t->algorithm_number, (uint8_t)t->log_block_size, (uint8_t)t->salt_size};
    put_le(descriptor + 8, size, 8);
    memcpy(descriptor + 16, root, MAX_DIGEST);
    memcpy(descriptor + 80, t->salt, t->salt_size);
    return hasher_message(&t->hash, &s->thread, descriptor, sizeof descriptor, digest);
}

static int measure_open(const measure_task *t, measure_scratch *s, int file, uint8_t *record, int *error) {
    struct stat before, after;
    if (fstat(file, &before)) return *error = errno, STATUS_READ;
    if (!S_ISREG(before.st_mode)) return MEASURE_KIND;
    uint64_t size = (uint64_t)before.st_size;
    put_le(record + 8, size, 8);
    if (size >= t->big) return MEASURE_BIG;
    int status = file_root(t, s, file, size, record + 16, error);
    if (status) return status;
    if (fstat(file, &after)) return *error = errno, STATUS_READ;
    if (after.st_size != before.st_size || after.st_mtim.tv_sec != before.st_mtim.tv_sec || after.st_mtim.tv_nsec != before.st_mtim.tv_nsec)
        return MEASURE_CHANGED;
    return file_digest(t, s, size, record + 16, record + 80) ? STATUS_INTERNAL : STATUS_OK;
}

static void measure_work(crew *c, void *scratch) {
    const measure_task *t = c->task;
    uint8_t *room = scratch;
    measure_scratch s;
    s.data = room;
    s.levels[0] = s.data + CHUNK;
    s.levels[1] = s.levels[0] + (level_room(t) + 63) / 64 * 64;
    s.blocks = (const uint8_t **)(s.levels[1] + (level_room(t) + 63) / 64 * 64);
    s.outs = (uint8_t **)(s.blocks + CHUNK / t->hash.block_size);
    if (hasher_thread_init(&t->hash, &s.thread)) {
        crew_fail(c, STATUS_INTERNAL, EIO, 0);
        return;
    }
    for (uint64_t unit; crew_next(c, &unit);) {
        uint8_t *record = t->records + unit * MEASURE_RECORD;
        int error = 0, status = MEASURE_OPEN;
        int file = open(t->paths[unit], O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file < 0) {
            error = errno;
        } else {
            status = measure_open(t, &s, file, record, &error);
            close(file);
        }
        put_le(record, (uint64_t)status, 4);
        put_le(record + 4, (uint64_t)error, 4);
        atomic_fetch_add(&c->done, 1);
    }
    hasher_thread_end(&t->hash, &s.thread);
}

int measure_prepare(measure_task *t, crew *c, uint64_t count) {
    c->work = measure_work;
    c->task = t;
    c->units = count;
    c->scratch_size = CHUNK + 2 * (level_room(t) + 64) + 2 * (CHUNK / t->hash.block_size) * sizeof(void *);
    return 0;
}
