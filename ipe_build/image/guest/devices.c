/* SPDX-License-Identifier: MIT
 *
 * Partitions by UUID and by type. The kernel tells user space neither, so each disk's GPT is read; a partition counts only
 * if the kernel made a block device of the same place.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "ipe-init.h"

#define SYS_BLOCK "/sys/class/block"
#define POLL_NS 20000000L

typedef bool (*wanted)(const struct gpt_entry *entry, const void *context);

static bool read_at(int fd, void *buffer, size_t size, uint64_t offset)
{
	size_t used = 0;

	while (used < size) {
		ssize_t got = pread(fd, (char *)buffer + used, size - used, (off_t)(offset + used));

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return false;
		used += (size_t)got;
	}
	return true;
}

/* A number in a sysfs attribute, or -1. */
static long long read_number(const char *name, const char *attribute)
{
	char path[512], text[32];
	ssize_t got;
	int fd;

	if (snprintf(path, sizeof(path), SYS_BLOCK "/%s/%s", name, attribute) >= (int)sizeof(path))
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (got <= 0)
		return -1;
	text[got] = '\0';
	return strtoll(text, NULL, 10);
}

/* The device node of a name in sysfs, where "!" stands for the "/" of a name in a folder. */
static bool node_of(const char *name, char *node, size_t size)
{
	if (snprintf(node, size, "/dev/%s", name) >= (int)size)
		return false;
	for (; *node; node++) {
		if (*node == '!')
			*node = '/';
	}
	return true;
}

/* Fills in /dev/NAME if it is a block device. */
static bool fill_partition(const char *name, uint64_t size, struct partition *found)
{
	struct stat status;

	if (!node_of(name, found->device, sizeof(found->device)))
		return false;
	if (stat(found->device, &status) < 0 || !S_ISBLK(status.st_mode))
		return false;
	found->major = major(status.st_rdev);
	found->minor = minor(status.st_rdev);
	found->size = size;
	return true;
}

/* Finds the kernel's block device for entry `number` (from 1) of disk `disk`; sysfs counts in units of 512 bytes. */
static bool match_partition(const char *disk, unsigned int number, const struct gpt_entry *entry, unsigned int sector, struct partition *found)
{
	char path[300];
	struct dirent *child;
	bool matched = false;
	uint64_t start = entry->first_lba * sector, size = (entry->last_lba - entry->first_lba + 1) * sector;
	DIR *folder;

	snprintf(path, sizeof(path), SYS_BLOCK "/%s", disk);
	folder = opendir(path);
	if (!folder)
		return false;
	while (!matched && (child = readdir(folder))) {
		if (strncmp(child->d_name, disk, strlen(disk)) || read_number(child->d_name, "partition") != (long long)number)
			continue;
		matched = read_number(child->d_name, "start") == (long long)(start / 512) &&
			  read_number(child->d_name, "size") == (long long)(size / 512) && fill_partition(child->d_name, size, found);
	}
	closedir(folder);
	return matched;
}

/* Looks through one disk's GPT. Returns how many entries are wanted and usable; `found` is the one with index `index` of them. */
static unsigned int search_disk(const char *disk, wanted is_wanted, const void *context, unsigned int index, struct partition *found)
{
	uint8_t raw[4096];
	char path[300];
	struct gpt_header header;
	unsigned int hits = 0;
	int sector = 0, fd;

	fd = node_of(disk, path, sizeof(path)) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 0;
	if (ioctl(fd, BLKSSZGET, &sector) < 0 || sector < 512 || sector > (int)sizeof(raw))
		goto out;
	if (!read_at(fd, raw, (size_t)sector, (uint64_t)sector) || !parse_gpt_header(raw, (size_t)sector, &header))
		goto out;
	for (uint32_t i = 0; i < header.count; i++) {
		struct gpt_entry entry;
		struct partition candidate;

		if (!read_at(fd, raw, GPT_ENTRY_BYTES, header.entries_lba * (uint64_t)sector + (uint64_t)i * GPT_ENTRY_BYTES))
			break;
		if (!parse_gpt_entry(raw, &entry) || !is_wanted(&entry, context))
			continue;
		if (!match_partition(disk, i + 1, &entry, (unsigned int)sector, &candidate))
			continue;
		if (hits++ == index)
			*found = candidate;
	}
out:
	close(fd);
	return hits;
}

/* Looks through all disks. Returns how many partitions are wanted; `found` is the one with index `index` of them. */
static unsigned int search(wanted is_wanted, const void *context, unsigned int index, struct partition *found)
{
	struct dirent **names;
	unsigned int hits = 0;
	int count = scandir(SYS_BLOCK, &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		const char *name = names[i]->d_name;

		if (name[0] != '.' && strlen(name) < 200 && read_number(name, "partition") < 0 && read_number(name, "size") > 0)
			hits += search_disk(name, is_wanted, context, index >= hits ? index - hits : UINT32_MAX, found);
		free(names[i]);
	}
	if (count >= 0)
		free(names);
	return hits;
}

static bool has_uuid(const struct gpt_entry *entry, const void *uuid)
{
	return !memcmp(&entry->uuid, uuid, sizeof(struct uuid));
}

static bool has_type(const struct gpt_entry *entry, const void *type)
{
	return !memcmp(&entry->type, type, sizeof(struct uuid));
}

/* Finds the one partition with a UUID, waiting up to `wait_s` seconds for it. Two of them end the boot. */
void find_partition(const char *what, const struct uuid *uuid, unsigned int wait_s, struct partition *found)
{
	const struct timespec pause = { 0, POLL_NS };
	char hex[33];

	to_hex(uuid->bytes, 16, hex);
	for (unsigned long polls = wait_s * (1000000000UL / POLL_NS);; polls--) {
		unsigned int hits = search(has_uuid, uuid, 0, found);

		if (hits > 1)
			fatal("partition", "%u partitions have the UUID %s of the %s partition", hits, hex, what);
		if (hits == 1)
			break;
		if (!polls)
			fatal("partition", "no partition has the UUID %s of the %s partition (waited %u s)", hex, what, wait_s);
		nanosleep(&pause, NULL);
	}
	say("%s partition: %s", what, found->device);
}

/* Gives the partition of a type with index `index`; false when there is none. */
bool next_partition_of_type(const struct uuid *type, unsigned int index, struct partition *found)
{
	return search(has_type, type, index, found) > index;
}

void read_partition(const char *step, const struct partition *partition, void *buffer, size_t size)
{
	int fd = open(partition->device, O_RDONLY | O_CLOEXEC);

	errno = 0;
	if (fd < 0 || !read_at(fd, buffer, size, 0))
		fatal(step, "%s: cannot be read: %s", partition->device, errno ? strerror(errno) : "it is too short");
	close(fd);
}
