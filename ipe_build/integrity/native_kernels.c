/* The compression functions of SHA-256 and SHA-512 for several lanes at once. Source: FIPS 180-4, sections 4 and 6. */
#include "native.h"

#include <string.h>

static const uint32_t K256[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#if defined(__x86_64__)
#include <immintrin.h>

static const uint64_t K512[80] __attribute__((aligned(64))) = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538, 0x59f111f1b605d019,
    0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3,
    0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65, 0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
    0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b, 0xa2bfe8a14cf10364, 0xa81a664bbc423001,
    0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb,
    0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c, 0xd186b8c721c0c207,
    0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a,
    0x5fcb6fab3ad6faec, 0x6c44198c4a475817};

/* --- SHA-NI: the processor's own rounds. Four lanes hide their latency. ------------------------------------------------------- */

#define SHA_NI __attribute__((target("sha,sse4.1,ssse3")))

/* sha256rnds2 wants the chaining value as (A B E F) and (C D G H), highest word first. */
static inline SHA_NI void ni_load(const chain *state, __m128i *abef, __m128i *cdgh) {
    __m128i dcba = _mm_loadu_si128((const __m128i *)state->w32);
    __m128i hgfe = _mm_loadu_si128((const __m128i *)(state->w32 + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1);
    __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1B);
    *abef = _mm_alignr_epi8(cdab, efgh, 8);
    *cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
}

static inline SHA_NI void ni_store(chain *state, __m128i abef, __m128i cdgh) {
    __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)state->w32, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(state->w32 + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Four rounds of every lane: m[cur] holds their words; the words of later rounds are made on the way. */
#define NI_ROUNDS(LANES, g)                                                                                                  \
    _Pragma("GCC unroll 4") for (int l = 0; l < (LANES); l++) {                                                              \
        if ((g) < 4)                                                                                                         \
            m[l][(g) & 3] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p[l] + 16 * ((g) & 3))), swap);               \
        __m128i wk = _mm_add_epi32(m[l][(g) & 3], _mm_load_si128((const __m128i *)(K256 + 4 * (g))));                        \
        cdgh[l] = _mm_sha256rnds2_epu32(cdgh[l], abef[l], wk);                                                               \
        if ((g) >= 3 && (g) < 15)                                                                                            \
            m[l][((g) + 1) & 3] = _mm_sha256msg2_epu32(                                                                      \
                _mm_add_epi32(m[l][((g) + 1) & 3], _mm_alignr_epi8(m[l][(g) & 3], m[l][((g) + 3) & 3], 4)), m[l][(g) & 3]);  \
        abef[l] = _mm_sha256rnds2_epu32(abef[l], cdgh[l], _mm_shuffle_epi32(wk, 0x0E));                                      \
        if ((g) >= 1 && (g) < 13) m[l][((g) + 3) & 3] = _mm_sha256msg1_epu32(m[l][((g) + 3) & 3], m[l][(g) & 3]);            \
    }

#define NI_COMPRESS(NAME, LANES)                                                                                             \
    static SHA_NI void NAME(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead) {                                      \
        const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL);                                   \
        __m128i abef[LANES], cdgh[LANES], m[LANES][4];                                                                       \
        const uint8_t *p[LANES];                                                                                             \
        for (int l = 0; l < (LANES); l++) {                                                                                  \
            p[l] = data[l];                                                                                                  \
            ni_load(&states[l], &abef[l], &cdgh[l]);                                                                         \
        }                                                                                                                    \
        while (blocks--) {                                                                                                   \
            __m128i old_abef[LANES], old_cdgh[LANES];                                                                        \
            for (int l = 0; l < (LANES); l++) {                                                                              \
                old_abef[l] = abef[l];                                                                                       \
                old_cdgh[l] = cdgh[l];                                                                                       \
            }                                                                                                                \
            for (int l = 0; l < (LANES); l++) _mm_prefetch((const char *)p[l] + ahead, _MM_HINT_T1);                                 \
            NI_ROUNDS(LANES, 0) NI_ROUNDS(LANES, 1) NI_ROUNDS(LANES, 2) NI_ROUNDS(LANES, 3)                                  \
            NI_ROUNDS(LANES, 4) NI_ROUNDS(LANES, 5) NI_ROUNDS(LANES, 6) NI_ROUNDS(LANES, 7)                                  \
            NI_ROUNDS(LANES, 8) NI_ROUNDS(LANES, 9) NI_ROUNDS(LANES, 10) NI_ROUNDS(LANES, 11)                                \
            NI_ROUNDS(LANES, 12) NI_ROUNDS(LANES, 13) NI_ROUNDS(LANES, 14) NI_ROUNDS(LANES, 15)                              \
            for (int l = 0; l < (LANES); l++) {                                                                              \
                abef[l] = _mm_add_epi32(abef[l], old_abef[l]);                                                               \
                cdgh[l] = _mm_add_epi32(cdgh[l], old_cdgh[l]);                                                               \
                p[l] += 64;                                                                                                  \
            }                                                                                                                \
        }                                                                                                                    \
        for (int l = 0; l < (LANES); l++) ni_store(&states[l], abef[l], cdgh[l]);                                            \
    }

NI_COMPRESS(ni_compress_4, 4)
NI_COMPRESS(ni_compress_1, 1)

/* --- Rounds of the kernels with one lane a column ---------------------------------------------------------------------------------
 *
 * Spelled out, sixteen at a time, so that the words and the chaining value stay in registers: compilers do not unroll a loop over them by
 * themselves. S is the kind of vector (Y: 32-bit words of AVX2, D and Q: 32- and 64-bit words of AVX-512), v the chaining value, which
 * turns round instead of being moved, k the sixteen constants. */
#define EXPAND_NOT(S, w, i)
#define EXPAND(S, w, i)                                                                                                       \
    w[i] = ADD_##S(ADD_##S(w[i], SMALL0_##S(w[((i) + 1) & 15])), ADD_##S(w[((i) + 9) & 15], SMALL1_##S(w[((i) + 14) & 15])));
#define ROUND(S, w, v, k, i, EXPAND_W)                                                                                        \
    do {                                                                                                                      \
        EXPAND_W(S, w, i)                                                                                                     \
        VECTOR_##S a = v[(16 - (i)) & 7], e = v[(20 - (i)) & 7];                                                              \
        VECTOR_##S t1 = ADD_##S(ADD_##S(v[(23 - (i)) & 7], ADD_##S(w[i], ALL_##S((k)[i]))),                                   \
                                ADD_##S(CHOOSE_##S(e, v[(21 - (i)) & 7], v[(22 - (i)) & 7]), BIG1_##S(e)));                   \
        VECTOR_##S t2 = ADD_##S(BIG0_##S(a), MAJOR_##S(a, v[(17 - (i)) & 7], v[(18 - (i)) & 7]));                             \
        v[(19 - (i)) & 7] = ADD_##S(v[(19 - (i)) & 7], t1);                                                                   \
        v[(23 - (i)) & 7] = ADD_##S(t1, t2);                                                                                  \
    } while (0);
#define ROUNDS_16(S, w, v, k, EXPAND_W)                                                                                       \
    ROUND(S, w, v, k, 0, EXPAND_W) ROUND(S, w, v, k, 1, EXPAND_W) ROUND(S, w, v, k, 2, EXPAND_W)                              \
    ROUND(S, w, v, k, 3, EXPAND_W) ROUND(S, w, v, k, 4, EXPAND_W) ROUND(S, w, v, k, 5, EXPAND_W)                              \
    ROUND(S, w, v, k, 6, EXPAND_W) ROUND(S, w, v, k, 7, EXPAND_W) ROUND(S, w, v, k, 8, EXPAND_W)                              \
    ROUND(S, w, v, k, 9, EXPAND_W) ROUND(S, w, v, k, 10, EXPAND_W) ROUND(S, w, v, k, 11, EXPAND_W)                            \
    ROUND(S, w, v, k, 12, EXPAND_W) ROUND(S, w, v, k, 13, EXPAND_W) ROUND(S, w, v, k, 14, EXPAND_W)                           \
    ROUND(S, w, v, k, 15, EXPAND_W)
/* Lets the compiler not know the constants, of which it would make two instructions each. */
#define FORGET(pointer) __asm__("" : "+r"(pointer))

/* --- AVX2: eight lanes, one in each 32-bit column. ---------------------------------------------------------------------------- */

#define AVX2 __attribute__((target("avx2")))
#define VECTOR_Y __m256i
#define ADD_Y _mm256_add_epi32
#define ALL_Y(k) _mm256_set1_epi32((int)(k))
#define ROR_Y(x, n) _mm256_or_si256(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - (n)))
#define XOR_Y(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define BIG0_Y(a) XOR_Y(ROR_Y(a, 2), ROR_Y(a, 13), ROR_Y(a, 22))
#define BIG1_Y(e) XOR_Y(ROR_Y(e, 6), ROR_Y(e, 11), ROR_Y(e, 25))
#define SMALL0_Y(w) XOR_Y(ROR_Y(w, 7), ROR_Y(w, 18), _mm256_srli_epi32(w, 3))
#define SMALL1_Y(w) XOR_Y(ROR_Y(w, 17), ROR_Y(w, 19), _mm256_srli_epi32(w, 10))
#define CHOOSE_Y(e, f, g) _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)))
#define MAJOR_Y(a, b, c) _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_or_si256(a, b)))

/* Turns eight rows of eight words into eight columns. */
static inline AVX2 void avx2_transpose(__m256i r[8]) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

static AVX2 void avx2_compress_8(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead) {
    const __m256i swap = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL));
    const uint32_t *k = K256;
    FORGET(k);
    __m256i s[8], w[16];
    for (int i = 0; i < 8; i++) s[i] = _mm256_loadu_si256((const __m256i *)states[i].w32);
    avx2_transpose(s);
    for (size_t b = 0; b < blocks; b++) {
        for (int half = 0; half < 2; half++) {
            __m256i *row = w + 8 * half;
            for (int i = 0; i < 8; i++) {
                const uint8_t *at = data[i] + 64 * b + 32 * half;
                row[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)at), swap);
                if (!half) _mm_prefetch((const char *)at + ahead, _MM_HINT_T1);
            }
            avx2_transpose(row);
        }
        __m256i v[8];
        memcpy(v, s, sizeof v);
        ROUNDS_16(Y, w, v, k, EXPAND_NOT)
        for (int t = 16; t < 64; t += 16) {
            ROUNDS_16(Y, w, v, k + t, EXPAND)
        }
        for (int i = 0; i < 8; i++) s[i] = _mm256_add_epi32(s[i], v[i]);
    }
    avx2_transpose(s);
    for (int i = 0; i < 8; i++) _mm256_storeu_si256((__m256i *)states[i].w32, s[i]);
}

/* --- AVX-512: SHA-512 in eight lanes, one in each 64-bit column; rotations and three-way logic are single instructions. ---------- */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define VECTOR_Q __m512i
#define ADD_Q _mm512_add_epi64
#define ALL_Q(k) _mm512_set1_epi64((long long)(k))
#define XOR_Q(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define BIG0_Q(a) XOR_Q(_mm512_ror_epi64(a, 28), _mm512_ror_epi64(a, 34), _mm512_ror_epi64(a, 39))
#define BIG1_Q(e) XOR_Q(_mm512_ror_epi64(e, 14), _mm512_ror_epi64(e, 18), _mm512_ror_epi64(e, 41))
#define SMALL0_Q(w) XOR_Q(_mm512_ror_epi64(w, 1), _mm512_ror_epi64(w, 8), _mm512_srli_epi64(w, 7))
#define SMALL1_Q(w) XOR_Q(_mm512_ror_epi64(w, 19), _mm512_ror_epi64(w, 61), _mm512_srli_epi64(w, 6))
#define CHOOSE_Q(e, f, g) _mm512_ternarylogic_epi64(e, f, g, 0xCA)
#define MAJOR_Q(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xE8)

static inline AVX512 void avx512_transpose(__m512i r[8]) {
    __m512i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[i] = _mm512_shuffle_i64x2(t[i], t[i + 2], 0x88);
        u[i + 2] = _mm512_shuffle_i64x2(t[i], t[i + 2], 0xDD);
        u[i + 4] = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0x88);
        u[i + 6] = _mm512_shuffle_i64x2(t[i + 4], t[i + 6], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i64x2(u[i], u[i + 4], 0x88);
        r[i + 4] = _mm512_shuffle_i64x2(u[i], u[i + 4], 0xDD);
    }
}

static AVX512 void avx512_compress_8(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead) {
    const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x08090a0b0c0d0e0fULL, 0x0001020304050607ULL));
    const uint64_t *k = K512;
    FORGET(k);
    __m512i s[8], w[16];
    for (int i = 0; i < 8; i++) s[i] = _mm512_loadu_si512(states[i].w64);
    avx512_transpose(s);
    for (size_t b = 0; b < blocks; b++) {
        for (int half = 0; half < 2; half++) {
            __m512i *row = w + 8 * half;
            for (int i = 0; i < 8; i++) {
                const uint8_t *at = data[i] + 128 * b + 64 * half;
                row[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(at), swap);
                _mm_prefetch((const char *)at + ahead, _MM_HINT_T1);
            }
            avx512_transpose(row);
        }
        __m512i v[8];
        memcpy(v, s, sizeof v);
        ROUNDS_16(Q, w, v, k, EXPAND_NOT)
        for (int t = 16; t < 80; t += 16) {
            ROUNDS_16(Q, w, v, k + t, EXPAND)
        }
        for (int i = 0; i < 8; i++) s[i] = _mm512_add_epi64(s[i], v[i]);
    }
    avx512_transpose(s);
    for (int i = 0; i < 8; i++) _mm512_storeu_si512(states[i].w64, s[i]);
}

/* SHA-256 the same way in sixteen lanes: on processors with two 512-bit units this beats their SHA unit. */
static inline AVX512 void avx512_transpose_16(__m512i r[16]) {
    __m512i t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(u[i], u[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(u[i], u[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0xDD);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    }
}

#define VECTOR_D __m512i
#define ADD_D _mm512_add_epi32
#define ALL_D(k) _mm512_set1_epi32((int)(k))
#define XOR_D(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define BIG0_D(a) XOR_D(_mm512_ror_epi32(a, 2), _mm512_ror_epi32(a, 13), _mm512_ror_epi32(a, 22))
#define BIG1_D(e) XOR_D(_mm512_ror_epi32(e, 6), _mm512_ror_epi32(e, 11), _mm512_ror_epi32(e, 25))
#define SMALL0_D(w) XOR_D(_mm512_ror_epi32(w, 7), _mm512_ror_epi32(w, 18), _mm512_srli_epi32(w, 3))
#define SMALL1_D(w) XOR_D(_mm512_ror_epi32(w, 17), _mm512_ror_epi32(w, 19), _mm512_srli_epi32(w, 10))
#define CHOOSE_D(e, f, g) _mm512_ternarylogic_epi32(e, f, g, 0xCA)
#define MAJOR_D(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xE8)

static AVX512 void avx512_compress_16(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead) {
    const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL));
    uint32_t turned[8][16] __attribute__((aligned(64)));
    const uint32_t *k = K256;
    FORGET(k);
    __m512i s[8], w[16];
    for (int l = 0; l < 16; l++)
        for (int i = 0; i < 8; i++) turned[i][l] = states[l].w32[i];
    for (int i = 0; i < 8; i++) s[i] = _mm512_load_si512(turned[i]);
    for (size_t b = 0; b < blocks; b++) {
        for (int l = 0; l < 16; l++) {
            w[l] = _mm512_shuffle_epi8(_mm512_loadu_si512(data[l] + 64 * b), swap);
            _mm_prefetch((const char *)data[l] + 64 * b + ahead, _MM_HINT_T1);
        }
        avx512_transpose_16(w);
        __m512i v[8];
        memcpy(v, s, sizeof v);
        ROUNDS_16(D, w, v, k, EXPAND_NOT)
        for (int t = 16; t < 64; t += 16) {
            ROUNDS_16(D, w, v, k + t, EXPAND)
        }
        for (int i = 0; i < 8; i++) s[i] = _mm512_add_epi32(s[i], v[i]);
    }
    for (int i = 0; i < 8; i++) _mm512_store_si512(turned[i], s[i]);
    for (int l = 0; l < 16; l++)
        for (int i = 0; i < 8; i++) states[l].w32[i] = turned[i][l];
}

#include <cpuid.h>

/* __builtin_cpu_supports() also asks the operating system (XGETBV) whether the registers are saved; GCC 12 has no word for "sha". */
static int sha_ni_able(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

static int avx2_able(void) { return __builtin_cpu_supports("avx2"); }

static int avx512_able(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

const kernel kernels[] = {
    {"sha-ni", 0, 4, sha_ni_able, ni_compress_4, ni_compress_1},
    {"avx512", 0, 16, avx512_able, avx512_compress_16, NULL},
    {"avx2", 0, 8, avx2_able, avx2_compress_8, NULL},
    {"avx512", 1, 8, avx512_able, avx512_compress_8, NULL},
};
const size_t kernel_count = sizeof kernels / sizeof *kernels;

#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#ifndef HWCAP_SHA2
#define HWCAP_SHA2 (1 << 6)
#endif

/* --- ARMv8 Cryptography Extensions: four lanes interleaved. -------------------------------------------------------------------- */

#if defined(__clang__)
#define CE __attribute__((target("sha2")))
#else
#define CE __attribute__((target("+crypto")))
#endif

#define CE_COMPRESS(NAME, LANES)                                                                                             \
    static CE void NAME(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead) {                                          \
        uint32x4_t abcd[LANES], efgh[LANES], m[LANES][4];                                                                    \
        for (int l = 0; l < (LANES); l++) {                                                                                  \
            abcd[l] = vld1q_u32(states[l].w32);                                                                              \
            efgh[l] = vld1q_u32(states[l].w32 + 4);                                                                          \
        }                                                                                                                    \
        for (size_t b = 0; b < blocks; b++) {                                                                                \
            uint32x4_t old_abcd[LANES], old_efgh[LANES];                                                                     \
            for (int l = 0; l < (LANES); l++) {                                                                              \
                old_abcd[l] = abcd[l];                                                                                       \
                old_efgh[l] = efgh[l];                                                                                       \
                __builtin_prefetch(data[l] + 64 * b + ahead);                                                                \
                for (int i = 0; i < 4; i++)                                                                                  \
                    m[l][i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data[l] + 64 * b + 16 * i)));                         \
            }                                                                                                                \
            _Pragma("GCC unroll 16") for (int g = 0; g < 16; g++) {                                                          \
                uint32x4_t k = vld1q_u32(K256 + 4 * g);                                                                      \
                for (int l = 0; l < (LANES); l++) {                                                                          \
                    uint32x4_t wk = vaddq_u32(m[l][g & 3], k), before = abcd[l];                                             \
                    if (g < 12)                                                                                              \
                        m[l][g & 3] = vsha256su1q_u32(vsha256su0q_u32(m[l][g & 3], m[l][(g + 1) & 3]), m[l][(g + 2) & 3],    \
                                                      m[l][(g + 3) & 3]);                                                    \
                    abcd[l] = vsha256hq_u32(abcd[l], efgh[l], wk);                                                           \
                    efgh[l] = vsha256h2q_u32(efgh[l], before, wk);                                                           \
                }                                                                                                            \
            }                                                                                                                \
            for (int l = 0; l < (LANES); l++) {                                                                              \
                abcd[l] = vaddq_u32(abcd[l], old_abcd[l]);                                                                   \
                efgh[l] = vaddq_u32(efgh[l], old_efgh[l]);                                                                   \
            }                                                                                                                \
        }                                                                                                                    \
        for (int l = 0; l < (LANES); l++) {                                                                                  \
            vst1q_u32(states[l].w32, abcd[l]);                                                                               \
            vst1q_u32(states[l].w32 + 4, efgh[l]);                                                                           \
        }                                                                                                                    \
    }

CE_COMPRESS(ce_compress_4, 4)
CE_COMPRESS(ce_compress_1, 1)

static int ce_able(void) { return (getauxval(AT_HWCAP) & HWCAP_SHA2) != 0; }

const kernel kernels[] = {{"armv8-ce", 0, 4, ce_able, ce_compress_4, ce_compress_1}};
const size_t kernel_count = sizeof kernels / sizeof *kernels;

#else
const kernel kernels[] = {{NULL, -1, 1, NULL, NULL, NULL}};
const size_t kernel_count = 0;
static const uint32_t *const unused = K256;
const void *ipe_build_unused(void) { return unused; }
#endif
