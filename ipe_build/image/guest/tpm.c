/* SPDX-License-Identifier: MIT
 *
 * What the kernel's trusted keys want and do not make themselves: a storage root key at a persistent handle, and, to bind a key to what
 * has booted, the digest of a policy over PCRs and a session in which that policy holds.
 *
 * Source: TPM 2.0 Library, Part 3 (TPM2_ReadPublic, TPM2_CreatePrimary, TPM2_EvictControl, TPM2_FlushContext, TPM2_StartAuthSession,
 * TPM2_PolicyPCR, TPM2_PolicyGetDigest);
 * TCG TPM v2.0 Provisioning Guidance (0x81000001); TCG EK Credential Profile's storage template for ECC P-256.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "ipe-init.h"

#define TPM "/dev/tpm0"
#define RESPONSE_BYTES 4096
#define TPM_RC_HANDLE_1 0x18b /* no such object */

/* The owner's authorisation is a password session with an empty password. */
#define OWNER 0x40, 0x00, 0x00, 0x01
#define EMPTY_PASSWORD 0x00, 0x00, 0x00, 0x09, 0x40, 0x00, 0x00, 0x09, 0x00, 0x00, 0x00, 0x00, 0x00
#define PERSISTENT 0x81, 0x00, 0x00, 0x01

static const uint8_t read_public[] = { 0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x73, PERSISTENT };

static const uint8_t create_primary[] = {
	0x80, 0x02, 0, 0, 0, 67, 0, 0, 0x01, 0x31, OWNER, EMPTY_PASSWORD,
	0, 4, 0, 0, 0, 0, /* no password, no data */
	0, 26, 0x00, 0x23, 0x00, 0x0b, /* ECC, names by SHA-256 */
	0x00, 0x03, 0x04, 0x72, /* fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt */
	0, 0, /* no policy */
	0x00, 0x06, 0x00, 0x80, 0x00, 0x43, /* AES-128 CFB */
	0x00, 0x10, 0x00, 0x03, 0x00, 0x10, /* no scheme, P-256, no KDF */
	0, 0, 0, 0, /* no seed of our own */
	0, 0, 0, 0, 0, 0, /* no outside info, no PCRs recorded */
};

static const uint8_t evict_control[] = {
	0x80, 0x02, 0, 0, 0, 35, 0, 0, 0x01, 0x20, OWNER, 0, 0, 0, 0, EMPTY_PASSWORD, PERSISTENT,
};

static const uint8_t flush_context[] = { 0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x65, 0, 0, 0, 0 };

/* Not salted, not bound; its nonce protects nothing, because a policy of PCRs alone needs no HMAC. */
static const uint8_t start_session[] = {
	0x80, 0x01, 0, 0, 0, 43, 0, 0, 0x01, 0x76, 0x40, 0, 0, 0x07, 0x40, 0, 0, 0x07,
	0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0x01 /* policy */, 0x00, 0x10, 0x00, 0x0b,
};

static const uint8_t policy_pcr[] = {
	0x80, 0x01, 0, 0, 0, 26, 0, 0, 0x01, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x00, 0x0b, 3, 0, 0, 0,
};

static const uint8_t policy_get_digest[] = { 0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x89, 0, 0, 0, 0 };

_Static_assert(sizeof(start_session) == 43 && sizeof(policy_pcr) == 26 && sizeof(policy_get_digest) == 14, "a command says its length");
_Static_assert(sizeof(read_public) == 14 && sizeof(create_primary) == 67 && sizeof(evict_control) == 35 && sizeof(flush_context) == 14,
	       "a command says its length");

/* Sends a command, with `handle` (4 bytes) at `at` unless that is 0. Returns the response code; the response lies in `response`. */
static uint32_t transmit(int fd, const uint8_t *command, size_t size, size_t at, const uint8_t *handle, uint8_t *response)
{
	uint8_t buffer[128];
	ssize_t got;

	memcpy(buffer, command, size);
	if (at)
		memcpy(buffer + at, handle, 4);
	if (write(fd, buffer, size) != (ssize_t)size)
		fatal("tpm", TPM ": %s", strerror(errno));
	got = read(fd, response, RESPONSE_BYTES);
	if (got < 10)
		fatal("tpm", TPM ": %s", got < 0 ? strerror(errno) : "a response of fewer than 10 bytes");
	return (uint32_t)response[6] << 24 | (uint32_t)response[7] << 16 | (uint32_t)response[8] << 8 | response[9];
}

static void must(const char *what, uint32_t code)
{
	if (code)
		fatal("tpm", "%s: response code %#x", what, code);
}

static int open_tpm(void)
{
	int fd = open(TPM, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fatal("tpm", TPM ": %s (is there a TPM 2.0, and CONFIG_TCG_TIS or CONFIG_TCG_CRB?)", strerror(errno));
	return fd;
}

/*
 * Starts a session in which the policy "these PCRs of the SHA-256 bank are as they are now" holds. Its handle comes back, and the
 * policy's digest, which a sealed key carries: later the key is unsealed in such a session, if the digest is then the same. The session
 * stays for the kernel when /dev/tpm0 is closed; the kernel's use ends it.
 */
uint32_t start_pcr_session(uint32_t pcrs, uint8_t digest[POLICY_DIGEST_BYTES])
{
	static uint8_t response[RESPONSE_BYTES], session[RESPONSE_BYTES];
	uint8_t selection[sizeof(policy_pcr)];
	int fd = open_tpm();

	memcpy(selection, policy_pcr, sizeof(selection));
	for (int i = 0; i < 3; i++)
		selection[23 + i] = (uint8_t)(pcrs >> (8 * i));
	must("TPM2_StartAuthSession", transmit(fd, start_session, sizeof(start_session), 0, NULL, session));
	must("TPM2_PolicyPCR", transmit(fd, selection, sizeof(selection), 10, session + 10, response));
	must("TPM2_PolicyGetDigest", transmit(fd, policy_get_digest, sizeof(policy_get_digest), 10, session + 10, response));
	if (response[10] || response[11] != POLICY_DIGEST_BYTES)
		fatal("tpm", "a policy digest that is not SHA-256's");
	memcpy(digest, response + 12, POLICY_DIGEST_BYTES);
	close(fd);
	return (uint32_t)session[10] << 24 | (uint32_t)session[11] << 16 | (uint32_t)session[12] << 8 | session[13];
}

/* Ends a session that nobody used. */
void end_session(uint32_t handle)
{
	static uint8_t ignored[RESPONSE_BYTES];
	const uint8_t bytes[] = { (uint8_t)(handle >> 24), (uint8_t)(handle >> 16), (uint8_t)(handle >> 8), (uint8_t)handle };
	int fd = open_tpm();

	must("TPM2_FlushContext", transmit(fd, flush_context, sizeof(flush_context), 10, bytes, ignored));
	close(fd);
}

void ensure_storage_root_key(void)
{
	static uint8_t response[RESPONSE_BYTES], ignored[RESPONSE_BYTES];
	int fd = open_tpm();
	uint32_t code;

	code = transmit(fd, read_public, sizeof(read_public), 0, NULL, response);
	if (code == TPM_RC_HANDLE_1) {
		must("TPM2_CreatePrimary", transmit(fd, create_primary, sizeof(create_primary), 0, NULL, response));
		must("TPM2_EvictControl", transmit(fd, evict_control, sizeof(evict_control), 14, response + 10, ignored));
		must("TPM2_FlushContext", transmit(fd, flush_context, sizeof(flush_context), 10, response + 10, ignored));
		say("TPM: made a storage root key at " STORAGE_ROOT_KEY);
	} else {
		must("TPM2_ReadPublic", code);
	}
	close(fd);
}
