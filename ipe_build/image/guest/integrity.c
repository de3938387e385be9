/* SPDX-License-Identifier: MIT
 *
 * IMA and EVM: their keyrings are not empty, the IMA policy is loaded by its path (so that IPE judges op=POLICY), and EVM's HMAC key,
 * which lies encrypted under a key that only this device's TPM or TEE can unseal, is handed to the kernel.
 *
 * The key's partition holds text: "ipe-evm-key 1\nkmk BLOB\nevm BLOB\n", NUL to the end. Both blobs are the kernel's own
 * (Documentation/security/keys/trusted-encrypted.rst); no key is ever in the clear outside the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipe-init.h"

#define IMA_POLICY "/sys/kernel/security/ima/policy"
#define EVM "/sys/kernel/security/evm"
#define KEY_NAMES_BYTES (64 * 1024)
#define KEY_TEXT_BYTES 8192
#define MAGIC "ipe-evm-key 1\n"
#define KMK "evm-kmk"
#define EVM_KEY "evm-key" /* the name that the kernel asks for (evm.h, EVMKEY) */
#define EVM_HMAC 1

static bool keyring_has_key(const char *text, const char *keyring)
{
	char wanted[80];
	const char *found;

	snprintf(wanted, sizeof(wanted), " keyring   %s: ", keyring);
	found = strstr(text, wanted);
	return found && atoi(found + strlen(wanted)) > 0;
}

/* A certificate that IPE does not let the kernel read, or that nobody vouches for, leaves only a line in the log: found out here. */
void check_keyrings(const struct config *config)
{
	static char text[KEY_NAMES_BYTES];

	if (!config->keyrings.count)
		return;
	read_file("keyring", "/proc/keys", text, sizeof(text));
	for (size_t i = 0; i < config->keyrings.count; i++) {
		if (!keyring_has_key(text, config->keyrings.items[i]))
			fatal("keyring", "%s has no key: its certificate was refused (IPE: op=X509_CERT), or nobody vouches for it", config->keyrings.items[i]);
		say("keyring %s has a key", config->keyrings.items[i]);
	}
}

static const char *ima_failure(int error)
{
	switch (-error) {
	case EACCES:
		return "refused, by IPE (op=POLICY) or because IMA wants it signed";
	case EINVAL:
	case ERANGE:
		return "the kernel does not understand it";
	case ENOENT:
		return "the kernel takes no IMA policy (CONFIG_IMA; without CONFIG_IMA_WRITE_POLICY only one)";
	default:
		return strerror(-error);
	}
}

void load_ima_policy(const struct config *config)
{
	const char *path = config->ima_policy;
	char place[40];
	int fd, error;

	if (!path)
		return;
	fd = open_policy_file(path);
	if (fd < 0)
		fatal("ima", "%s: %s", path, strerror(errno));
	/* The kernel reads the file itself; the descriptor's path leads it to the one that was opened inside the root. */
	snprintf(place, sizeof(place), "/proc/self/fd/%d", fd);
	error = write_file(IMA_POLICY, place, strlen(place));
	close(fd);
	if (error)
		fatal("ima", "%s: %s", path, ima_failure(error));
	say("IMA policy %s is in force", path);
}

static long add_key(const char *type, const char *name, const char *payload)
{
	return syscall(SYS_add_key, type, name, payload, strlen(payload), KEY_SPEC_PROCESS_KEYRING);
}

/* Makes a key with `instruction` and returns its blob: text, as it can be loaded again. */
static void make_key(const char *type, const char *name, const char *instruction, char *blob, size_t size)
{
	long key = add_key(type, name, instruction), length;

	if (key < 0)
		fatal("evm", "a new %s key: %s", type, strerror(errno));
	length = syscall(SYS_keyctl, KEYCTL_READ, key, blob, size - 1, 0);
	if (length <= 0 || (size_t)length >= size)
		fatal("evm", "the %s key cannot be read: %s", type, length < 0 ? strerror(errno) : "its blob is too long");
	blob[length] = '\0';
}

static void load_key(const char *type, const char *name, const char *blob, const char *options)
{
	static char instruction[KEY_TEXT_BYTES + 64];

	snprintf(instruction, sizeof(instruction), "load %s%s", blob, options);
	if (add_key(type, name, instruction) < 0)
		fatal("evm", "the %s key cannot be unsealed: %s (another device's, other PCRs, or damaged)", type, strerror(errno));
}

/* "kmk BLOB\nevm BLOB\n" behind the magic; cuts the text up. */
static bool split_blobs(char *text, char **kmk, char **evm)
{
	char *end;

	if (strncmp(text, MAGIC "kmk ", strlen(MAGIC "kmk ")))
		return false;
	*kmk = text + strlen(MAGIC "kmk ");
	end = strchr(*kmk, '\n');
	if (!end || strncmp(end, "\nevm ", 5))
		return false;
	*end = '\0';
	*evm = end + 5;
	end = strchr(*evm, '\n');
	if (!end || end[1])
		return false;
	*end = '\0';
	return true;
}

static bool is_empty(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (text[i])
			return false;
	}
	return true;
}

static void provision(const struct config *config, const struct partition *partition, const char *options)
{
	static char kmk[KEY_TEXT_BYTES], evm[KEY_TEXT_BYTES], text[KEY_TEXT_BYTES];
	char instruction[192], hex[2 * POLICY_DIGEST_BYTES + 1] = "";
	uint8_t digest[POLICY_DIGEST_BYTES];
	int size, fd;

	if (config->trusted_source == TRUSTED_TPM)
		ensure_storage_root_key();
	if (config->evm_pcrs) {
		end_session(start_pcr_session(config->evm_pcrs, digest));
		to_hex(digest, sizeof(digest), hex);
	}
	snprintf(instruction, sizeof(instruction), "new 32%s%s%s", options, *hex ? " policydigest=" : "", hex);
	make_key("trusted", KMK, instruction, kmk, sizeof(kmk));
	make_key("encrypted", EVM_KEY, "new trusted:" KMK " 64", evm, sizeof(evm));
	size = snprintf(text, sizeof(text), MAGIC "kmk %s\nevm %s\n", kmk, evm);
	if (size >= (int)sizeof(text) - 1 || (uint64_t)size >= partition->size)
		fatal("evm", "%s: the blobs (%d bytes) do not fit", partition->device, size);
	fd = open(partition->device, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)size + 1) != size + 1 || fsync(fd) < 0)
		fatal("evm", "%s: cannot be written: %s", partition->device, strerror(errno));
	close(fd);
	say("EVM: a new key, sealed for this device, lies on %s", partition->device);
}

static void use_evm_key(void)
{
	char text[16];
	int error = write_file(EVM, "1", 1);

	if (error)
		fatal("evm", EVM ": %s", error == -EPERM ? "has a key already" : strerror(-error));
	read_file("evm", EVM, text, sizeof(text));
	if (!(atoi(text) & EVM_HMAC))
		fatal("evm", EVM ": says %s, the HMAC key is not in use", text);
	say("EVM: the HMAC key is in use");
}

/* The keys are in this process's own keyring: gone, but for EVM's copy, when init is started. */
void load_evm_key(const struct config *config)
{
	static char text[KEY_TEXT_BYTES];
	const char *options = config->trusted_source == TRUSTED_TPM ? " keyhandle=" STORAGE_ROOT_KEY : "";
	uint8_t digest[POLICY_DIGEST_BYTES];
	struct partition partition;
	char *kmk, *evm, session[80] = "";
	size_t size;

	if (!config->has_evm_key)
		return;
	find_partition("EVM key", &config->evm_key, config->wait_s, &partition);
	size = partition.size < sizeof(text) ? (size_t)partition.size : sizeof(text);
	read_partition("evm", &partition, text, size);
	if (is_empty(text, size)) {
		if (!config->evm_provision)
			fatal("evm", "%s is empty: boot once with evm_provision = yes", partition.device);
		provision(config, &partition, options);
	} else {
		text[sizeof(text) - 1] = '\0';
		if (!split_blobs(text, &kmk, &evm))
			fatal("evm", "%s holds no key of ours", partition.device);
		if (config->evm_pcrs)
			snprintf(session, sizeof(session), "%s policyhandle=%x", options, start_pcr_session(config->evm_pcrs, digest));
		load_key("trusted", KMK, kmk, *session ? session : options);
		load_key("encrypted", EVM_KEY, evm, "");
	}
	use_evm_key();
}
