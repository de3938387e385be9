// ipe-probe: started as init from the verity root, it tries what a probe disk's plan says and reports on the console.
//
// Plan (file "plan" of the probe disk, a newc cpio archive on a whole disk): one probe a line, fields separated by tabs,
//     ID KIND ARGUMENT...
// An argument "@tmpfs:PATH" stands for a copy of PATH on tmpfs, "@tmpfs-folder:PATH" for the folder of such a copy, "@disk:NAME" for
// file NAME of the probe disk, written to tmpfs. "env:NAME=VALUE" before a program sets its environment. Kinds: the table KINDS.
//
// Report: lines "@ipe-probe {JSON}" through /dev/kmsg, so that they and the kernel's own records are in one order:
//     {"start":...}, then for each probe {"begin":ID} and {"id":ID,"errno":N,"error":NAME,"status":N,"detail":TEXT}, then {"end":COUNT}.
// Before a result is printed, a record of our own is sent through the audit queue and awaited in the kernel log: the queue is
// first in, first out, so every audit record that the probe caused is on the console before its result.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/memfd.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define IPE "/sys/kernel/security/ipe"
#define MAX_FIELDS 24
#define LINE_BYTES 960 /* a kernel log record holds 1024 bytes, prefix included */
#define DETAIL_BYTES 320
#define PROBE_SECONDS 30
#define MODULE_COMPRESSED_FILE 4 /* MODULE_INIT_COMPRESSED_FILE, include/uapi/linux/module.h */

struct result {
    int err;    /* errno of the step that failed, 0 when none did */
    int status; /* exit status of the program that was run, 128 + signal when killed, -1 when none was run */
    char detail[DETAIL_BYTES];
};

struct fields {
    char *at[MAX_FIELDS];
    int count;
};

static int kmsg_out = -1, kmsg_in = -1, audit_socket = -1;
static unsigned mark_number, copy_number;
static char tmp[64]; /* our tmpfs */

/* ---- reporting ---- */

static size_t json_text(char *out, size_t size, const char *text)
{
    size_t used = 0;

    for (const unsigned char *at = (const unsigned char *)text; *at && used + 8 < size; at++) {
        if (*at == '"' || *at == '\\')
            used += (size_t)snprintf(out + used, size - used, "\\%c", *at);
        else if (*at < 0x20 || *at > 0x7e)
            used += (size_t)snprintf(out + used, size - used, "\\u%04x", *at);
        else
            out[used++] = (char)*at;
    }
    out[used] = '\0';
    return used;
}

static void say(const char *json)
{
    char line[LINE_BYTES + 32];
    int length = snprintf(line, sizeof(line), "<5>@ipe-probe %s", json);

    if (kmsg_out >= 0)
        (void)!write(kmsg_out, line, (size_t)length < sizeof(line) ? (size_t)length : sizeof(line) - 1);
}

static void say_result(const char *id, const struct result *result)
{
    char line[LINE_BYTES], detail[3 * DETAIL_BYTES / 2];
    const char *name = result->err ? strerrorname_np(result->err) : "";

    json_text(detail, sizeof(detail), result->detail);
    snprintf(line, sizeof(line), "{\"id\":\"%s\",\"errno\":%d,\"error\":\"%s\",\"status\":%d,\"detail\":\"%s\"}", id, result->err,
             name ? name : "?", result->status, detail);
    say(line);
}

static void power_off(void)
{
    sync();
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void stop(const char *what)
{
    char line[LINE_BYTES], text[LINE_BYTES / 2];

    json_text(text, sizeof(text), what);
    snprintf(line, sizeof(line), "{\"failed\":\"%s\",\"error\":\"%s\"}", text, errno ? strerrorname_np(errno) : "");
    say(line);
    power_off();
}

/* Waits until the kernel log shows a line that contains `text`, at most `milliseconds`; reads past everything before it. */
static bool await_log(const char *text, int milliseconds)
{
    struct timespec now;
    struct pollfd wait = {.fd = kmsg_in, .events = POLLIN};
    char record[8192];
    long long end;

    clock_gettime(CLOCK_MONOTONIC, &now);
    end = now.tv_sec * 1000LL + now.tv_nsec / 1000000 + milliseconds;
    for (;;) {
        ssize_t got = read(kmsg_in, record, sizeof(record) - 1);

        if (got > 0) {
            record[got] = '\0';
            if (strstr(record, text))
                return true;
            continue;
        }
        if (got < 0 && errno == EPIPE) /* records were overwritten: go on with the oldest that is left */
            continue;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec * 1000LL + now.tv_nsec / 1000000 >= end)
            return false;
        poll(&wait, 1, 20);
    }
}

/* Sends a record through the audit queue and waits until it is in the kernel log: all records before it are there then. */
static void drain_audit(void)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct {
        struct nlmsghdr head;
        char text[64];
    } message = {0};
    char wanted[64];

    snprintf(wanted, sizeof(wanted), "ipe-probe-mark=%u", ++mark_number);
    if (audit_socket >= 0) {
        size_t length = strlen(wanted) + 1;

        memcpy(message.text, wanted, length);
        message.head.nlmsg_len = (uint32_t)NLMSG_LENGTH(length);
        message.head.nlmsg_type = AUDIT_USER_AVC; /* the one user record that is taken while auditing is off */
        message.head.nlmsg_flags = NLM_F_REQUEST;
        message.head.nlmsg_seq = mark_number;
        if (sendto(audit_socket, &message, message.head.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof(kernel)) >= 0 &&
            await_log(wanted, 10000))
            return;
    }
    await_log(wanted, 400); /* no audit socket: give the audit thread time */
}

/* ---- small file helpers ---- */

static int read_whole(const char *path, char **data, size_t *length)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), saved;
    size_t room = 65536, used = 0;
    char *buffer = malloc(room);

    if (fd < 0 || !buffer)
        goto failed;
    for (;;) {
        ssize_t got = read(fd, buffer + used, room - used);

        if (got < 0)
            goto failed;
        if (got == 0)
            break;
        used += (size_t)got;
        if (used == room) {
            char *bigger = realloc(buffer, room *= 2);

            if (!bigger)
                goto failed;
            buffer = bigger;
        }
    }
    close(fd);
    *data = buffer;
    *length = used;
    return 0;
failed:
    saved = errno ? errno : ENOMEM;
    free(buffer);
    if (fd >= 0)
        close(fd);
    return saved;
}

static int write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t put = write(fd, data, length);

        if (put < 0)
            return errno;
        data += put;
        length -= (size_t)put;
    }
    return 0;
}

static int write_file(const char *path, const char *data, size_t length, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    int err = fd < 0 ? errno : write_all(fd, data, length);

    if (fd >= 0)
        close(fd);
    return err;
}

/* One write call with everything, as securityfs wants it. Returns errno. */
static int write_node(const char *path, const char *data, size_t length)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

    if (fd < 0)
        return errno;
    if (write(fd, data, length) < 0)
        err = errno;
    close(fd);
    return err;
}

static void read_line(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, out, size - 1);

    if (fd >= 0)
        close(fd);
    out[got > 0 ? got : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* Copies `source` into a folder of its own on our tmpfs and puts the copy's path (or its folder) at `out`. Returns errno. */
static int copy_to_tmpfs(const char *source, bool folder, char *out, size_t size, struct result *result)
{
    char path[512], *data;
    size_t length;
    int err = read_whole(source, &data, &length);

    if (err) {
        snprintf(result->detail, sizeof(result->detail), "cannot read %.200s", source);
        return err;
    }
    snprintf(path, sizeof(path), "%s/copy-%u", tmp, copy_number++);
    mkdir(path, 0755);
    if (folder)
        snprintf(out, size, "%s", path);
    snprintf(path + strlen(path), sizeof(path) - strlen(path), "/%.250s", base_name(source));
    if (!folder)
        snprintf(out, size, "%s", path);
    err = write_file(path, data, length, 0755);
    free(data);
    return err;
}

/* Replaces the "@..." of an argument (or of the value of "env:NAME=@...") by the path that it stands for. Returns errno. */
static int place(char **argument, struct result *result)
{
    char path[512] = "", *at = *argument, *whole;
    int err = 0;

    if (!strncmp(at, "env:", 4) && strchr(at, '='))
        at = strchr(at, '=') + 1;
    if (!strncmp(at, "@disk:", 6))
        snprintf(path, sizeof(path), "%s/disk/%.250s", tmp, at + 6);
    else if (!strncmp(at, "@tmpfs:", 7))
        err = copy_to_tmpfs(at + 7, false, path, sizeof(path), result);
    else if (!strncmp(at, "@tmpfs-folder:", 14))
        err = copy_to_tmpfs(at + 14, true, path, sizeof(path), result);
    else
        return 0;
    if (err)
        return err;
    whole = malloc((size_t)(at - *argument) + strlen(path) + 1);
    if (!whole)
        return ENOMEM;
    memcpy(whole, *argument, (size_t)(at - *argument));
    strcpy(whole + (at - *argument), path);
    *argument = whole;
    return 0;
}

/* ---- the kinds of probes; each fills `result` ---- */

/* Runs a program (from `memfd` when it is >= 0): errno of the exec, else its exit status; detail is its first line of output. */
static void run_program(struct fields *fields, int memfd, struct result *result)
{
    char *environment[MAX_FIELDS + 1] = {0}, *arguments[MAX_FIELDS + 1] = {0};
    int variables = 0, words = 0, output[2], failure[2], code = 0, state;
    size_t used = 0;
    pid_t child;

    for (int i = 2; i < fields->count; i++) {
        if (!words && !strncmp(fields->at[i], "env:", 4))
            environment[variables++] = fields->at[i] + 4;
        else
            arguments[words++] = fields->at[i];
    }
    if (!words || pipe2(output, O_CLOEXEC) || pipe2(failure, O_CLOEXEC)) {
        result->err = words ? errno : EINVAL;
        return;
    }
    child = fork();
    if (child == 0) {
        dup2(output[1], 1);
        dup2(output[1], 2);
        if (memfd >= 0)
            syscall(SYS_execveat, memfd, "", arguments, environment, AT_EMPTY_PATH);
        else
            execve(arguments[0], arguments, environment);
        code = errno;
        (void)!write(failure[1], &code, sizeof(code));
        _exit(126);
    }
    close(output[1]);
    close(failure[1]);
    if (child < 0) {
        result->err = errno;
    } else {
        if (read(failure[0], &code, sizeof(code)) == (ssize_t)sizeof(code))
            result->err = code;
        for (ssize_t got; used + 1 < sizeof(result->detail) &&
                          (got = read(output[0], result->detail + used, sizeof(result->detail) - 1 - used)) > 0;)
            used += (size_t)got;
        result->detail[used] = '\0';
        result->detail[strcspn(result->detail, "\n")] = '\0';
        if (waitpid(child, &state, 0) == child && !result->err)
            result->status = WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
    }
    close(output[0]);
    close(failure[0]);
}

static void kind_run(struct fields *fields, struct result *result)
{
    run_program(fields, -1, result);
}

static void kind_memfd_run(struct fields *fields, struct result *result)
{
    char *data;
    size_t length;
    int fd;

    result->err = read_whole(fields->at[2], &data, &length);
    if (result->err)
        return;
    fd = memfd_create("ipe-probe", MFD_CLOEXEC);
    if (fd < 0)
        result->err = errno;
    else if (!(result->err = write_all(fd, data, length)))
        run_program(fields, fd, result);
    free(data);
}

/* Maps 4096 bytes of a file (or no file) with `protection`, then asks for `later` when it differs. */
static void map_memory(const char *path, int protection, int later, struct result *result)
{
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *memory;

    if (path && fd < 0) {
        result->err = errno;
        snprintf(result->detail, sizeof(result->detail), "cannot open the file");
        return;
    }
    memory = mmap(NULL, 4096, protection, MAP_PRIVATE | (path ? 0 : MAP_ANONYMOUS), fd, 0);
    if (memory == MAP_FAILED) {
        result->err = errno;
        snprintf(result->detail, sizeof(result->detail), "mmap refused");
    } else if (later != protection && mprotect(memory, 4096, later)) {
        result->err = errno;
        snprintf(result->detail, sizeof(result->detail), "mprotect refused");
    } else {
        snprintf(result->detail, sizeof(result->detail), "mapped executable");
    }
    if (memory != MAP_FAILED)
        munmap(memory, 4096);
    if (fd >= 0)
        close(fd);
}

static void kind_mmap(struct fields *fields, struct result *result)
{
    map_memory(fields->at[2], PROT_READ | PROT_EXEC, PROT_READ | PROT_EXEC, result);
}

static void kind_mprotect(struct fields *fields, struct result *result)
{
    map_memory(fields->at[2], PROT_READ, PROT_READ | PROT_EXEC, result);
}

static void kind_mmap_anonymous(struct fields *fields, struct result *result)
{
    (void)fields;
    map_memory(NULL, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC, result);
}

static void kind_mprotect_anonymous(struct fields *fields, struct result *result)
{
    (void)fields;
    map_memory(NULL, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, result);
}

/* A function of this program whose code is overwritten through /proc/self/mem. `volatile` keeps the call from being folded. */
__attribute__((noinline, aligned(16))) static int answer(void)
{
    __asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop" ::: "memory");
    return 1;
}

static void kind_overwrite_text(struct fields *fields, struct result *result)
{
#if defined(__x86_64__)
    static const unsigned char code[] = {0xb8, 0x02, 0x00, 0x00, 0x00, 0xc3}; /* mov $2,%eax; ret */
#elif defined(__aarch64__)
    static const unsigned char code[] = {0x40, 0x00, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6}; /* mov w0,#2; ret */
#else
    static const unsigned char code[] = {0};
#endif
    int (*volatile call)(void) = answer;
    int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

    (void)fields;
    if (sizeof(code) < 2)
        result->err = ENOSYS;
    else if (fd < 0 || pwrite(fd, code, sizeof(code), (off_t)(uintptr_t)answer) != (ssize_t)sizeof(code))
        result->err = errno;
    if (fd >= 0)
        close(fd);
    if (!result->err) {
        __builtin___clear_cache((char *)(uintptr_t)answer, (char *)(uintptr_t)answer + sizeof(code));
        result->status = call() == 2 ? 0 : 1;
        snprintf(result->detail, sizeof(result->detail), "%s", result->status ? "code is unchanged" : "ran the new code");
    }
}

/* After a module was taken (the newest is the first line of /proc/modules): names it, and removes it again. */
static void unload(struct result *result)
{
    char name[128];

    read_line("/proc/modules", name, sizeof(name));
    name[strcspn(name, " ")] = '\0';
    snprintf(result->detail, sizeof(result->detail), "module %s is loaded%s", *name ? name : "?",
             syscall(SYS_delete_module, name, O_NONBLOCK) ? ", not removed again" : "");
}

static void kind_finit_module(struct fields *fields, struct result *result)
{
    const char *path = fields->at[2], *suffix = strrchr(path, '.');
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        result->err = errno;
        snprintf(result->detail, sizeof(result->detail), "cannot open the module");
        return;
    }
    if (syscall(SYS_finit_module, fd, "", suffix && strcmp(suffix, ".ko") ? MODULE_COMPRESSED_FILE : 0))
        result->err = errno;
    else
        unload(result);
    close(fd);
}

static void kind_init_module(struct fields *fields, struct result *result)
{
    char *data;
    size_t length;

    result->err = read_whole(fields->at[2], &data, &length);
    if (result->err) {
        snprintf(result->detail, sizeof(result->detail), "cannot read the module");
        return;
    }
    if (syscall(SYS_init_module, data, length, ""))
        result->err = errno;
    else
        unload(result);
    free(data);
}

static void describe_policy(const char *name, struct result *result)
{
    char path[512], version[64], active[8];

    snprintf(path, sizeof(path), IPE "/policies/%.255s/version", name);
    read_line(path, version, sizeof(version));
    snprintf(path, sizeof(path), IPE "/policies/%.255s/active", name);
    read_line(path, active, sizeof(active));
    snprintf(result->detail, sizeof(result->detail), "%.120s version=%s active=%s", name, *version ? version : "none",
             *active ? active : "none");
}

/* policy-update NAME FILE: replaces a loaded policy. */
static void kind_policy_update(struct fields *fields, struct result *result)
{
    char path[512], *data;
    size_t length;

    result->err = read_whole(fields->at[3], &data, &length);
    if (result->err)
        return;
    snprintf(path, sizeof(path), IPE "/policies/%.255s/update", fields->at[2]);
    result->err = write_node(path, data, length);
    free(data);
    describe_policy(fields->at[2], result);
}

/* policy-new NAME FILE: loads a policy that is not there yet. */
static void kind_policy_new(struct fields *fields, struct result *result)
{
    char *data;
    size_t length;

    result->err = read_whole(fields->at[3], &data, &length);
    if (result->err)
        return;
    result->err = write_node(IPE "/new_policy", data, length);
    free(data);
    describe_policy(fields->at[2], result);
}

/* policy-activate NAME */
static void kind_policy_activate(struct fields *fields, struct result *result)
{
    char path[512];

    snprintf(path, sizeof(path), IPE "/policies/%.255s/active", fields->at[2]);
    result->err = write_node(path, "1", 1);
    describe_policy(fields->at[2], result);
}

/* write FILE TEXT; the detail is what the file says afterwards. */
static void kind_write(struct fields *fields, struct result *result)
{
    result->err = write_node(fields->at[2], fields->at[3], strlen(fields->at[3]));
    read_line(fields->at[2], result->detail, 64);
}

/* Makes the initramfs's root this process's root: / of a mount namespace of our own is taken away, and what is below it entered. */
static const char *enter_initramfs(void)
{
    struct stat before, after;
    int own;

    if (stat("/", &before) || unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return "no mount namespace of its own";
    own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (own < 0 || umount2("/", MNT_DETACH))
        return "/ cannot be taken away";
    if (setns(own, CLONE_NEWNS) || stat("/", &after))
        return "what is below / cannot be entered";
    close(own);
    errno = EXDEV;
    return before.st_dev == after.st_dev ? "nothing is below /" : NULL;
}

/* initramfs-run PATH ARGUMENT...: a copy of PATH, written into the initramfs's root from the running device, is run there. */
static void kind_initramfs_run(struct fields *fields, struct result *result)
{
    static char copy[] = "/ipe-probe-copy";
    const char *failed = NULL;
    size_t length;
    char *data;

    result->err = read_whole(fields->at[2], &data, &length);
    if (result->err)
        return;
    failed = enter_initramfs();
    if (failed) {
        result->err = errno;
    } else if ((result->err = write_file(copy, data, length, 0755))) {
        failed = "nothing can be written there";
    } else {
        fields->at[2] = copy;
        run_program(fields, -1, result);
    }
    free(data);
    if (failed)
        snprintf(result->detail, sizeof(result->detail), "%s", failed);
}

static const struct kind {
    const char *name;
    int arguments; /* at least this many */
    void (*run)(struct fields *, struct result *);
} KINDS[] = {
    {"run", 1, kind_run},
    {"memfd-run", 1, kind_memfd_run},
    {"initramfs-run", 1, kind_initramfs_run},
    {"mmap", 1, kind_mmap},
    {"mprotect", 1, kind_mprotect},
    {"mmap-anonymous", 0, kind_mmap_anonymous},
    {"mprotect-anonymous", 0, kind_mprotect_anonymous},
    {"overwrite-text", 0, kind_overwrite_text},
    {"finit-module", 1, kind_finit_module},
    {"init-module", 1, kind_init_module},
    {"policy-update", 2, kind_policy_update},
    {"policy-new", 2, kind_policy_new},
    {"policy-activate", 1, kind_policy_activate},
    {"write", 2, kind_write},
};

/* ---- a probe, the plan, the machine ---- */

static void perform(struct fields *fields, struct result *result)
{
    for (size_t k = 0; k < sizeof(KINDS) / sizeof(KINDS[0]); k++) {
        if (strcmp(KINDS[k].name, fields->at[1]))
            continue;
        if (fields->count - 2 < KINDS[k].arguments)
            break;
        for (int i = 2; i < fields->count && !result->err; i++)
            result->err = place(&fields->at[i], result);
        if (!result->err)
            KINDS[k].run(fields, result);
        return;
    }
    result->err = EINVAL;
    snprintf(result->detail, sizeof(result->detail), "the plan's line is not understood");
}

/* Performs a probe in a child, so that neither a crash nor a hang of it ends the run. */
static void probe(struct fields *fields)
{
    struct result result = {.status = -1};
    char line[LINE_BYTES];
    int channel[2];
    pid_t child;

    snprintf(line, sizeof(line), "{\"begin\":\"%s\"}", fields->at[0]);
    say(line);
    if (pipe2(channel, O_CLOEXEC))
        stop("pipe");
    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        perform(fields, &result);
        (void)!write(channel[1], &result, sizeof(result));
        _exit(0);
    }
    close(channel[1]);
    struct pollfd wait = {.fd = channel[0], .events = POLLIN};
    if (child < 0 || poll(&wait, 1, PROBE_SECONDS * 1000) <= 0 ||
        read(channel[0], &result, sizeof(result)) != (ssize_t)sizeof(result)) {
        result.err = ETIMEDOUT;
        snprintf(result.detail, sizeof(result.detail), "the probe ended without a result");
    }
    close(channel[0]);
    if (child > 0) {
        kill(-child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    copy_number += MAX_FIELDS; /* the child's copies keep their names */
    drain_audit();
    say_result(fields->at[0], &result);
}

static int run_plan(char *text)
{
    int count = 0;

    for (char *rest = text, *line; (line = strsep(&rest, "\n"));) {
        struct fields fields = {0};

        for (char *field; fields.count < MAX_FIELDS && (field = strsep(&line, "\t"));)
            fields.at[fields.count++] = field;
        if (fields.count < 2 || !*fields.at[0])
            continue;
        probe(&fields);
        count++;
    }
    return count;
}

static unsigned long hex8(const char *digits)
{
    char text[9] = {0};

    memcpy(text, digits, 8);
    return strtoul(text, NULL, 16);
}

/* Reads exactly `length` bytes. */
static bool take(int fd, char *out, size_t length)
{
    while (length) {
        ssize_t got = read(fd, out, length);

        if (got <= 0)
            return false;
        out += got;
        length -= (size_t)got;
    }
    return true;
}

/* Unpacks a newc archive on a disk into tmp/disk. Returns whether it is one with a plan. */
static bool unpack(int fd)
{
    bool plan = false;
    char head[110], name[256], path[384], pad[4];

    while (take(fd, head, sizeof(head)) && !memcmp(head, "070701", 6)) {
        size_t size = hex8(head + 6 + 6 * 8), name_size = hex8(head + 6 + 11 * 8);
        char *data;

        if (!name_size || name_size > sizeof(name) || size > (256u << 20) || !take(fd, name, name_size) ||
            !take(fd, pad, (4 - (sizeof(head) + name_size) % 4) % 4))
            return false;
        if (!strcmp(name, "TRAILER!!!"))
            return plan;
        data = malloc(size + 1);
        if (!data || !take(fd, data, size) || !take(fd, pad, (4 - size % 4) % 4) || strchr(name, '/')) {
            free(data);
            return false;
        }
        snprintf(path, sizeof(path), "%s/disk/%s", tmp, name);
        plan |= !strcmp(name, "plan");
        if (write_file(path, data, size, 0755))
            stop("cannot write the probe disk's files to tmpfs");
        free(data);
    }
    return false;
}

static bool find_disk(void)
{
    DIR *disks = opendir("/sys/block");
    bool found = false;

    for (struct dirent *entry; disks && !found && (entry = readdir(disks));) {
        char path[300];
        int fd;

        snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
        fd = entry->d_name[0] == '.' ? -1 : open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            found = unpack(fd);
            close(fd);
        }
    }
    if (disks)
        closedir(disks);
    return found;
}

static void mount_if_missing(const char *type, const char *where, const char *witness)
{
    if (access(witness, F_OK))
        mount(type, where, type, MS_NOSUID, NULL);
}

/* Mounts a tmpfs of our own that allows programs to run as far as mount options go: what refuses them then is the kernel. */
static void make_tmp(void)
{
    static const char *const places[] = {"/run", "/tmp", "/mnt", "/var"};

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char disk[80];

        snprintf(tmp, sizeof(tmp), "%s/ipe-probe", places[i]);
        if (mkdir(tmp, 0755) && errno != EEXIST) {
            if (mount("tmpfs", places[i], "tmpfs", 0, "mode=0755") || mkdir(tmp, 0755))
                continue;
        }
        if (mount("tmpfs", tmp, "tmpfs", 0, "mode=0755"))
            continue;
        snprintf(disk, sizeof(disk), "%s/disk", tmp);
        if (!mkdir(disk, 0755))
            return;
    }
    stop("no folder (/run, /tmp, /mnt, /var) to mount a tmpfs on");
}

static void say_start(int audit_error)
{
    struct utsname names;
    char line[LINE_BYTES], enforce[8], success[8], policy[128] = "", version[64] = "", path[600];
    DIR *policies = opendir(IPE "/policies");

    uname(&names);
    read_line(IPE "/enforce", enforce, sizeof(enforce));
    read_line(IPE "/success_audit", success, sizeof(success));
    for (struct dirent *entry; policies && (entry = readdir(policies));) {
        char active[8];

        snprintf(path, sizeof(path), IPE "/policies/%s/active", entry->d_name);
        read_line(path, active, sizeof(active));
        if (entry->d_name[0] == '.' || strcmp(active, "1"))
            continue;
        json_text(policy, sizeof(policy), entry->d_name);
        snprintf(path, sizeof(path), IPE "/policies/%s/version", entry->d_name);
        read_line(path, version, sizeof(version));
    }
    if (policies)
        closedir(policies);
    snprintf(line, sizeof(line),
             "{\"start\":1,\"release\":\"%s\",\"machine\":\"%s\",\"enforce\":\"%s\",\"policy\":\"%s\",\"version\":\"%s\","
             "\"success_audit\":\"%s\",\"audit\":\"%s\"}",
             names.release, names.machine, enforce, policy, version, success, audit_error ? strerrorname_np(audit_error) : "");
    say(line);
}

int main(int argc, char **argv)
{
    char path[128], *plan, end[64];
    size_t length;
    int audit_error = 0;

    if (getpid() != 1) {
        printf("%s\n", argc > 1 ? argv[1] : "ipe-probe is an init program");
        return 0;
    }
    mount_if_missing("devtmpfs", "/dev", "/dev/kmsg");
    mount_if_missing("proc", "/proc", "/proc/self");
    mount_if_missing("sysfs", "/sys", "/sys/block");
    mount_if_missing("securityfs", "/sys/kernel/security", IPE);
    write_node("/proc/sys/kernel/printk_devkmsg", "on\n", 3);
    write_node("/proc/sys/kernel/printk_ratelimit", "0\n", 2);
    klogctl(8, NULL, 8); /* everything to the console */
    kmsg_out = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    kmsg_in = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (kmsg_in >= 0)
        lseek(kmsg_in, 0, SEEK_END);
    audit_socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);
    if (audit_socket < 0)
        audit_error = errno;
    write_node(IPE "/success_audit", "1", 1);
    say_start(audit_error);
    make_tmp();
    errno = 0;
    if (!find_disk())
        stop("no probe disk with a plan");
    snprintf(path, sizeof(path), "%s/disk/plan", tmp);
    if (read_whole(path, &plan, &length) || !(plan = realloc(plan, length + 1)))
        stop("cannot read the plan");
    plan[length] = '\0';
    snprintf(end, sizeof(end), "{\"end\":%d}", run_plan(plan));
    say(end);
    power_off();
}
