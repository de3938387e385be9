/* What the files of the extension share. Each kernel is a compression function for a fixed number of lanes; hasher.c puts
 * prefix, block, suffix and padding in front of it; run.c feeds it from files with threads. */
#ifndef IPE_BUILD_NATIVE_H
#define IPE_BUILD_NATIVE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_LANES 16
#define MAX_DIGEST 64
#define MAX_INPUT_BLOCK 128
#define MAX_SALT 256
/* rest of the data, suffix, 0x80, zeros, length: at most 127 + 256 + 1 + 16 bytes, rounded up */
#define MAX_TAIL 512

/* The chaining value of a lane: eight words of 32 (SHA-256) or 64 bits (SHA-512). */
typedef union {
    uint32_t w32[8];
    uint64_t w64[8];
} chain;

/* Takes `blocks` input blocks of each lane from data[lane] into states[lane]. What lies `ahead` bytes further is fetched into the cache
 * meanwhile; it need not be memory of ours. */
typedef void (*compress_fn)(chain *states, const uint8_t *const *data, size_t blocks, size_t ahead);

typedef struct {
    const char *name;
    int wide; /* 0: SHA-256's function, 1: SHA-512's */
    unsigned lanes;
    int (*able)(void);
    compress_fn many; /* `lanes` at once */
    compress_fn one;  /* a single lane, or NULL: `many` with the lane repeated */
} kernel;

extern const kernel kernels[];
extern const size_t kernel_count;

/* An algorithm by the kernel's name; `openssl` NULL: not there. `wide` -1: only OpenSSL. */
typedef struct {
    const char *name;
    size_t digest_size;
    int wide;
    const void *iv;
    const char *openssl;
} algorithm;

const algorithm *find_algorithm(const char *name);

/* How a block is hashed; set up once, then only read by the threads. */
typedef struct {
    const algorithm *algorithm;
    const kernel *kernel; /* NULL: OpenSSL */
    const kernel *rest;   /* for fewer blocks than half of kernel's lanes; may be NULL */
    size_t block_size;
    size_t input_block;
    chain start;         /* after the prefix's whole input blocks */
    uint8_t head[MAX_INPUT_BLOCK]; /* the prefix's rest */
    size_t head_size;
    uint8_t tail[MAX_TAIL]; /* room for head_size bytes of data, suffix, padding */
    size_t tail_size;
    uint8_t prefix[MAX_SALT], suffix[MAX_SALT];
    size_t prefix_size, suffix_size;
} hasher;

/* What a thread needs beside: OpenSSL's contexts. */
typedef struct {
    void *started;
    void *working;
} hasher_thread;

/* The kernels that can compute an algorithm here, the fastest first, into `found` (room for kernel_count): a short race decides,
 * since which of a processor's units wins differs between makers and models. Returns how many. */
size_t kernels_for(const algorithm *a, const kernel **found);

/* 0, or -1 when the kernel is unknown, cannot run here or cannot compute the algorithm; "" chooses the best. */
int hasher_init(hasher *h, const char *name, const char *kernel_name, const uint8_t *prefix, size_t prefix_size,
                const uint8_t *suffix, size_t suffix_size, size_t block_size);
int hasher_thread_init(const hasher *h, hasher_thread *t);
void hasher_thread_end(const hasher *h, hasher_thread *t);
/* Writes the digests of `count` blocks of block_size bytes to outs[i]. 0, or -1 when OpenSSL fails. */
int hasher_many(const hasher *h, hasher_thread *t, const uint8_t *const *blocks, uint8_t *const *outs, size_t count);
/* Writes the digest of a message alone (no prefix, no suffix). */
int hasher_message(const hasher *h, hasher_thread *t, const uint8_t *data, size_t size, uint8_t *out);

typedef struct {
    const uint8_t *data;
    size_t size;
    uint8_t *out;
} message;

/* Writes the digests of messages of any sizes (no prefix, no suffix), a message a lane; the longest should come first. 0, or -1. */
int hasher_messages(const hasher *h, hasher_thread *t, const message *messages, size_t count);

/* openssl.c: libcrypto, loaded when first used. */
int openssl_able(const char *name);
int openssl_thread_init(const hasher *h, hasher_thread *t);
void openssl_thread_end(hasher_thread *t);
int openssl_many(const hasher *h, hasher_thread *t, const uint8_t *const *blocks, uint8_t *const *outs, size_t count);
int openssl_message(const hasher *h, hasher_thread *t, const uint8_t *data, size_t size, uint8_t *out);

enum status { STATUS_OK, STATUS_READ, STATUS_SHORT, STATUS_WRITE, STATUS_TARGET_READ, STATUS_TARGET_SHORT, STATUS_INTERNAL };

/* What threads of one call share: units to take, bytes done, the failure at the lowest offset. */
typedef struct crew {
    void (*work)(struct crew *, void *scratch);
    void *task;
    size_t scratch_size;
    uint64_t units;
    unsigned threads;
    _Atomic uint64_t next;
    _Atomic uint64_t done;
    _Atomic int failed;    /* take no more units; those begun are finished, so that the failure at the lowest offset is told */
    _Atomic int cancelled; /* leave at once */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned running;
    int status, error;
    uint64_t offset;
} crew;

/* Takes up to `most` units that follow each other, in ascending order; returns how many, 0 when there is nothing more to do. */
uint64_t crew_take(crew *c, uint64_t most, uint64_t *first);
/* The same for one. */
int crew_next(crew *c, uint64_t *unit);
void crew_fail(crew *c, int status, int error, uint64_t offset);
/* Runs work() in `threads` threads; `tick` (when not NULL) is called by the caller's thread now and then and stops all when not 0. */
void crew_run(crew *c, unsigned threads, int (*tick)(void *, uint64_t done), void *tick_data);

/* files.c. Both handle all of `size` bytes and return a STATUS_…; *at is then where it failed. */
int read_all(int file, uint8_t *to, size_t size, uint64_t offset, uint64_t *at, int *error);
int write_all(int file, const uint8_t *from, size_t size, uint64_t offset, uint64_t *at, int *error);

/* What the filesystem said last: from `from` a hole up to data_from, then data up to data_to. Begin with {1, 0, 0}. */
typedef struct {
    uint64_t from, data_from, data_to;
} extents;
/* Whether byte `from` of the file lies in a hole (1) or in data (0); *until is where that ends. */
int extent_at(extents *e, int file, uint64_t from, uint64_t *until);

/* A piece of a file in memory. `data` NULL: it is small or cannot be mapped, and must be read. */
typedef struct {
    const uint8_t *data;
    uint8_t *mapping;
    size_t mapped;
} view;
#define MAP_FROM (64u << 10)
int view_open(view *v, int file, uint64_t offset, uint64_t size);
void view_populate(const uint8_t *data, size_t size);
void view_close(view *v);
/* Calls work(data), which may touch views: 0, -1 when it fails, 1 when a page of the file could not be had (SIGBUS). */
int bus_guard(int (*work)(void *), void *data);
void bus_begin(void);
void bus_end(void);

typedef struct {
    hasher hash;
    int source, target;
    uint64_t source_offset, source_bytes, blocks;
    uint64_t target_offset;
    size_t hash_block_size, per_block, slot_size;
    uint8_t *bitmap; /* NULL: digests are written; else compared, a bit for each that differs */
    size_t unit_blocks, run_units, piece_blocks;
    int maps; /* whether the source is mapped rather than read */
    uint8_t zero_digest[MAX_DIGEST];
} level_task;

int level_prepare(level_task *task, crew *c, unsigned threads);

typedef struct {
    hasher hash;
    const char *const *paths;
    uint8_t *records; /* one of MEASURE_RECORD bytes a path */
    size_t salt_size;
    uint8_t salt[32];
    uint64_t big; /* files of this size or more are left to the caller */
    unsigned log_block_size, algorithm_number;
    unsigned most_files; /* taken together */
    size_t region_bytes, spare_bytes;
} measure_task;

/* status (u32: a STATUS_…, or one below), errno (u32), size (u64), root hash and digest (64 bytes each). */
#define MEASURE_RECORD 144
enum { MEASURE_OPEN = 16, MEASURE_KIND, MEASURE_CHANGED, MEASURE_BIG };
int measure_prepare(measure_task *task, crew *c, uint64_t count, unsigned threads);

typedef struct {
    int data, hash_area, target;
    uint64_t hash_offset, target_offset, data_blocks, covered, rounds;
    size_t block_size;
    unsigned roots;
    uint64_t strip_rounds;
    uint8_t low[24][16], high[24][16];
    uint8_t products[24][256];
    int vector;
} fec_task;

int fec_prepare(fec_task *task, crew *c);

#endif
