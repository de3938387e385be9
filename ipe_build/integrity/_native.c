/* ipe_build.integrity._native: the hot loops, for Python. Stable ABI of 3.11; the GIL is released while threads work. */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include "native.h"

#include <string.h>
#include <unistd.h>

typedef struct {
    PyObject *progress;
    PyThreadState *saved;
    int raised;
} ticker;

/* Called about ten times a second while threads work: shows progress and lets Ctrl-C through. */
static int tick(void *data, uint64_t done) {
    ticker *t = data;
    PyEval_RestoreThread(t->saved);
    if (!t->raised && PyErr_CheckSignals()) t->raised = 1;
    if (!t->raised && t->progress != Py_None) {
        PyObject *result = PyObject_CallFunction(t->progress, "K", (unsigned long long)done);
        if (!result) t->raised = 1;
        Py_XDECREF(result);
    }
    t->saved = PyEval_SaveThread();
    return t->raised;
}

/* Runs the crew without the GIL. -1 when an exception was raised meanwhile. */
static int run(crew *c, unsigned threads, PyObject *progress) {
    ticker t = {progress, NULL, 0};
    t.saved = PyEval_SaveThread();
    crew_run(c, threads ? threads : 1, tick, &t);
    PyEval_RestoreThread(t.saved);
    return t.raised ? -1 : 0;
}

static PyObject *report(const crew *c) {
    if (c->status == STATUS_INTERNAL) {
        PyErr_SetString(PyExc_MemoryError, "a hashing thread could not be set up");
        return NULL;
    }
    return Py_BuildValue("(iiK)", c->status, c->error, (unsigned long long)c->offset);
}

static PyObject *refuse(void) {
    PyErr_SetString(PyExc_ValueError, "no such algorithm or kernel here, or a size out of range");
    return NULL;
}

static PyObject *native_kernels(PyObject *self, PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s:kernels", &name)) return NULL;
    PyObject *list = PyList_New(0);
    const algorithm *a = find_algorithm(name);
    const kernel *found[16];
    size_t count = a ? kernels_for(a, found) : 0;
    for (size_t i = 0; list && a && i <= count; i++) {
        if (i == count && !openssl_able(a->openssl)) break;
        PyObject *text = PyUnicode_FromString(i == count ? "openssl" : found[i]->name);
        if (!text || PyList_Append(list, text)) Py_CLEAR(list);
        Py_XDECREF(text);
    }
    PyObject *result = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return result;
}

static PyObject *native_best(PyObject *self, PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s:best", &name)) return NULL;
    const kernel *found[16];
    const algorithm *a = find_algorithm(name);
    /* libcrypto is loaded only when nothing else will do: that takes longer than hashing a small image. */
    if (a && kernels_for(a, found)) return PyUnicode_FromString(found[0]->name);
    return PyUnicode_FromString(a && openssl_able(a->openssl) ? "openssl" : "");
}

static PyObject *native_level(PyObject *self, PyObject *args) {
    const char *name, *kernel_name;
    Py_buffer prefix, suffix;
    PyObject *bitmap_object, *progress;
    Py_buffer bitmap = {0};
    unsigned long long source_offset, source_bytes, target_offset;
    unsigned long block_size, hash_block_size, per_block, slot_size;
    unsigned threads;
    level_task t;
    crew c;
    PyObject *result = NULL;
    memset(&t, 0, sizeof t);
    memset(&c, 0, sizeof c);
    if (!PyArg_ParseTuple(args, "ssy*y*iKKkiKkkkOIO:level", &name, &kernel_name, &prefix, &suffix, &t.source, &source_offset,
                          &source_bytes, &block_size, &t.target, &target_offset, &hash_block_size, &per_block, &slot_size,
                          &bitmap_object, &threads, &progress))
        return NULL;
    t.source_offset = source_offset;
    t.source_bytes = source_bytes;
    t.target_offset = target_offset;
    t.hash_block_size = hash_block_size;
    t.per_block = per_block;
    t.slot_size = slot_size;
    if (!source_bytes || !per_block || !slot_size || block_size > (16ul << 20) || hash_block_size > (16ul << 20) ||
        hasher_init(&t.hash, name, kernel_name, prefix.buf, (size_t)prefix.len, suffix.buf, (size_t)suffix.len, block_size) ||
        slot_size < t.hash.algorithm->digest_size || per_block * slot_size > hash_block_size) {
        result = refuse();
    } else if (bitmap_object != Py_None && PyObject_GetBuffer(bitmap_object, &bitmap, PyBUF_WRITABLE)) {
        result = NULL;
    } else if (level_prepare(&t, &c, threads) || (bitmap.buf && (uint64_t)bitmap.len * 8 < t.blocks)) {
        result = refuse();
    } else {
        t.bitmap = bitmap.buf;
        if (!run(&c, threads, progress)) result = report(&c);
    }
    if (bitmap.buf) PyBuffer_Release(&bitmap);
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&suffix);
    return result;
}

static PyObject *native_measure(PyObject *self, PyObject *args) {
    PyObject *paths, *progress, *encoded = NULL, *result = NULL;
    const char *name, *kernel_name;
    Py_buffer salt;
    unsigned number, log_block_size, threads;
    unsigned long long big;
    measure_task t;
    crew c;
    uint8_t prefix[MAX_INPUT_BLOCK] = {0};
    memset(&t, 0, sizeof t);
    memset(&c, 0, sizeof c);
    if (!PyArg_ParseTuple(args, "O!ssy*IIKIO:measure", &PyList_Type, &paths, &name, &kernel_name, &salt, &number, &log_block_size, &big,
                          &threads, &progress))
        return NULL;
    Py_ssize_t count = PyList_Size(paths);
    const algorithm *a = find_algorithm(name);
    size_t input_block = a && a->wide == 1 ? 128 : 64;
    int bad = !a || salt.len > 32 || log_block_size < 10 || log_block_size > 16 || big > (1ull << 30);
    if (!bad) {
        memcpy(prefix, salt.buf, (size_t)salt.len);
        memcpy(t.salt, salt.buf, (size_t)salt.len);
        t.salt_size = (size_t)salt.len;
        bad = hasher_init(&t.hash, name, kernel_name, prefix, salt.len ? input_block : 0, prefix, 0, (size_t)1 << log_block_size);
    }
    PyBuffer_Release(&salt);
    if (bad) return refuse();
    t.log_block_size = log_block_size;
    t.algorithm_number = number;
    t.big = big;
    const char **names = PyMem_Malloc((size_t)(count ? count : 1) * sizeof *names);
    PyObject *records = PyBytes_FromStringAndSize(NULL, count * MEASURE_RECORD);
    encoded = PyTuple_New(count);
    if (!names || !records || !encoded) goto out;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *path;
        if (!PyUnicode_FSConverter(PyList_GetItem(paths, i), &path)) goto out;
        PyTuple_SetItem(encoded, i, path);
        names[i] = PyBytes_AsString(path);
    }
    t.paths = names;
    t.records = (uint8_t *)PyBytes_AsString(records);
    memset(t.records, 0, (size_t)count * MEASURE_RECORD);
    measure_prepare(&t, &c, (uint64_t)count, threads);
    if (run(&c, threads, progress)) goto out;
    if (c.status) {
        PyErr_SetString(PyExc_MemoryError, "a hashing thread could not be set up");
        goto out;
    }
    result = records;
    records = NULL;
out:
    if (!names && !PyErr_Occurred()) PyErr_NoMemory();
    PyMem_Free((void *)names);
    Py_XDECREF(encoded);
    Py_XDECREF(records);
    return result;
}

static PyObject *native_fec(PyObject *self, PyObject *args) {
    unsigned long long hash_offset, data_blocks, covered, target_offset;
    unsigned long block_size;
    unsigned threads;
    PyObject *progress;
    fec_task t;
    crew c;
    memset(&t, 0, sizeof t);
    memset(&c, 0, sizeof c);
    if (!PyArg_ParseTuple(args, "iiKKKkIiKIO:fec", &t.data, &t.hash_area, &hash_offset, &data_blocks, &covered, &block_size, &t.roots,
                          &t.target, &target_offset, &threads, &progress))
        return NULL;
    if (t.roots < 2 || t.roots > 24 || block_size % 32 || !block_size || block_size > (16ul << 20) || !covered) return refuse();
    t.hash_offset = hash_offset;
    t.data_blocks = data_blocks;
    t.covered = covered;
    t.block_size = block_size;
    t.target_offset = target_offset;
    t.rounds = (covered + 254 - t.roots) / (255 - t.roots);
    fec_prepare(&t, &c);
    if (run(&c, threads, progress)) return NULL;
    return report(&c);
}

static PyObject *native_digest(PyObject *self, PyObject *args) {
    const char *name;
    Py_buffer message;
    hasher h;
    hasher_thread t;
    uint8_t digest[MAX_DIGEST];
    if (!PyArg_ParseTuple(args, "sy*:digest", &name, &message)) return NULL;
    int bad = hasher_init(&h, name, "", (const uint8_t *)"", 0, (const uint8_t *)"", 0, 512) || hasher_thread_init(&h, &t);
    if (!bad) {
        bad = hasher_message(&h, &t, message.buf, (size_t)message.len, digest);
        hasher_thread_end(&h, &t);
    }
    PyBuffer_Release(&message);
    return bad ? refuse() : PyBytes_FromStringAndSize((const char *)digest, (Py_ssize_t)h.algorithm->digest_size);
}

static PyObject *native_digests(PyObject *self, PyObject *args) {
    const char *name, *kernel_name;
    PyObject *list, *result = NULL;
    hasher h;
    hasher_thread t;
    if (!PyArg_ParseTuple(args, "ssO!:digests", &name, &kernel_name, &PyList_Type, &list)) return NULL;
    if (hasher_init(&h, name, kernel_name, (const uint8_t *)"", 0, (const uint8_t *)"", 0, 512)) return refuse();
    Py_ssize_t count = PyList_Size(list);
    size_t size = h.algorithm->digest_size;
    message *messages = PyMem_Malloc((size_t)(count ? count : 1) * sizeof *messages);
    PyObject *kept = PyTuple_New(count); /* whatever becomes of the list meanwhile */
    PyObject *out = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)size);
    if (!messages || !kept || !out) goto end;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *one = PyList_GetItem(list, i);
        if (!one || !PyBytes_Check(one)) {
            PyErr_SetString(PyExc_TypeError, "messages are bytes");
            goto end;
        }
        Py_INCREF(one);
        PyTuple_SetItem(kept, i, one);
        messages[i].data = (const uint8_t *)PyBytes_AsString(one);
        messages[i].size = (size_t)PyBytes_Size(one);
        messages[i].out = (uint8_t *)PyBytes_AsString(out) + (size_t)i * size;
    }
    if (hasher_thread_init(&h, &t)) {
        refuse();
        goto end;
    }
    PyThreadState *saved = PyEval_SaveThread();
    int bad = hasher_messages(&h, &t, messages, (size_t)count);
    hasher_thread_end(&h, &t);
    PyEval_RestoreThread(saved);
    if (bad) {
        refuse();
    } else {
        result = out;
        out = NULL;
    }
end:
    if (!messages && !PyErr_Occurred()) PyErr_NoMemory();
    PyMem_Free(messages);
    Py_XDECREF(kept);
    Py_XDECREF(out);
    return result;
}

/* --- The ceiling that the benchmark measures against: hashing the same megabyte in the cache, no file at all. --------------------- */

typedef struct {
    hasher hash;
    uint64_t rounds;
} spin_task;

#define SPIN_BYTES (1u << 20)

static void spin_work(crew *c, void *scratch) {
    const spin_task *t = c->task;
    uint8_t *data = scratch, digests[MAX_LANES][MAX_DIGEST];
    const uint8_t *blocks[MAX_LANES];
    uint8_t *outs[MAX_LANES];
    hasher_thread thread;
    memset(data, 0x5a, SPIN_BYTES);
    if (hasher_thread_init(&t->hash, &thread)) return;
    for (uint64_t unit; crew_next(c, &unit);) {
        for (uint64_t round = 0; round < t->rounds; round++)
            for (size_t at = 0; at + MAX_LANES * t->hash.block_size <= SPIN_BYTES; at += MAX_LANES * t->hash.block_size) {
                for (size_t l = 0; l < MAX_LANES; l++) {
                    blocks[l] = data + at + l * t->hash.block_size;
                    outs[l] = digests[l];
                }
                if (hasher_many(&t->hash, &thread, blocks, outs, MAX_LANES)) return;
            }
        atomic_fetch_add(&c->done, t->rounds * SPIN_BYTES);
    }
    hasher_thread_end(&t->hash, &thread);
}

static PyObject *native_spin(PyObject *self, PyObject *args) {
    const char *name, *kernel_name;
    Py_buffer prefix;
    unsigned long block_size;
    unsigned threads;
    unsigned long long megabytes;
    spin_task t = {.rounds = 16};
    crew c;
    memset(&c, 0, sizeof c);
    if (!PyArg_ParseTuple(args, "ssy*kKI:spin", &name, &kernel_name, &prefix, &block_size, &megabytes, &threads)) return NULL;
    int bad = block_size * MAX_LANES > SPIN_BYTES ||
              hasher_init(&t.hash, name, kernel_name, prefix.buf, (size_t)prefix.len, prefix.buf, 0, block_size);
    PyBuffer_Release(&prefix);
    if (bad) return refuse();
    c.work = spin_work;
    c.task = &t;
    c.units = megabytes / t.rounds + 1;
    c.scratch_size = SPIN_BYTES;
    if (run(&c, threads, Py_None)) return NULL;
    return PyLong_FromUnsignedLongLong(c.done);
}

static PyMethodDef methods[] = {
    {"kernels", native_kernels, METH_VARARGS, "kernels(algorithm): names of the implementations that run here, the fastest first"},
    {"best", native_best, METH_VARARGS, "best(algorithm): the first of kernels(), or an empty string"},
    {"level", native_level, METH_VARARGS, "level(...): hash a level of a tree; (status, errno, offset)"},
    {"measure", native_measure, METH_VARARGS, "measure(...): fs-verity digests of many files; one record a file"},
    {"digest", native_digest, METH_VARARGS, "digest(algorithm, message): the digest of one message in memory"},
    {"digests", native_digests, METH_VARARGS, "digests(algorithm, kernel, messages): their digests, one after the other"},
    {"fec", native_fec, METH_VARARGS, "fec(...): write Reed-Solomon parity; (status, errno, offset)"},
    {"spin", native_spin, METH_VARARGS, "spin(...): hash memory in the cache; bytes hashed"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_doc = "The hot loops of ipe_build.integrity.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
