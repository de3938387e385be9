/* SPDX-License-Identifier: MIT
 *
 * The dm-verity device of the root: superblock, signature, device-mapper.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ipe-init.h"

#define DM_CONTROL "/dev/mapper/control"
#define DM_NAME_OF_ROOT "root"
#define KEY_DESCRIPTION "ipe-init:root"
#define SIGNATURE_PARTITION_BYTES (64 * 1024)
#define TABLE_BYTES 4096

static struct {
	struct dm_ioctl head;
	struct dm_target_spec target;
	char parameters[TABLE_BYTES];
} request;

static void prepare(uint32_t flags)
{
	memset(&request, 0, sizeof(request));
	request.head.version[0] = DM_VERSION_MAJOR;
	request.head.data_size = sizeof(request);
	request.head.data_start = sizeof(request.head);
	request.head.flags = flags;
	snprintf(request.head.name, sizeof(request.head.name), "%s", DM_NAME_OF_ROOT);
}

static int device_mapper(unsigned long command)
{
	static int fd = -1;

	if (fd < 0)
		fd = open(DM_CONTROL, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fatal("verity", DM_CONTROL ": %s (CONFIG_BLK_DEV_DM?)", strerror(errno));
	return ioctl(fd, command, &request) < 0 ? -errno : 0;
}

/* Reads a signature partition's JSON; true if it is whole and for this root hash. */
static bool read_signature(const struct partition *partition, const struct root_hash *hash, uint8_t *der, size_t *size, const char **why)
{
	static char text[SIGNATURE_PARTITION_BYTES];
	size_t length = partition->size < sizeof(text) ? (size_t)partition->size : sizeof(text);
	struct root_hash signed_hash;

	read_partition("signature", partition, text, length);
	if (!parse_signature(text, length, &signed_hash, der, size, why))
		return false;
	*why = "it is for another root hash";
	return same_hash(&signed_hash, hash);
}

/* Finds the signature on a partition of the type, the first that is for this root hash. */
static void search_signature(const struct config *config, const struct root_hash *hash, uint8_t *der, size_t *size)
{
	struct partition partition;
	const char *why = "there is no partition of the type root-verity-sig";
	unsigned int index;

	for (index = 0; next_partition_of_type(&config->signature_type, index, &partition); index++) {
		if (read_signature(&partition, hash, der, size, &why)) {
			say("signature partition: %s", partition.device);
			return;
		}
		say("signature partition: %s is left out: %s", partition.device, why);
	}
	fatal("signature", "no usable signature among %u partitions: %s", index, why);
}

static size_t find_signature(const struct config *config, const struct root_hash *hash, uint8_t *der)
{
	struct partition partition;
	const char *why;
	size_t size = 0;
	char *data;
	int fd;

	switch (config->signature) {
	case SIGNATURE_PARTITION:
		search_signature(config, hash, der, &size);
		break;
	case SIGNATURE_PARTUUID:
		find_partition("signature", &config->signature_partuuid, config->wait_s, &partition);
		if (!read_signature(&partition, hash, der, &size, &why))
			fatal("signature", "%s: %s", partition.device, why);
		break;
	case SIGNATURE_FILE:
		fd = open(config->signature_file, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			fatal("signature", "%s: %s", config->signature_file, strerror(errno));
		data = read_whole("signature", fd, config->signature_file, MAX_SIGNATURE, &size);
		memcpy(der, data, size);
		close(fd);
		break;
	case SIGNATURE_NONE:
		break;
	}
	return size;
}

/* Puts the signature where the kernel looks for it while the table is loaded: a "user" key of this thread. */
static long add_signature_key(const uint8_t *der, size_t size)
{
	long key = syscall(SYS_add_key, "user", KEY_DESCRIPTION, der, size, KEY_SPEC_THREAD_KEYRING);

	if (key < 0)
		fatal("signature", "add_key: %s (CONFIG_KEYS?)", strerror(errno));
	return key;
}

static void check_sizes(const struct superblock *sb, const struct root_hash *hash, const struct partition *data)
{
	if (sb->data_blocks * sb->data_block_size > data->size)
		fatal("verity", "the superblock says %llu data blocks of %u bytes, the data partition has %llu bytes",
		      (unsigned long long)sb->data_blocks, sb->data_block_size, (unsigned long long)data->size);
	if (hash->size > sb->hash_block_size / 2)
		fatal("verity", "a hash block of %u bytes holds no two hashes", sb->hash_block_size);
}

static void write_parameters(const struct config *config, const struct superblock *sb, const struct root_hash *hash,
			     const struct partition *data, const struct partition *tree, bool is_signed)
{
	char root[2 * MAX_HASH + 1], salt[2 * MAX_SALT + 1], *at = request.parameters;
	size_t options = config->verity_options.count + (is_signed ? 2 : 0);
	char *end = request.parameters + sizeof(request.parameters);

	to_hex(hash->bytes, hash->size, root);
	to_hex(sb->salt, sb->salt_size, salt);
	at += snprintf(at, (size_t)(end - at), "%u %u:%u %u:%u %u %u %llu 1 %s %s %s", sb->hash_type, data->major, data->minor, tree->major,
		       tree->minor, sb->data_block_size, sb->hash_block_size, (unsigned long long)sb->data_blocks, sb->algorithm, root,
		       sb->salt_size ? salt : "-");
	if (!options)
		return;
	at += snprintf(at, (size_t)(end - at), " %zu", options);
	for (size_t i = 0; i < config->verity_options.count; i++)
		at += snprintf(at, (size_t)(end - at), " %s", config->verity_options.items[i]);
	if (is_signed)
		at += snprintf(at, (size_t)(end - at), " root_hash_sig_key_desc %s", KEY_DESCRIPTION);
}

static const char *load_failure(int error)
{
	switch (-error) {
	case ENOKEY:
		return "the root hash's signature is by a key that the kernel does not trust";
	case EKEYREJECTED:
	case EBADMSG:
		return "the root hash's signature does not fit";
	case EKEYREVOKED:
	case EKEYEXPIRED:
		return "the root hash's signature is by a revoked or expired key";
	default:
		return strerror(-error);
	}
}

/* Makes the device and returns its node in `device`. The kernel checks the signature while it loads the table. */
void open_verity(const struct config *config, const struct root_hash *hash, char *device, size_t size)
{
	static uint8_t der[MAX_SIGNATURE];
	uint8_t raw[SUPERBLOCK_BYTES];
	struct uuid data_uuid, tree_uuid;
	struct partition data, tree;
	struct superblock sb;
	const char *why;
	size_t der_size;
	long key = 0;
	int error;

	hash_to_uuids(hash, &data_uuid, &tree_uuid);
	find_partition("data", &data_uuid, config->wait_s, &data);
	find_partition("hash", &tree_uuid, config->wait_s, &tree);
	read_partition("superblock", &tree, raw, sizeof(raw));
	if (!parse_superblock(raw, sizeof(raw), &sb, &why))
		fatal("superblock", "%s: %s", tree.device, why);
	check_sizes(&sb, hash, &data);
	der_size = find_signature(config, hash, der);
	if (der_size)
		key = add_signature_key(der, der_size);

	prepare(DM_READONLY_FLAG);
	snprintf(request.head.uuid, sizeof(request.head.uuid), "CRYPT-VERITY-%s-%s", sb.uuid_hex, DM_NAME_OF_ROOT);
	error = device_mapper(DM_DEV_CREATE);
	if (error)
		fatal("verity", "the device cannot be made: %s", strerror(-error));
	prepare(DM_READONLY_FLAG);
	request.head.target_count = 1;
	request.target.length = sb.data_blocks * (sb.data_block_size / 512);
	snprintf(request.target.target_type, sizeof(request.target.target_type), "verity");
	write_parameters(config, &sb, hash, &data, &tree, der_size != 0);
	error = device_mapper(DM_TABLE_LOAD);
	if (error)
		fatal("verity", "the kernel refuses the device: %s", load_failure(error));
	prepare(DM_READONLY_FLAG);
	error = device_mapper(DM_DEV_SUSPEND);
	if (error)
		fatal("verity", "the device cannot be started: %s", strerror(-error));
	if (key > 0 && syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_THREAD_KEYRING) < 0)
		fatal("signature", "the key cannot be removed: %s", strerror(errno));
	snprintf(device, size, "/dev/dm-%u", minor((dev_t)request.head.dev));
	say("verity device: %s, %s, %s", device, sb.algorithm, der_size ? "signed" : "not signed");
}

/* Removes the device, for the recovery program; there may be none. */
void close_verity(void)
{
	if (access(DM_CONTROL, F_OK))
		return;
	prepare(0);
	(void)device_mapper(DM_DEV_REMOVE);
}
