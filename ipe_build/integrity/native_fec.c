/* Reed-Solomon parity of dm-verity's error correction; see fec.py for what lies where and reed_solomon.py for the field. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CODEWORD 255
#define STRIP_BYTES (16u << 10) /* read at once of each of the 255 - roots columns */

static uint8_t multiply(uint8_t one, uint8_t other) {
    unsigned product = 0, factor = one;
    for (; other; other >>= 1, factor = factor << 1 ^ (factor & 0x80 ? 0x11d : 0))
        if (other & 1) product ^= factor;
    return (uint8_t)product;
}

/* Row r of parity is multiplied by the generator's coefficient of x^(roots - 1 - r). */
static void set_products(fec_task *t) {
    uint8_t g[25] = {1}, root = 1;
    for (unsigned n = 0; n < t->roots; n++, root = multiply(root, 2)) {
        for (unsigned i = n + 1; i > 0; i--) g[i] = g[i - 1] ^ multiply(g[i], root);
        g[0] = multiply(g[0], root);
    }
    for (unsigned r = 0; r < t->roots; r++) {
        uint8_t factor = g[t->roots - 1 - r];
        for (unsigned v = 0; v < 256; v++) t->products[r][v] = multiply(factor, (uint8_t)v);
        for (unsigned v = 0; v < 16; v++) {
            t->low[r][v] = multiply(factor, (uint8_t)v);
            t->high[r][v] = multiply(factor, (uint8_t)(v << 4));
        }
    }
}

/* The parity of one byte of each column; `data` steps by `stride` from column to column. */
static void parity_scalar(const fec_task *t, const uint8_t *data, size_t stride, uint8_t *out) {
    uint8_t state[25] = {0};
    unsigned roots = t->roots;
    for (unsigned column = 0; column < CODEWORD - roots; column++) {
        uint8_t feedback = data[column * stride] ^ state[0];
        for (unsigned r = 0; r < roots; r++) state[r] = state[r + 1] ^ t->products[r][feedback];
    }
    memcpy(out, state, roots);
}

#if defined(__x86_64__)
#include <immintrin.h>

static int vector_able(void) { return __builtin_cpu_supports("avx2"); }

/* The parity of 32 bytes of each column: products by two table look-ups of four bits each. */
static __attribute__((target("avx2"))) void parity_vector(const fec_task *t, const uint8_t *data, size_t stride, uint8_t *out) {
    unsigned roots = t->roots;
    const __m256i nibble = _mm256_set1_epi8(0x0F);
    __m256i state[25];
    memset(state, 0, sizeof state);
    for (unsigned column = 0; column < CODEWORD - roots; column++) {
        __m256i feedback = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(data + column * stride)), state[0]);
        __m256i low = _mm256_and_si256(feedback, nibble), high = _mm256_and_si256(_mm256_srli_epi16(feedback, 4), nibble);
        for (unsigned r = 0; r < roots; r++) {
            __m256i by_low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t->low[r])), low);
            __m256i by_high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t->high[r])), high);
            state[r] = _mm256_xor_si256(state[r + 1], _mm256_xor_si256(by_low, by_high));
        }
    }
    uint8_t rows[24][32];
    for (unsigned r = 0; r < roots; r++) _mm256_storeu_si256((__m256i *)rows[r], state[r]);
    for (unsigned i = 0; i < 32; i++)
        for (unsigned r = 0; r < roots; r++) out[i * roots + r] = rows[r][i];
}
#else
static int vector_able(void) { return 0; }
static void parity_vector(const fec_task *t, const uint8_t *data, size_t stride, uint8_t *out) {
    for (unsigned i = 0; i < 32; i++) parity_scalar(t, data + i, stride, out + i * t->roots);
}
#endif

/* Reads covered blocks [first, first + count) one after another; zeros past the end, or where the data's last block is not full. */
static int read_blocks(const fec_task *t, uint8_t *to, uint64_t first, uint64_t count, uint64_t *at, int *error) {
    memset(to, 0, count * t->block_size);
    while (count && first < t->covered) {
        int inside = first < t->data_blocks;
        uint64_t end = inside ? t->data_blocks : t->covered;
        uint64_t some = end - first < count ? end - first : count;
        uint64_t offset = inside ? first * t->block_size : t->hash_offset + (first - t->data_blocks) * t->block_size;
        size_t size = some * t->block_size;
        for (size_t have = 0; have < size;) {
            ssize_t got = pread(inside ? t->data : t->hash_area, to + have, size - have, (off_t)(offset + have));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) return *error = errno, *at = offset + have, STATUS_READ;
            if (!got) break;
            have += (size_t)got;
        }
        to += size;
        first += some;
        count -= some;
    }
    return STATUS_OK;
}

static int strip(crew *c, const fec_task *t, uint64_t first, uint8_t *rows, uint8_t *out) {
    uint64_t count = t->rounds - first < t->strip_rounds ? t->rounds - first : t->strip_rounds, at = 0;
    size_t stride = t->strip_rounds * t->block_size, size = count * t->block_size;
    int error = 0;
    for (unsigned column = 0; column < CODEWORD - t->roots; column++) {
        int status = read_blocks(t, rows + column * stride, column * t->rounds + first, count, &at, &error);
        if (status) return crew_fail(c, status, error, at), -1;
    }
    for (size_t i = 0; i < size; i += 32) {
        if (t->vector)
            parity_vector(t, rows + i, stride, out + i * t->roots);
        else
            for (size_t b = i; b < i + 32; b++) parity_scalar(t, rows + b, stride, out + b * t->roots);
    }
    uint64_t offset = t->target_offset + first * t->block_size * t->roots;
    for (size_t have = 0; have < size * t->roots;) {
        ssize_t got = pwrite(t->target, out + have, size * t->roots - have, (off_t)(offset + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return crew_fail(c, STATUS_WRITE, got ? errno : ENOSPC, offset + have), -1;
        have += (size_t)got;
    }
    atomic_fetch_add(&c->done, count);
    return 0;
}

static void fec_work(crew *c, void *scratch) {
    const fec_task *t = c->task;
    uint8_t *rows = scratch;
    uint8_t *out = rows + CODEWORD * t->strip_rounds * t->block_size;
    for (uint64_t unit; crew_next(c, &unit);)
        if (strip(c, t, unit * t->strip_rounds, rows, out)) break;
}

int fec_prepare(fec_task *t, crew *c) {
    set_products(t);
    t->vector = vector_able();
    t->strip_rounds = t->block_size < STRIP_BYTES ? STRIP_BYTES / t->block_size : 1;
    if (t->strip_rounds > t->rounds) t->strip_rounds = t->rounds ? t->rounds : 1;
    c->work = fec_work;
    c->task = t;
    c->units = (t->rounds + t->strip_rounds - 1) / t->strip_rounds;
    c->scratch_size = (CODEWORD + t->roots) * t->strip_rounds * t->block_size;
    return 0;
}
