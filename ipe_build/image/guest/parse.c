/* SPDX-License-Identifier: MIT
 *
 * Bytes to values: the verity superblock, the GPT, the signature's JSON. What is read here comes from disks that nobody has
 * vouched for, so every length is checked before it is used.
 */
#include <string.h>

#include "ipe-init.h"

static const char whitespace[] = " \t\r\n";

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool parse_hex(const char *text, size_t length, uint8_t *out, size_t *size, size_t max)
{
	if (length % 2 || length / 2 > max)
		return false;
	for (size_t i = 0; i < length / 2; i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		out[i] = (uint8_t)(high << 4 | low);
	}
	*size = length / 2;
	return true;
}

void to_hex(const uint8_t *bytes, size_t size, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < size; i++) {
		out[2 * i] = digits[bytes[i] >> 4];
		out[2 * i + 1] = digits[bytes[i] & 15];
	}
	out[2 * size] = '\0';
}

/* A root hash: 32 to 64 bytes, since the partitions' UUIDs are its first and last 16. */
bool parse_root_hash(const char *text, struct root_hash *hash)
{
	return parse_hex(text, strlen(text), hash->bytes, &hash->size, MAX_HASH) && hash->size >= 32;
}

bool same_hash(const struct root_hash *one, const struct root_hash *other)
{
	return one->size == other->size && !memcmp(one->bytes, other->bytes, one->size);
}

bool parse_uuid(const char *text, struct uuid *uuid)
{
	char hex[33];
	size_t size, used = 0;

	if (strlen(text) != 36)
		return false;
	for (size_t i = 0; i < 36; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash != (text[i] == '-'))
			return false;
		if (!dash)
			hex[used++] = text[i];
	}
	return parse_hex(hex, used, uuid->bytes, &size, sizeof(uuid->bytes));
}

void hash_to_uuids(const struct root_hash *hash, struct uuid *data, struct uuid *tree)
{
	memcpy(data->bytes, hash->bytes, 16);
	memcpy(tree->bytes, hash->bytes + hash->size - 16, 16);
}

static uint32_t le32(const uint8_t *raw)
{
	return (uint32_t)raw[0] | (uint32_t)raw[1] << 8 | (uint32_t)raw[2] << 16 | (uint32_t)raw[3] << 24;
}

static uint64_t le64(const uint8_t *raw)
{
	return le32(raw) | (uint64_t)le32(raw + 4) << 32;
}

/* ---- verity superblock ---- */

static bool is_block_size(uint32_t size)
{
	return size >= 512 && size <= 512 * 1024 && !(size & (size - 1));
}

static bool all_zero(const uint8_t *raw, size_t size)
{
	while (size--) {
		if (*raw++)
			return false;
	}
	return true;
}

static bool is_algorithm(const char *name, size_t size)
{
	size_t length = strnlen(name, size);

	if (!length || length == size)
		return false;
	for (size_t i = 0; i < length; i++) {
		char c = name[i];

		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
			return false;
	}
	return true;
}

/* cryptsetup's struct verity_sb: 512 bytes, little-endian. */
bool parse_superblock(const uint8_t *raw, size_t size, struct superblock *sb, const char **why)
{
	if (size < SUPERBLOCK_BYTES || memcmp(raw, "verity\0\0", 8)) {
		*why = "there is no verity superblock";
		return false;
	}
	memset(sb, 0, sizeof(*sb));
	sb->hash_type = le32(raw + 12);
	to_hex(raw + 16, 16, sb->uuid_hex);
	memcpy(sb->algorithm, raw + 32, sizeof(sb->algorithm));
	sb->data_block_size = le32(raw + 64);
	sb->hash_block_size = le32(raw + 68);
	sb->data_blocks = le64(raw + 72);
	sb->salt_size = (size_t)raw[80] | (size_t)raw[81] << 8;
	if (le32(raw + 8) != 1)
		*why = "its version is not 1";
	else if (sb->hash_type > 1)
		*why = "its hash type is neither 0 nor 1";
	else if (!is_algorithm(sb->algorithm, sizeof(sb->algorithm)))
		*why = "its algorithm is no name";
	else if (!is_block_size(sb->data_block_size) || !is_block_size(sb->hash_block_size))
		*why = "a block size is no power of two from 512 to 524288";
	else if (!sb->data_blocks || sb->data_blocks > UINT64_MAX / sb->data_block_size)
		*why = "its number of data blocks is not possible";
	else if (sb->salt_size > MAX_SALT)
		*why = "its salt is longer than 256 bytes";
	else if (!all_zero(raw + 82, 6) || !all_zero(raw + 344, 168) || !all_zero(raw + 88 + sb->salt_size, MAX_SALT - sb->salt_size))
		*why = "its padding is not zero";
	else {
		memcpy(sb->salt, raw + 88, sb->salt_size);
		return true;
	}
	return false;
}

/* ---- GPT ---- */

/* A GUID's first three fields are little-endian on disk and big-endian in text. */
static void read_guid(const uint8_t *raw, struct uuid *uuid)
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (size_t i = 0; i < 16; i++)
		uuid->bytes[i] = raw[order[i]];
}

bool parse_gpt_header(const uint8_t *raw, size_t size, struct gpt_header *header)
{
	if (size < 512 || memcmp(raw, "EFI PART", 8) || le32(raw + 84) != GPT_ENTRY_BYTES)
		return false;
	header->entries_lba = le64(raw + 72);
	header->count = le32(raw + 80);
	return header->entries_lba >= 2 && header->entries_lba < UINT64_C(1) << 48 && header->count && header->count <= 1024;
}

bool parse_gpt_entry(const uint8_t *raw, struct gpt_entry *entry)
{
	if (all_zero(raw, 16))
		return false;
	read_guid(raw, &entry->type);
	read_guid(raw + 16, &entry->uuid);
	entry->first_lba = le64(raw + 32);
	entry->last_lba = le64(raw + 40);
	return entry->first_lba <= entry->last_lba && entry->last_lba < UINT64_C(1) << 48;
}

/* ---- signature JSON ---- */

static int base64_digit(char c)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *at = c ? strchr(digits, c) : NULL;

	return at ? (int)(at - digits) : -1;
}

static bool decode_base64(const char *text, size_t length, uint8_t *out, size_t *size, size_t max)
{
	size_t used = 0, padding = 0;

	if (!length || length % 4)
		return false;
	while (padding < 2 && text[length - 1 - padding] == '=')
		padding++;
	for (size_t i = 0; i < length; i += 4) {
		size_t pad = i + 4 == length ? padding : 0;
		uint32_t bits = 0;

		for (size_t j = 0; j < 4; j++) {
			int digit = j >= 4 - pad ? 0 : base64_digit(text[i + j]);

			if (digit < 0)
				return false;
			bits = bits << 6 | (uint32_t)digit;
		}
		if ((pad && bits & ((1U << 8 * pad) - 1)) || used + 3 - pad > max)
			return false;
		for (size_t j = 0; j < 3 - pad; j++)
			out[used++] = (uint8_t)(bits >> (16 - 8 * j));
	}
	*size = used;
	return true;
}

struct cursor {
	const char *at;
	const char *end;
};

static bool skip_to(struct cursor *cursor, char wanted)
{
	while (cursor->at < cursor->end && *cursor->at && strchr(whitespace, *cursor->at))
		cursor->at++;
	if (cursor->at == cursor->end || *cursor->at != wanted)
		return false;
	cursor->at++;
	return true;
}

/* A JSON string into `out`; of the escapes only \/ , the others have no place in hex and base64. */
static bool take_string(struct cursor *cursor, char *out, size_t size, size_t *length)
{
	*length = 0;
	if (!skip_to(cursor, '"'))
		return false;
	for (; cursor->at < cursor->end && *cursor->at != '"'; cursor->at++) {
		if (*cursor->at == '\\' && (++cursor->at == cursor->end || *cursor->at != '/'))
			return false;
		if ((unsigned char)*cursor->at < ' ' || *length + 1 >= size)
			return false;
		out[(*length)++] = *cursor->at;
	}
	out[*length] = '\0';
	return skip_to(cursor, '"');
}

static bool take_member(const char *key, const char *value, size_t length, struct root_hash *hash, uint8_t *der, size_t *der_size)
{
	if (!strcmp(key, "rootHash"))
		return !hash->size && parse_root_hash(value, hash);
	if (!strcmp(key, "signature"))
		return !*der_size && decode_base64(value, length, der, der_size, MAX_SIGNATURE);
	return true;
}

/* {"rootHash": HEX, "certificateFingerprint": HEX, "signature": BASE64}, then NULs to the end. `der` has MAX_SIGNATURE bytes. */
bool parse_signature(const char *text, size_t size, struct root_hash *hash, uint8_t *der, size_t *der_size, const char **why)
{
	static char value[MAX_SIGNATURE / 3 * 4 + 8];
	struct cursor cursor = { text, text + strnlen(text, size) };
	bool more = true;

	*why = "it is not the JSON of a verity signature";
	hash->size = 0;
	*der_size = 0;
	if (!all_zero((const uint8_t *)cursor.end, (size_t)(text + size - cursor.end)) || !skip_to(&cursor, '{'))
		return false;
	while (more) {
		char key[64];
		size_t length;

		if (!take_string(&cursor, key, sizeof(key), &length) || !skip_to(&cursor, ':'))
			return false;
		if (!take_string(&cursor, value, sizeof(value), &length) || !take_member(key, value, length, hash, der, der_size))
			return false;
		more = skip_to(&cursor, ',');
	}
	if (!skip_to(&cursor, '}'))
		return false;
	while (cursor.at < cursor.end && strchr(whitespace, *cursor.at))
		cursor.at++;
	if (cursor.at != cursor.end)
		return false;
	*why = "its rootHash or its signature is missing";
	return hash->size && *der_size;
}
