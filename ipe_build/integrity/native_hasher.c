/* Prefix, block, suffix and padding around a compression function, for as many lanes as it has. */
#include "native.h"

#include <string.h>
#include <time.h>

static const uint32_t IV224[8] = {0xc1059ed8, 0x367cd507, 0x3070dd17, 0xf70e5939, 0xffc00b31, 0x68581511, 0x64f98fa7, 0xbefa4fa4};
static const uint32_t IV256[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint64_t IV384[8] = {0xcbbb9d5dc1059ed8, 0x629a292a367cd507, 0x9159015a3070dd17, 0x152fecd8f70e5939,
                                  0x67332667ffc00b31, 0x8eb44a8768581511, 0xdb0c2e0d64f98fa7, 0x47b5481dbefa4fa4};
static const uint64_t IV512[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                  0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

static const algorithm algorithms[] = {
    {"sha1", 20, -1, NULL, "SHA1"},
    {"sha224", 28, 0, IV224, "SHA224"},
    {"sha256", 32, 0, IV256, "SHA256"},
    {"sha384", 48, 1, IV384, "SHA384"},
    {"sha512", 64, 1, IV512, "SHA512"},
    {"sha3-224", 28, -1, NULL, "SHA3-224"},
    {"sha3-256", 32, -1, NULL, "SHA3-256"},
    {"sha3-384", 48, -1, NULL, "SHA3-384"},
    {"sha3-512", 64, -1, NULL, "SHA3-512"},
    {"blake2b-512", 64, -1, NULL, "BLAKE2B-512"},
    {"blake2s-256", 32, -1, NULL, "BLAKE2S-256"},
};

const algorithm *find_algorithm(const char *name) {
    for (size_t i = 0; i < sizeof algorithms / sizeof *algorithms; i++)
        if (!strcmp(algorithms[i].name, name)) return &algorithms[i];
    return NULL;
}

static void one_lane(const kernel *k, chain *state, const uint8_t *data, size_t blocks) {
    if (!blocks) return;
    if (k->one) {
        const uint8_t *const lane[1] = {data};
        k->one(state, lane, blocks, 0);
        return;
    }
    chain states[MAX_LANES];
    const uint8_t *lanes[MAX_LANES];
    for (unsigned l = 0; l < k->lanes; l++) {
        states[l] = *state;
        lanes[l] = data;
    }
    k->many(states, lanes, blocks, 0);
    *state = states[0];
}

static void put_be64(uint8_t *at, uint64_t value) {
    for (int i = 7; i >= 0; i--, value >>= 8) at[i] = (uint8_t)value;
}

static void put_digest(const hasher *h, const chain *state, uint8_t *out) {
    uint8_t full[MAX_DIGEST];
    for (int i = 0; i < 8; i++) {
        if (h->algorithm->wide) {
            put_be64(full + 8 * i, state->w64[i]);
        } else {
            for (int b = 0; b < 4; b++) full[4 * i + b] = (uint8_t)(state->w32[i] >> (24 - 8 * b));
        }
    }
    memcpy(out, full, h->algorithm->digest_size);
}

/* Appends 0x80, zeros and the length in bits to `have` bytes; returns the padded size. */
static size_t pad(uint8_t *buffer, size_t have, size_t input_block, uint64_t message) {
    size_t length_size = input_block / 8;
    size_t size = (have + 1 + length_size + input_block - 1) / input_block * input_block;
    memset(buffer + have, 0, size - have);
    buffer[have] = 0x80;
    put_be64(buffer + size - 8, message * 8);
    return size;
}

static void iv(const hasher *h, chain *state) { memcpy(state, h->algorithm->iv, h->algorithm->wide ? 64 : 32); }

/* --- Which kernel -------------------------------------------------------------------------------------------------------------- */

#define RACE_BLOCKS 8
#define RACE_RUNS 5

/* Nanoseconds that a kernel takes for one input block of one lane, in 64ths: the best of a few runs of a few microseconds. */
static uint64_t race(const kernel *k) {
    static const uint8_t data[RACE_BLOCKS * MAX_INPUT_BLOCK];
    chain states[MAX_LANES];
    const uint8_t *lanes[MAX_LANES];
    uint64_t best = UINT64_MAX;
    memset(states, 0, sizeof states);
    for (unsigned l = 0; l < MAX_LANES; l++) lanes[l] = data;
    for (int run = 0; run < RACE_RUNS; run++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        k->many(states, lanes, RACE_BLOCKS, 0);
        clock_gettime(CLOCK_MONOTONIC, &to);
        uint64_t took = (uint64_t)(to.tv_sec - from.tv_sec) * 1000000000u + (uint64_t)(to.tv_nsec - from.tv_nsec);
        if (took < best) best = took;
    }
    return best * 64 / k->lanes;
}

size_t kernels_for(const algorithm *a, const kernel **found) {
    uint64_t times[16];
    size_t count = 0;
    for (size_t i = 0; i < kernel_count && count < 16; i++)
        if (kernels[i].wide == a->wide && kernels[i].able()) found[count++] = &kernels[i];
    if (count < 2) return count;
    for (size_t i = 0; i < count; i++) times[i] = race(found[i]);
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && times[j] < times[j - 1]; j--) {
            uint64_t time = times[j];
            const kernel *k = found[j];
            times[j] = times[j - 1], found[j] = found[j - 1];
            times[j - 1] = time, found[j - 1] = k;
        }
    return count;
}

/* Sets the kernel that was named, or the fastest; and, when that has no single lane, the best one that has for what is left over. */
static void choose(hasher *h, const char *name) {
    const kernel *found[16];
    if (!*name) {
        if (kernels_for(h->algorithm, found)) h->kernel = found[0];
    }
    for (size_t i = 0; i < kernel_count; i++) {
        if (kernels[i].wide != h->algorithm->wide || !kernels[i].able()) continue;
        if (!strcmp(name, kernels[i].name)) h->kernel = &kernels[i];
        if (!h->rest && kernels[i].one) h->rest = &kernels[i];
    }
    if (!h->kernel || h->kernel->one) h->rest = NULL;
}

int hasher_init(hasher *h, const char *name, const char *kernel_name, const uint8_t *prefix, size_t prefix_size,
                const uint8_t *suffix, size_t suffix_size, size_t block_size) {
    memset(h, 0, sizeof *h);
    h->algorithm = find_algorithm(name);
    if (!h->algorithm || prefix_size > MAX_SALT || suffix_size > MAX_SALT || block_size % MAX_INPUT_BLOCK || !block_size) return -1;
    choose(h, kernel_name);
    if (!h->kernel && *kernel_name && strcmp(kernel_name, "openssl")) return -1;
    if (!h->kernel && !openssl_able(h->algorithm->openssl)) return -1;
    h->block_size = block_size;
    memcpy(h->prefix, prefix, prefix_size);
    memcpy(h->suffix, suffix, suffix_size);
    h->prefix_size = prefix_size;
    h->suffix_size = suffix_size;
    if (!h->kernel) return 0;
    h->input_block = h->algorithm->wide ? 128 : 64;
    iv(h, &h->start);
    one_lane(h->rest ? h->rest : h->kernel, &h->start, prefix, prefix_size / h->input_block);
    h->head_size = prefix_size % h->input_block;
    memcpy(h->head, prefix + prefix_size - h->head_size, h->head_size);
    memcpy(h->tail + h->head_size, suffix, suffix_size);
    h->tail_size = pad(h->tail, h->head_size + suffix_size, h->input_block, prefix_size + block_size + suffix_size);
    return 0;
}

int hasher_thread_init(const hasher *h, hasher_thread *t) {
    t->started = t->working = NULL;
    return h->kernel ? 0 : openssl_thread_init(h, t);
}

void hasher_thread_end(const hasher *h, hasher_thread *t) {
    if (!h->kernel) openssl_thread_end(t);
}

#define PREFETCH_UP_TO 8192

/* Hashes `lanes` blocks at once. The prefix's rest moves the data off the input blocks' borders: head and tail are put together
 * in scratch space, what lies between is taken from where it is. */
static void lanes_at_once(const hasher *h, compress_fn compress, unsigned lanes, const uint8_t *const *blocks, uint8_t *const *outs) {
    chain states[MAX_LANES];
    uint8_t heads[MAX_LANES][MAX_INPUT_BLOCK], tails[MAX_LANES][MAX_TAIL];
    const uint8_t *at[MAX_LANES] = {0}, *head_at[MAX_LANES] = {0}, *tail_at[MAX_LANES] = {0};
    size_t from_data = h->head_size ? h->input_block - h->head_size : 0;
    for (unsigned l = 0; l < lanes; l++) {
        states[l] = h->start;
        at[l] = blocks[l] + from_data;
        tail_at[l] = h->tail;
        if (!h->head_size) continue;
        memcpy(heads[l], h->head, h->head_size);
        memcpy(heads[l] + h->head_size, blocks[l], from_data);
        head_at[l] = heads[l];
        memcpy(tails[l], h->tail, h->tail_size);
        memcpy(tails[l], blocks[l] + h->block_size - h->head_size, h->head_size);
        tail_at[l] = tails[l];
    }
    if (h->head_size) compress(states, head_at, 1, 0);
    /* The lanes' next blocks follow these in memory, as a rule; large blocks the processor itself reads ahead. */
    compress(states, at, (h->block_size - from_data) / h->input_block, h->block_size <= PREFETCH_UP_TO ? lanes * h->block_size : 0);
    compress(states, tail_at, h->tail_size / h->input_block, 0);
    for (unsigned l = 0; l < lanes; l++) put_digest(h, &states[l], outs[l]);
}

int hasher_many(const hasher *h, hasher_thread *t, const uint8_t *const *blocks, uint8_t *const *outs, size_t count) {
    if (!h->kernel) return openssl_many(h, t, blocks, outs, count);
    const kernel *k = h->kernel;
    unsigned lanes = k->lanes;
    size_t done = 0;
    for (; done + lanes <= count; done += lanes) lanes_at_once(h, k->many, lanes, blocks + done, outs + done);
    if (done == count) return 0;
    if (h->rest && count - done <= lanes / 2) {
        k = h->rest;
        for (; done + k->lanes <= count; done += k->lanes) lanes_at_once(h, k->many, k->lanes, blocks + done, outs + done);
    }
    if (k->one) {
        for (; done < count; done++) lanes_at_once(h, k->one, 1, blocks + done, outs + done);
        return 0;
    }
    uint8_t spare[MAX_DIGEST];
    const uint8_t *some[MAX_LANES];
    uint8_t *some_outs[MAX_LANES];
    for (unsigned l = 0; l < lanes; l++) {
        some[l] = done + l < count ? blocks[done + l] : blocks[done];
        some_outs[l] = done + l < count ? outs[done + l] : spare;
    }
    lanes_at_once(h, k->many, lanes, some, some_outs);
    return 0;
}

int hasher_message(const hasher *h, hasher_thread *t, const uint8_t *data, size_t size, uint8_t *out) {
    if (!h->kernel) return openssl_message(h, t, data, size, out);
    chain state;
    uint8_t tail[MAX_TAIL];
    size_t whole = size / h->input_block * h->input_block;
    iv(h, &state);
    const kernel *k = h->rest ? h->rest : h->kernel;
    one_lane(k, &state, data, whole / h->input_block);
    memcpy(tail, data + whole, size - whole);
    one_lane(k, &state, tail, pad(tail, size - whole, h->input_block, size) / h->input_block);
    put_digest(h, &state, out);
    return 0;
}

/* A message in a lane: what is left of it, then of its padded end. */
typedef struct {
    const uint8_t *at;
    size_t blocks;
    const uint8_t *data;
    size_t size;
    uint8_t *out; /* NULL: the lane is empty */
    int ending;
    uint8_t tail[2 * MAX_INPUT_BLOCK];
} lane_message;

static void lane_load(const hasher *h, lane_message *lane, chain *state, const message *m) {
    lane->at = lane->data = m->data;
    lane->size = m->size;
    lane->blocks = m->size / h->input_block;
    lane->out = m->out;
    lane->ending = 0;
    iv(h, state);
}

/* Takes a lane whose blocks are used up to its end, or writes its digest. Returns whether the lane is free. */
static int lane_turn(const hasher *h, lane_message *lane, const chain *state) {
    if (lane->ending) {
        put_digest(h, state, lane->out);
        lane->out = NULL;
        return 1;
    }
    size_t rest = lane->size % h->input_block;
    memcpy(lane->tail, lane->data + lane->size - rest, rest);
    lane->blocks = pad(lane->tail, rest, h->input_block, lane->size) / h->input_block;
    lane->at = lane->tail;
    lane->ending = 1;
    return 0;
}

int hasher_messages(const hasher *h, hasher_thread *t, const message *messages, size_t count) {
    if (!h->kernel) {
        for (size_t i = 0; i < count; i++)
            if (openssl_message(h, t, messages[i].data, messages[i].size, messages[i].out)) return -1;
        return 0;
    }
    const kernel *k = h->kernel;
    lane_message lanes[MAX_LANES];
    chain states[MAX_LANES];
    size_t next = 0, busy = 0;
    memset(states, 0, sizeof states);
    for (unsigned l = 0; l < k->lanes; l++) lanes[l].out = NULL;
    for (;;) {
        const uint8_t *at[MAX_LANES], *some = NULL;
        size_t step = SIZE_MAX;
        for (unsigned l = 0; l < k->lanes; l++) {
            lane_message *lane = &lanes[l];
            while (!lane->out || !lane->blocks) {
                if (lane->out && !lane_turn(h, lane, &states[l])) break;
                if (next == count) break;
                lane_load(h, lane, &states[l], &messages[next++]);
            }
            if (!lane->out) continue;
            if (lane->blocks < step) step = lane->blocks;
            some = lane->at;
        }
        if (!some) return 0;
        busy = 0;
        for (unsigned l = 0; l < k->lanes; l++) {
            at[l] = lanes[l].out ? lanes[l].at : some; /* an empty lane computes what nobody wants */
            busy += lanes[l].out != NULL;
        }
        if (h->rest && busy <= k->lanes / 8) {
            for (unsigned l = 0; l < k->lanes; l++)
                if (lanes[l].out) one_lane(h->rest, &states[l], at[l], step);
        } else {
            k->many(states, at, step, 0);
        }
        for (unsigned l = 0; l < k->lanes; l++) {
            if (!lanes[l].out) continue;
            lanes[l].at += step * h->input_block;
            lanes[l].blocks -= step;
        }
    }
}
