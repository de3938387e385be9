/* SPDX-License-Identifier: MIT
 *
 * The one thing that the kernel's trusted keys want and do not make themselves: a storage root key at a persistent handle.
 *
 * Source: TPM 2.0 Library, Part 3 (TPM2_ReadPublic, TPM2_CreatePrimary, TPM2_EvictControl, TPM2_FlushContext);
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

void ensure_storage_root_key(void)
{
	static uint8_t response[RESPONSE_BYTES], ignored[RESPONSE_BYTES];
	int fd = open(TPM, O_RDWR | O_CLOEXEC);
	uint32_t code;

	if (fd < 0)
		fatal("tpm", TPM ": %s (is there a TPM 2.0, and CONFIG_TCG_TIS or CONFIG_TCG_CRB?)", strerror(errno));
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
