/* libcrypto for what no kernel of ours computes: loaded at run time, so that the extension builds and loads without OpenSSL. */
#include "native.h"

#include <dlfcn.h>
#include <string.h>

static struct {
    int loaded; /* 0: not tried, 1: there, -1: not there */
    void *(*md_fetch)(void *, const char *, const char *);
    const void *(*md_by_name)(const char *);
    void *(*new_ctx)(void);
    void (*free_ctx)(void *);
    int (*copy)(void *, const void *);
    int (*init)(void *, const void *, void *);
    int (*update)(void *, const void *, size_t);
    int (*final)(void *, unsigned char *, unsigned *);
} ssl;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"};
    void *handle = NULL;
    for (size_t i = 0; i < 3 && !handle; i++) handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    ssl.loaded = -1;
    if (!handle) return;
    struct {
        void *place;
        const char *name;
    } wanted[] = {
        {&ssl.new_ctx, "EVP_MD_CTX_new"},       {&ssl.free_ctx, "EVP_MD_CTX_free"}, {&ssl.copy, "EVP_MD_CTX_copy_ex"},
        {&ssl.init, "EVP_DigestInit_ex"},       {&ssl.update, "EVP_DigestUpdate"},  {&ssl.final, "EVP_DigestFinal_ex"},
        {&ssl.md_by_name, "EVP_get_digestbyname"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *symbol = dlsym(handle, wanted[i].name);
        if (!symbol) return;
        memcpy(wanted[i].place, &symbol, sizeof symbol);
    }
    /* Absent before 3.0. A fetched digest spares a lookup with locks at each copy. */
    void *fetch = dlsym(handle, "EVP_MD_fetch");
    memcpy(&ssl.md_fetch, &fetch, sizeof fetch);
    ssl.loaded = 1;
}

static const void *digest_named(const char *name) {
    pthread_once(&once, load);
    if (ssl.loaded != 1 || !name) return NULL;
    if (ssl.md_fetch) return ssl.md_fetch(NULL, name, NULL); /* kept for the process's life */
    return ssl.md_by_name(name);
}

int openssl_able(const char *name) { return digest_named(name) != NULL; }

int openssl_thread_init(const hasher *h, hasher_thread *t) {
    const void *digest = digest_named(h->algorithm->openssl);
    if (!digest) return -1;
    t->started = ssl.new_ctx();
    t->working = ssl.new_ctx();
    if (t->started && t->working && ssl.init(t->started, digest, NULL) == 1 && ssl.update(t->started, h->prefix, h->prefix_size) == 1)
        return 0;
    openssl_thread_end(t);
    return -1;
}

void openssl_thread_end(hasher_thread *t) {
    if (t->started) ssl.free_ctx(t->started);
    if (t->working) ssl.free_ctx(t->working);
    t->started = t->working = NULL;
}

int openssl_many(const hasher *h, hasher_thread *t, const uint8_t *const *blocks, uint8_t *const *outs, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (ssl.copy(t->working, t->started) != 1 || ssl.update(t->working, blocks[i], h->block_size) != 1) return -1;
        if (h->suffix_size && ssl.update(t->working, h->suffix, h->suffix_size) != 1) return -1;
        if (ssl.final(t->working, outs[i], NULL) != 1) return -1;
    }
    return 0;
}

int openssl_message(const hasher *h, hasher_thread *t, const uint8_t *data, size_t size, uint8_t *out) {
    const void *digest = digest_named(h->algorithm->openssl);
    if (!digest || ssl.init(t->working, digest, NULL) != 1) return -1;
    return ssl.update(t->working, data, size) == 1 && ssl.final(t->working, out, NULL) == 1 ? 0 : -1;
}
