/* Threads that share the units of one job. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define TICK_NS 100000000L

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

uint64_t crew_take(crew *c, uint64_t most, uint64_t *first) {
    uint64_t from = atomic_load(&c->next), count;
    do {
        if (from >= c->units || atomic_load(&c->failed) || atomic_load(&c->cancelled)) return 0;
        /* Less and less towards the end, so that all threads end together. */
        count = (c->units - from) / (4 * c->threads);
        count = count > most ? most : count ? count : 1;
    } while (!atomic_compare_exchange_weak(&c->next, &from, from + count));
    *first = from;
    return count;
}

int crew_next(crew *c, uint64_t *unit) { return crew_take(c, 1, unit) != 0; }

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

/* Starts the threads; returns how many there are now. */
static unsigned start(crew *c, pthread_t *handles) {
    unsigned started = 0;
    while (handles && c->threads > 1 && started < c->threads) {
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
    return started;
}

/* Waits for all threads; asks tick() meanwhile. */
static void wait_for_all(crew *c, int (*tick)(void *, uint64_t done), void *tick_data) {
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
}

void crew_run(crew *c, unsigned threads, int (*tick)(void *, uint64_t done), void *tick_data) {
    pthread_condattr_t attributes;
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&c->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    c->threads = threads > c->units ? (c->units ? (unsigned)c->units : 1) : threads;
    bus_begin();
    pthread_t *handles = calloc(c->threads, sizeof *handles);
    unsigned started = start(c, handles);
    if (!started) { /* a single unit, or no thread to be had: do it here */
        c->running++;
        crew_thread(c);
    }
    wait_for_all(c, tick, tick_data);
    for (unsigned i = 0; i < started; i++) pthread_join(handles[i], NULL);
    free(handles);
    bus_end();
    pthread_cond_destroy(&c->idle);
    pthread_mutex_destroy(&c->lock);
}
