/* Reading, writing and mapping files; where their holes are. */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ 22
#endif

int read_all(int file, uint8_t *to, size_t size, uint64_t offset, uint64_t *at, int *error) {
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

int write_all(int file, const uint8_t *from, size_t size, uint64_t offset, uint64_t *at, int *error) {
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

/* --- Holes --------------------------------------------------------------------------------------------------------------------- */

/* Asks the filesystem: from `from` on a hole up to data_from, then data up to data_to. What it cannot say counts as data. */
static void ask_extents(extents *e, int file, uint64_t from) {
    e->from = e->data_from = from;
    e->data_to = UINT64_MAX;
    off_t found = lseek(file, (off_t)from, SEEK_DATA);
    if (found >= 0) {
        e->data_from = (uint64_t)found;
        off_t end = lseek(file, found, SEEK_HOLE);
        if (end > found) e->data_to = (uint64_t)end;
    } else if (errno == ENXIO) { /* a hole up to the end: of the file as it is now */
        struct stat now;
        if (!fstat(file, &now) && (uint64_t)now.st_size > from) e->data_from = e->data_to = (uint64_t)now.st_size;
    }
}

int extent_at(extents *e, int file, uint64_t from, uint64_t *until) {
    if (from < e->from || from >= e->data_to) ask_extents(e, file, from);
    int hole = from < e->data_from;
    *until = hole ? e->data_from : e->data_to;
    return hole;
}

/* --- The page cache as it is ----------------------------------------------------------------------------------------------------
 *
 * Copying a file out of the page cache with pread costs a third of what hashing it takes, so large pieces are mapped and hashed where they
 * are. A page that cannot be read, or is no longer there since the file was cut, then shows as SIGBUS: the handler leaves the hashing, and
 * the piece is read with pread, which says what is wrong and where. */

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

void bus_begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_bus;
    action.sa_flags = SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&bus_lock);
    if (!bus_users++) sigaction(SIGBUS, &action, &bus_before);
    pthread_mutex_unlock(&bus_lock);
}

void bus_end(void) {
    pthread_mutex_lock(&bus_lock);
    if (!--bus_users) sigaction(SIGBUS, &bus_before, NULL);
    pthread_mutex_unlock(&bus_lock);
}

int bus_guard(int (*work)(void *), void *data) {
    volatile int result = 1;
    if (!sigsetjmp(bus_escape, 0)) {
        bus_armed = 1;
        result = work(data) ? -1 : 0;
        bus_armed = 0;
    }
    return result;
}

int view_open(view *v, int file, uint64_t offset, uint64_t size) {
    uint64_t before = offset % 4096;
    memset(v, 0, sizeof *v);
    if (size < MAP_FROM || size > SIZE_MAX / 2 || sysconf(_SC_PAGESIZE) != 4096) return 0;
    void *place = mmap(NULL, (size_t)(size + before), PROT_READ, MAP_SHARED, file, (off_t)(offset - before));
    if (place == MAP_FAILED) return 0;
    v->mapping = place;
    v->mapped = (size_t)(size + before);
    v->data = v->mapping + before;
    return 1;
}

void view_populate(const uint8_t *data, size_t size) {
    uint8_t *start = (uint8_t *)((uintptr_t)data & ~(uintptr_t)4095);
    madvise(start, size + (size_t)(data - start), MADV_POPULATE_READ); /* may fail: the pages come one by one then */
}

void view_close(view *v) {
    if (v->mapping) munmap(v->mapping, v->mapped);
    v->mapping = NULL;
}
