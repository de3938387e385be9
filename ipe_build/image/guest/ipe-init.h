/* SPDX-License-Identifier: MIT
 *
 * ipe-init: the one program of the initramfs. It opens the dm-verity root with its signature, mounts it, loads and
 * activates the signed IPE policies, drops capabilities and switches root. Every step that fails ends the boot.
 */
#ifndef IPE_INIT_H
#define IPE_INIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_LIST 64
#define MAX_HASH 64
#define MAX_SALT 256
#define MAX_SIGNATURE 32767 /* what a "user" key can hold */
#define SUPERBLOCK_BYTES 512
#define GPT_ENTRY_BYTES 128
#define SYSROOT "/sysroot"
#define POLICY_DIGEST_BYTES 32
#define STORAGE_ROOT_KEY "0x81000001" /* where TCG's provisioning guidance puts it */

enum on_failure { FAIL_PANIC, FAIL_REBOOT, FAIL_POWEROFF, FAIL_RECOVERY };
enum trusted_source { TRUSTED_TPM, TRUSTED_TEE };
enum signature_source { SIGNATURE_PARTITION, SIGNATURE_PARTUUID, SIGNATURE_FILE, SIGNATURE_NONE };

struct list {
	size_t count;
	const char *items[MAX_LIST];
};

struct uuid {
	uint8_t bytes[16]; /* in the order they are written in text */
};

struct root_hash {
	size_t size;
	uint8_t bytes[MAX_HASH];
};

struct config {
	bool root_hash_from_command_line;
	struct root_hash root_hash;
	enum signature_source signature;
	struct uuid signature_partuuid;
	const char *signature_file;
	struct uuid signature_type; /* GPT type of root-verity-sig */
	const char *filesystem;
	const char *mount_options;
	struct list verity_options;
	unsigned int wait_s;
	struct list modules;
	struct list policies;
	struct list delete_policies;
	int success_audit; /* -1: left as it is */
	struct list keyrings; /* must hold a key */
	const char *ima_policy;
	bool has_evm_key, evm_provision;
	struct uuid evm_key; /* the partition with its sealed form */
	enum trusted_source trusted_source;
	uint32_t evm_pcrs; /* bit N: PCR N must be as it was when the key was made */
	struct list drop_capabilities;
	struct list moves;
	const char *init;
	bool init_from_command_line;
	bool freeze_initramfs;
	enum on_failure on_failure;
	const char *recovery;
};

struct superblock {
	uint32_t hash_type;
	char uuid_hex[33];
	char algorithm[32];
	uint32_t data_block_size;
	uint32_t hash_block_size;
	uint64_t data_blocks;
	size_t salt_size;
	uint8_t salt[MAX_SALT];
};

struct gpt_header {
	uint64_t entries_lba;
	uint32_t count;
};

struct gpt_entry {
	struct uuid type;
	struct uuid uuid;
	uint64_t first_lba;
	uint64_t last_lba;
};

/* A partition that is in a GPT and that the kernel has made a block device of. */
struct partition {
	char device[64]; /* /dev/NAME */
	unsigned int major, minor;
	uint64_t size;
};

/* config.c, parse.c: bytes to values; they touch nothing but their arguments. On failure they return false and say why. */
bool parse_config(char *text, struct config *config, const char **why, unsigned int *line);
int command_line_word(const char *line, const char *name, char *value, size_t size);
bool parse_hex(const char *text, size_t length, uint8_t *out, size_t *size, size_t max);
bool parse_root_hash(const char *text, struct root_hash *hash);
bool parse_uuid(const char *text, struct uuid *uuid);
bool parse_superblock(const uint8_t *raw, size_t size, struct superblock *sb, const char **why);
bool parse_gpt_header(const uint8_t *raw, size_t size, struct gpt_header *header);
bool parse_gpt_entry(const uint8_t *raw, struct gpt_entry *entry);
bool parse_signature(const char *text, size_t size, struct root_hash *hash, uint8_t *der, size_t *der_size, const char **why);
void hash_to_uuids(const struct root_hash *hash, struct uuid *data, struct uuid *tree);
void to_hex(const uint8_t *bytes, size_t size, char *out);
bool same_hash(const struct root_hash *one, const struct root_hash *other);

/* ipe-init.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fatal(const char *step, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));

/* files.c */
size_t read_file(const char *step, const char *path, char *buffer, size_t size);
char *read_whole(const char *step, int fd, const char *name, size_t max, size_t *size);
int write_file(const char *path, const char *data, size_t size);

/* devices.c */
void find_partition(const char *what, const struct uuid *uuid, unsigned int wait_s, struct partition *found);
bool next_partition_of_type(const struct uuid *type, unsigned int index, struct partition *found);
void read_partition(const char *step, const struct partition *partition, void *buffer, size_t size);

/* verity.c */
void open_verity(const struct config *config, const struct root_hash *hash, char *device, size_t size);
void close_verity(void);

/* policy.c */
void check_enforcing(void);
void set_success_audit(int value);
void load_policies(const struct config *config);
int open_policy_file(const char *path);

/* integrity.c, tpm.c */
void check_keyrings(const struct config *config);
void load_evm_key(const struct config *config);
void load_ima_policy(const struct config *config);
void ensure_storage_root_key(void);
uint32_t start_pcr_session(uint32_t pcrs, uint8_t digest[POLICY_DIGEST_BYTES]);
void end_session(uint32_t handle);

/* root.c */
void mount_kernel_filesystems(void);
void mount_root(const struct config *config, const char *device);
void load_modules(const struct config *config);
void switch_root(const struct config *config);
void restrict_helpers(const struct config *config);
void drop_capabilities(const struct config *config);

#endif
