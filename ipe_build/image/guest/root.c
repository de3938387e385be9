/* SPDX-License-Identifier: MIT
 *
 * Mounts, modules, capabilities, and the switch to the verity root.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipe-init.h"

#define UMH "/proc/sys/kernel/usermodehelper"

struct mount_point {
	const char *type;
	const char *place;
	unsigned long flags;
	const char *options;
};

void mount_kernel_filesystems(void)
{
	static const struct mount_point points[] = {
		{ "proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
		{ "sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
		{ "devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755" },
		{ "securityfs", "/sys/kernel/security", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL },
	};

	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		const struct mount_point *point = &points[i];

		if (mkdir(point->place, 0755) < 0 && errno != EEXIST)
			fatal("mount", "%s: %s", point->place, strerror(errno));
		if (mount(point->type, point->place, point->type, point->flags, point->options) < 0 && errno != EBUSY)
			fatal("mount", "%s: %s", point->place, strerror(errno));
	}
}

void load_modules(const struct config *config)
{
	for (size_t i = 0; i < config->modules.count; i++) {
		const char *path = config->modules.items[i];
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", strstr(path, ".ko.") ? MODULE_INIT_COMPRESSED_FILE : 0) < 0)
			fatal("module", "%s: %s", path, strerror(errno));
		close(fd);
		say("module %s", path);
	}
}

void mount_root(const struct config *config, const char *device)
{
	if (mkdir(SYSROOT, 0755) < 0 && errno != EEXIST)
		fatal("mount", SYSROOT ": %s", strerror(errno));
	if (mount(device, SYSROOT, config->filesystem, MS_RDONLY, config->mount_options) < 0)
		fatal("mount", "%s as %s: %s", device, config->filesystem, strerror(errno));
	say("root: %s (%s, read-only)", device, config->filesystem);
}

/* ---- capabilities ---- */

static const char *const capability_names[] = {
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
};

static uint64_t capability_bit(const char *name)
{
	for (unsigned int i = 0; i < sizeof(capability_names) / sizeof(capability_names[0]); i++) {
		if (!strcmp(capability_names[i], name))
			return UINT64_C(1) << i;
	}
	fatal("capabilities", "there is no capability %s", name);
}

static uint64_t capabilities_to_drop(const struct config *config)
{
	uint64_t dropped = 0;

	for (size_t i = 0; i < config->drop_capabilities.count; i++)
		dropped |= capability_bit(config->drop_capabilities.items[i]);
	return dropped;
}

/* Programs that the kernel itself starts (core_pattern, modprobe) get their capabilities from here, not from init. */
void restrict_helpers(const struct config *config)
{
	static const char *const files[] = { UMH "/bset", UMH "/inheritable" };
	uint64_t dropped = capabilities_to_drop(config);
	uint64_t kept = ~dropped & ((UINT64_C(1) << (CAP_LAST_CAP + 1)) - 1);
	char text[64];
	int size = snprintf(text, sizeof(text), "%llu %llu\n", (unsigned long long)(kept & UINT32_MAX), (unsigned long long)(kept >> 32));

	for (size_t i = 0; dropped && i < 2; i++) {
		int error = write_file(files[i], text, (size_t)size);

		if (error)
			fatal("capabilities", "%s: %s", files[i], strerror(-error));
	}
}

/* The last step before init is started: no set of this process, and so of none on the device, has them again. */
void drop_capabilities(const struct config *config)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];
	uint64_t dropped = capabilities_to_drop(config);
	char names[880] = "";
	size_t used = 0;

	if (!dropped)
		return;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		fatal("capabilities", "ambient set: %s", strerror(errno));
	for (unsigned int bit = 0; bit < 64; bit++) {
		if ((dropped >> bit & 1) && prctl(PR_CAPBSET_DROP, bit, 0, 0, 0) < 0)
			fatal("capabilities", "%s: %s", capability_names[bit], strerror(errno));
	}
	if (syscall(SYS_capget, &head, sets) < 0)
		fatal("capabilities", "capget: %s", strerror(errno));
	for (unsigned int half = 0; half < 2; half++) {
		uint32_t mask = ~(uint32_t)(dropped >> (32 * half));

		sets[half].effective &= mask;
		sets[half].permitted &= mask;
		sets[half].inheritable &= mask;
	}
	if (syscall(SYS_capset, &head, sets) < 0)
		fatal("capabilities", "capset: %s", strerror(errno));
	/* One line: the kernel limits how many there may be at once. */
	for (size_t i = 0; i < config->drop_capabilities.count && used < sizeof(names); i++)
		used += (size_t)snprintf(names + used, sizeof(names) - used, " %s", config->drop_capabilities.items[i]);
	say("dropped%s", names);
}

/* ---- switching root ---- */

/* Removes what is below the folder, without leaving its filesystem. Takes over `fd`. */
static void empty_folder(int fd, dev_t device)
{
	DIR *folder = fdopendir(fd);
	struct dirent *entry;

	if (!folder)
		fatal("clear", "the initramfs cannot be read: %s", strerror(errno));
	while ((entry = readdir(folder))) {
		struct stat status;
		const char *name = entry->d_name;
		bool is_folder;

		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		if (fstatat(dirfd(folder), name, &status, AT_SYMLINK_NOFOLLOW) < 0)
			fatal("clear", "%s: %s", name, strerror(errno));
		if (status.st_dev != device)
			continue;
		is_folder = S_ISDIR(status.st_mode);
		if (is_folder) {
			int child = openat(dirfd(folder), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

			if (child < 0)
				fatal("clear", "%s: %s", name, strerror(errno));
			empty_folder(child, device);
		}
		/* A folder that something is mounted on stays, empty. */
		if (unlinkat(dirfd(folder), name, is_folder ? AT_REMOVEDIR : 0) < 0 && errno != EBUSY && errno != ENOTEMPTY)
			fatal("clear", "%s: %s", name, strerror(errno));
	}
	closedir(folder);
}

/* Takes over `fd`, the initramfs's root. */
static void clear_initramfs(int fd)
{
	struct statfs filesystem;
	struct stat status;

	if (fd < 0 || fstatfs(fd, &filesystem) < 0 || fstat(fd, &status) < 0)
		fatal("clear", "/: %s", strerror(errno));
	if (filesystem.f_type != RAMFS_MAGIC && filesystem.f_type != TMPFS_MAGIC)
		fatal("clear", "/ is no initramfs, nothing is removed");
	empty_folder(fd, status.st_dev);
	say("the initramfs is empty");
}

/*
 * The initramfs's root stays below everything for as long as the kernel runs, and for IPE whatever is written there is boot_verified.
 * Root gets there (unmount / in a mount namespace of one's own, setns() into it). So that nothing can be written there it is made
 * immutable, empty as it is; CAP_LINUX_IMMUTABLE, which could undo that, is dropped next. Takes over `fd`, the initramfs's root.
 */
static void freeze_initramfs(int fd)
{
	struct dirent *entry;
	DIR *folder;
	int flags = 0;

	if (unlinkat(fd, SYSROOT + 1, AT_REMOVEDIR) < 0 && errno != ENOENT)
		fatal("freeze", SYSROOT ": %s", strerror(errno));
	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
		fatal("freeze", "the initramfs knows no flags (ramfs because of root= or rootfstype=, or no CONFIG_TMPFS_XATTR): %s", strerror(errno));
	flags |= FS_IMMUTABLE_FL;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
		fatal("freeze", "the initramfs's root: %s", strerror(errno));
	if (openat(fd, "written", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) >= 0 || errno != EPERM)
		fatal("freeze", "the initramfs's root can still be written to");
	folder = fdopendir(fd);
	if (folder)
		rewinddir(folder); /* it was read before, when it was emptied */
	while (folder && (entry = readdir(folder))) {
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			fatal("freeze", "the initramfs still holds %s", entry->d_name);
	}
	if (!folder || closedir(folder) < 0)
		fatal("freeze", "the initramfs cannot be read: %s", strerror(errno));
	say("the initramfs is frozen");
}

void switch_root(const struct config *config)
{
	int initramfs = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char target[512];

	if (initramfs < 0)
		fatal("switch", "/: %s", strerror(errno));
	for (size_t i = 0; i < config->moves.count; i++) {
		const char *place = config->moves.items[i];

		if (snprintf(target, sizeof(target), SYSROOT "%s", place) >= (int)sizeof(target))
			fatal("move", "%s: is too long", place);
		if (mount(place, target, NULL, MS_MOVE, NULL) < 0)
			fatal("move", "%s to the root: %s (is there such a folder?)", place, strerror(errno));
	}
	if (chdir(SYSROOT) < 0)
		fatal("switch", SYSROOT ": %s", strerror(errno));
	clear_initramfs(dup(initramfs));
	if (mount(".", "/", NULL, MS_MOVE, NULL) < 0)
		fatal("switch", "move: %s", strerror(errno));
	if (config->freeze_initramfs)
		freeze_initramfs(initramfs);
	else
		close(initramfs);
	if (chroot(".") < 0 || chdir("/") < 0)
		fatal("switch", "chroot: %s", strerror(errno));
}
