/* A level of a hash tree: the blocks of a file are hashed, and their digests written to another or compared with what is there. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define UNIT_BYTES (1u << 20)
#define PIECE_BYTES (256u << 10)   /* read at once where a file is not mapped: stays in the processor's cache until it is hashed */
#define WINDOW_BYTES (32u << 20)   /* mapped at once, by all threads together */
#define WINDOW_LEAST (4u << 20)    /* less a thread is not worth it: each unmapping interrupts all processors */
#define WINDOW_MOST (16u << 20)
#define SYNC_BYTES (1u << 20)

static uint64_t slot_offset(const level_task *t, uint64_t index) {
    return index / t->per_block * t->hash_block_size + index % t->per_block * t->slot_size;
}

typedef struct {
    const level_task *task;
    hasher_thread thread;
    extents known;
    uint8_t *piece;   /* piece_blocks blocks */
    uint8_t *digests; /* as they lie in the target, for a run of units; the first is block `base`'s */
    uint8_t *stored;  /* the same, read */
    uint64_t base;    /* where the run's first slot lies from the level's start */
    const uint8_t *view_end;  /* of what is mapped; NULL: nothing is */
    const uint8_t *populated; /* up to where its pages are there; NULL: nowhere yet */
    size_t unsynced;  /* bytes written since the disk was last told to begin */
} level_scratch;

/* What the guarded part of the work gets. */
typedef struct {
    level_scratch *scratch;
    const uint8_t *data;
    uint64_t first, count;
} level_part;

static size_t digests_room(const level_task *t) { return (t->run_units * t->unit_blocks / t->per_block + 2) * t->hash_block_size; }

static uint8_t *place_of(const level_scratch *s, uint64_t index) { return s->digests + (slot_offset(s->task, index) - s->base); }

/* Most blocks differ from zero in their first bytes; the rest is compared with itself, shifted. */
static int is_zero(const uint8_t *data, size_t size) {
    uint64_t first[2];
    memcpy(first, data, 16);
    return !(first[0] | first[1]) && !memcmp(data, data + 16, size - 16);
}

static void zero_blocks(const level_scratch *s, uint64_t first, uint64_t count) {
    for (uint64_t i = first; i < first + count; i++) memcpy(place_of(s, i), s->task->zero_digest, s->task->hash.algorithm->digest_size);
}

/* Puts the digests of blocks in memory to their places. */
static int hash_part(void *data) {
    const level_part *p = data;
    level_scratch *s = p->scratch;
    const hasher *h = &s->task->hash;
    const uint8_t *blocks[MAX_LANES];
    uint8_t *outs[MAX_LANES];
    size_t waiting = 0;
    for (uint64_t i = 0; i < p->count; i++) {
        const uint8_t *block = p->data + i * h->block_size;
        uint8_t *out = place_of(s, p->first + i);
        if (is_zero(block, h->block_size)) {
            memcpy(out, s->task->zero_digest, h->algorithm->digest_size);
            continue;
        }
        blocks[waiting] = block;
        outs[waiting++] = out;
        if (waiting < MAX_LANES) continue;
        if (hasher_many(h, &s->thread, blocks, outs, waiting)) return -1;
        waiting = 0;
    }
    return hasher_many(h, &s->thread, blocks, outs, waiting);
}

/* Hashes `count` blocks after reading them; the last may be cut off where the source ends. */
static int level_read(crew *c, level_scratch *s, uint64_t first, uint64_t count) {
    const level_task *t = s->task;
    size_t block_size = t->hash.block_size;
    for (uint64_t end = first + count; first < end;) {
        uint64_t some = end - first < t->piece_blocks ? end - first : t->piece_blocks, start = first * block_size, at;
        size_t size = t->source_bytes - start < some * block_size ? (size_t)(t->source_bytes - start) : (size_t)some * block_size;
        int error, status = read_all(t->source, s->piece, size, t->source_offset + start, &at, &error);
        if (status) return crew_fail(c, status, error, at), -1;
        memset(s->piece + size, 0, some * block_size - size);
        level_part part = {s, s->piece, first, some};
        if (hash_part(&part)) return crew_fail(c, STATUS_INTERNAL, EIO, t->source_offset + start), -1;
        first += some;
    }
    return 0;
}

/* The same for whole blocks at `data`, where their pages are; 1 when that cannot be done: they must be read. The extent goes on for
 * `size` bytes. Pages are there before the blocks in front of them are hashed: none can be fetched into the cache from one that is not. */
static int level_mapped(level_scratch *s, const uint8_t *data, uint64_t size, uint64_t first, uint64_t count) {
    level_part part = {s, data, first, count};
    uint64_t wanted = (count + MAX_LANES) * s->task->hash.block_size;
    if (size > (uint64_t)(s->view_end - data)) size = (uint64_t)(s->view_end - data);
    const uint8_t *end = data + (wanted < size ? wanted : size);
    if (s->populated < data) s->populated = data;
    if (s->populated < end) {
        view_populate(s->populated, (size_t)(end - s->populated));
        s->populated = end;
    }
    return bus_guard(hash_part, &part);
}

/* Hashes the blocks from `first` to `last`, extent by extent; `data` is where `first` lies in memory, or NULL. */
static int level_unit(crew *c, level_scratch *s, const uint8_t *data, uint64_t first, uint64_t last) {
    const level_task *t = s->task;
    size_t block_size = t->hash.block_size;
    for (uint64_t count, from = first; first < last; first += count) {
        uint64_t start = first * block_size, until;
        int hole = extent_at(&s->known, t->source, t->source_offset + start, &until);
        uint64_t size = until - (t->source_offset + start);
        count = size >= t->source_bytes - start ? last - first : size / block_size;
        if (!count) hole = 0; /* begins as a hole, or as data, and does not end so */
        if (!hole && count < last - first && size % block_size) count++;
        if (count > last - first) count = last - first;
        if (hole) {
            zero_blocks(s, first, count);
            continue;
        }
        int failed = 1;
        /* An extent that ends within a block is where the file ends, or now does: only reading tells which block that is. */
        if (data && count * block_size <= size && start + count * block_size <= t->source_bytes)
            failed = level_mapped(s, data + (first - from) * block_size, size, first, count);
        if (failed < 0) return crew_fail(c, STATUS_INTERNAL, EIO, t->source_offset + start), -1;
        if (failed && level_read(c, s, first, count)) return -1;
    }
    return 0;
}

/* Compares a run's digests with the target's. */
static int level_compare(crew *c, level_scratch *s, uint64_t first, uint64_t last, size_t size) {
    const level_task *t = s->task;
    uint64_t at;
    int error;
    int status = read_all(t->target, s->stored, size, t->target_offset + s->base, &at, &error);
    if (status) return crew_fail(c, status == STATUS_READ ? STATUS_TARGET_READ : STATUS_TARGET_SHORT, error, at), -1;
    if (!memcmp(s->digests, s->stored, size)) return 0;
    for (uint64_t i = first; i < last; i++) {
        size_t place = (size_t)(slot_offset(t, i) - s->base);
        if (memcmp(s->digests + place, s->stored + place, t->hash.algorithm->digest_size))
            t->bitmap[i / 8] |= (uint8_t)(1u << i % 8); /* a unit's bytes are its own: it has a multiple of eight blocks */
    }
    return 0;
}

static int level_write(crew *c, level_scratch *s, size_t size) {
    const level_task *t = s->task;
    uint64_t at, offset = t->target_offset + s->base;
    int error, status = write_all(t->target, s->digests, size, offset, &at, &error);
    if (status) return crew_fail(c, status, error, at), -1;
    s->unsynced += size;
    if (s->unsynced >= SYNC_BYTES) { /* lets the disk begin: who flushes the file at the end waits that much less */
        sync_file_range(t->target, (off_t)t->target_offset, 0, SYNC_FILE_RANGE_WRITE);
        s->unsynced = 0;
    }
    return 0;
}

/* Hashes `units` units from `unit` on and settles their digests. */
static int level_run(crew *c, level_scratch *s, uint64_t unit, uint64_t units) {
    const level_task *t = s->task;
    size_t block_size = t->hash.block_size;
    uint64_t first = unit * t->unit_blocks, last = first + units * t->unit_blocks, start = first * block_size;
    if (last > t->blocks) last = t->blocks;
    s->base = slot_offset(t, first);
    size_t size = (size_t)(slot_offset(t, last - 1) + t->hash.algorithm->digest_size - s->base);
    memset(s->digests, 0, size);
    uint64_t bytes = last * block_size < t->source_bytes ? (last - first) * block_size : t->source_bytes - start;
    view v = {0};
    int failed = 0;
    s->populated = NULL;
    if (t->maps && view_open(&v, t->source, t->source_offset + start, bytes)) s->view_end = v.data + bytes;
    for (uint64_t i = first; i < last && !failed; i += t->unit_blocks) {
        uint64_t end = last - i < t->unit_blocks ? last : i + t->unit_blocks;
        failed = atomic_load(&c->cancelled) || level_unit(c, s, v.data ? v.data + (i - first) * block_size : NULL, i, end);
        if (!failed) atomic_fetch_add(&c->done, (end - i) * block_size);
    }
    view_close(&v);
    if (failed) return -1;
    return t->bitmap ? level_compare(c, s, first, last, size) : level_write(c, s, size);
}

static void level_work(crew *c, void *scratch) {
    const level_task *t = c->task;
    level_scratch s = {.task = t, .piece = scratch, .known = {1, 0, 0}};
    s.digests = s.piece + t->piece_blocks * t->hash.block_size;
    s.stored = s.digests + digests_room(t);
    if (hasher_thread_init(&t->hash, &s.thread)) {
        crew_fail(c, STATUS_INTERNAL, EIO, t->source_offset);
        return;
    }
    for (uint64_t unit, units; (units = crew_take(c, t->run_units, &unit));)
        if (level_run(c, &s, unit, units)) break;
    hasher_thread_end(&t->hash, &s.thread);
}

static int set_zero_digest(level_task *t) {
    hasher_thread thread;
    uint8_t *zero = calloc(1, t->hash.block_size), *out = t->zero_digest;
    const uint8_t *block = zero;
    int failed = !zero || hasher_thread_init(&t->hash, &thread);
    if (!failed) {
        failed = hasher_many(&t->hash, &thread, &block, &out, 1);
        hasher_thread_end(&t->hash, &thread);
    }
    free(zero);
    return failed;
}

int level_prepare(level_task *t, crew *c, unsigned threads) {
    size_t block_size = t->hash.block_size, window = WINDOW_BYTES / (threads ? threads : 1);
    /* Never with a signal's jump through OpenSSL. */
    t->maps = t->hash.kernel && window >= WINDOW_LEAST;
    if (window < WINDOW_LEAST) window = WINDOW_LEAST;
    if (window > WINDOW_MOST) window = WINDOW_MOST;
    t->blocks = (t->source_bytes + block_size - 1) / block_size;
    t->unit_blocks = UNIT_BYTES / block_size < 8 ? 8 : UNIT_BYTES / block_size;
    t->run_units = window / (t->unit_blocks * block_size) ? window / (t->unit_blocks * block_size) : 1;
    t->piece_blocks = block_size < PIECE_BYTES ? PIECE_BYTES / block_size : 1;
    if (set_zero_digest(t)) return -1;
    c->work = level_work;
    c->task = t;
    c->units = (t->blocks + t->unit_blocks - 1) / t->unit_blocks;
    c->scratch_size = t->piece_blocks * block_size + 2 * digests_room(t);
    return 0;
}
