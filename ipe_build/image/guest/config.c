/* SPDX-License-Identifier: MIT
 *
 * The configuration (written by the build, measured with the initramfs) and words of the kernel's command line (from anyone).
 */
#include <string.h>

#include "ipe-init.h"

static const char whitespace[] = " \t\r\n";

struct setting {
	const char *key;
	bool (*take)(struct config *config, char *value);
};

struct word {
	const char *word;
	int value;
};

static bool take_word(const struct word *words, const char *value, int *out)
{
	for (; words->word; words++) {
		if (!strcmp(words->word, value)) {
			*out = words->value;
			return true;
		}
	}
	return false;
}

static bool take_flag(const char *value, bool *out)
{
	static const struct word words[] = { { "yes", 1 }, { "no", 0 }, { NULL, 0 } };
	int flag;

	if (!take_word(words, value, &flag))
		return false;
	*out = flag;
	return true;
}

static bool take_item(struct list *list, const char *value)
{
	if (list->count == MAX_LIST)
		return false;
	list->items[list->count++] = value;
	return true;
}

static bool take_path(const char **out, const char *value)
{
	*out = value;
	return value[0] == '/';
}

static bool take_root_hash(struct config *config, char *value)
{
	config->root_hash_from_command_line = !strcmp(value, "cmdline");
	return config->root_hash_from_command_line || parse_root_hash(value, &config->root_hash);
}

static bool take_signature(struct config *config, char *value)
{
	static const struct word words[] = { { "partition", SIGNATURE_PARTITION }, { "none", SIGNATURE_NONE }, { NULL, 0 } };
	int source;

	if (take_word(words, value, &source)) {
		config->signature = (enum signature_source)source;
		return true;
	}
	if (!strncmp(value, "partuuid:", 9)) {
		config->signature = SIGNATURE_PARTUUID;
		return parse_uuid(value + 9, &config->signature_partuuid);
	}
	config->signature = SIGNATURE_FILE;
	return !strncmp(value, "file:", 5) && take_path(&config->signature_file, value + 5);
}

static bool take_signature_type(struct config *config, char *value)
{
	return parse_uuid(value, &config->signature_type);
}

static bool take_filesystem(struct config *config, char *value)
{
	config->filesystem = value;
	return true;
}

static bool take_mount_options(struct config *config, char *value)
{
	config->mount_options = value;
	return true;
}

/* The kernel's words; "ignore_corruption" and "logging" are left out, with them corrupted data would be used. */
static bool take_verity_option(struct config *config, char *value)
{
	static const struct word words[] = {
		{ "panic_on_corruption", 1 }, { "restart_on_corruption", 1 }, { "panic_on_error", 1 }, { "restart_on_error", 1 },
		{ "ignore_zero_blocks", 1 }, { "check_at_most_once", 1 }, { "try_verify_in_tasklet", 1 }, { NULL, 0 },
	};
	int known;

	return take_word(words, value, &known) && take_item(&config->verity_options, value);
}

static bool take_wait(struct config *config, char *value)
{
	unsigned int number = 0;

	if (!*value || strlen(value) > 4)
		return false;
	for (; *value; value++) {
		if (*value < '0' || *value > '9')
			return false;
		number = number * 10 + (unsigned int)(*value - '0');
	}
	config->wait_s = number;
	return true;
}

static bool take_module(struct config *config, char *value)
{
	return value[0] == '/' && take_item(&config->modules, value);
}

static bool take_policy(struct config *config, char *value)
{
	const char *path = strncmp(value, "initramfs:", 10) ? value : value + 10;

	return path[0] == '/' && take_item(&config->policies, value);
}

static bool take_delete_policy(struct config *config, char *value)
{
	return !strchr(value, '/') && take_item(&config->delete_policies, value);
}

static bool take_success_audit(struct config *config, char *value)
{
	static const struct word words[] = { { "keep", -1 }, { "0", 0 }, { "1", 1 }, { NULL, 0 } };

	return take_word(words, value, &config->success_audit);
}

static bool take_keyring(struct config *config, char *value)
{
	return value[0] == '.' && take_item(&config->keyrings, value);
}

static bool take_ima_policy(struct config *config, char *value)
{
	config->ima_policy = value;
	return (strncmp(value, "initramfs:", 10) ? value : value + 10)[0] == '/';
}

static bool take_evm_key(struct config *config, char *value)
{
	config->has_evm_key = true;
	return parse_uuid(value, &config->evm_key);
}

static bool take_evm_provision(struct config *config, char *value)
{
	return take_flag(value, &config->evm_provision);
}

static bool take_evm_pcr(struct config *config, char *value)
{
	unsigned int number = 0;

	if (!*value || strlen(value) > 2)
		return false;
	for (; *value; value++) {
		if (*value < '0' || *value > '9')
			return false;
		number = number * 10 + (unsigned int)(*value - '0');
	}
	if (number > 23)
		return false;
	config->evm_pcrs |= 1U << number;
	return true;
}

static bool take_trusted_source(struct config *config, char *value)
{
	static const struct word words[] = { { "tpm", TRUSTED_TPM }, { "tee", TRUSTED_TEE }, { NULL, 0 } };
	int source;

	if (!take_word(words, value, &source))
		return false;
	config->trusted_source = (enum trusted_source)source;
	return true;
}

static bool take_drop_capability(struct config *config, char *value)
{
	return take_item(&config->drop_capabilities, value);
}

static bool take_move(struct config *config, char *value)
{
	return value[0] == '/' && take_item(&config->moves, value);
}

static bool take_init(struct config *config, char *value)
{
	return take_path(&config->init, value);
}

static bool take_freeze_initramfs(struct config *config, char *value)
{
	return take_flag(value, &config->freeze_initramfs);
}

static bool take_init_from_command_line(struct config *config, char *value)
{
	return take_flag(value, &config->init_from_command_line);
}

static bool take_on_failure(struct config *config, char *value)
{
	static const struct word words[] = {
		{ "panic", FAIL_PANIC }, { "reboot", FAIL_REBOOT }, { "poweroff", FAIL_POWEROFF }, { "recovery", FAIL_RECOVERY }, { NULL, 0 },
	};
	int action;

	if (!take_word(words, value, &action))
		return false;
	config->on_failure = (enum on_failure)action;
	return true;
}

static bool take_recovery(struct config *config, char *value)
{
	return take_path(&config->recovery, value);
}

static const struct setting settings[] = {
	{ "root_hash", take_root_hash },
	{ "signature", take_signature },
	{ "signature_type", take_signature_type },
	{ "filesystem", take_filesystem },
	{ "mount_options", take_mount_options },
	{ "verity_option", take_verity_option },
	{ "wait_s", take_wait },
	{ "module", take_module },
	{ "policy", take_policy },
	{ "delete_policy", take_delete_policy },
	{ "success_audit", take_success_audit },
	{ "keyring", take_keyring },
	{ "ima_policy", take_ima_policy },
	{ "evm_key", take_evm_key },
	{ "evm_provision", take_evm_provision },
	{ "trusted_source", take_trusted_source },
	{ "evm_pcr", take_evm_pcr },
	{ "drop_capability", take_drop_capability },
	{ "move", take_move },
	{ "init", take_init },
	{ "init_from_command_line", take_init_from_command_line },
	{ "freeze_initramfs", take_freeze_initramfs },
	{ "on_failure", take_on_failure },
	{ "recovery", take_recovery },
};

static bool take_setting(struct config *config, const char *key, char *value)
{
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		if (!strcmp(settings[i].key, key))
			return settings[i].take(config, value);
	}
	return false;
}

/* Returns the text without white space at both ends; cuts it in place. */
static char *trimmed(char *text)
{
	text += strspn(text, whitespace);
	for (size_t length = strlen(text); length && strchr(whitespace, text[length - 1]); length--)
		text[length - 1] = '\0';
	return text;
}

static bool drops(const struct config *config, const char *capability)
{
	for (size_t i = 0; i < config->drop_capabilities.count; i++) {
		if (!strcmp(config->drop_capabilities.items[i], capability))
			return true;
	}
	return false;
}

static bool config_fits(const struct config *config, const char **why)
{
	if (!config->root_hash_from_command_line && !config->root_hash.size)
		*why = "there is no root_hash";
	else if (config->root_hash_from_command_line && config->signature == SIGNATURE_NONE)
		*why = "root_hash = cmdline needs a signature";
	else if (!config->filesystem || !config->init)
		*why = "there is no filesystem or no init";
	else if (config->evm_pcrs && config->trusted_source != TRUSTED_TPM)
		*why = "evm_pcr needs trusted_source = tpm";
	else if (config->on_failure == FAIL_RECOVERY && !config->recovery)
		*why = "on_failure = recovery needs recovery = /PROGRAM";
	else if (config->freeze_initramfs && !drops(config, "CAP_LINUX_IMMUTABLE"))
		*why = "freeze_initramfs = yes needs drop_capability = CAP_LINUX_IMMUTABLE";
	else
		return true;
	return false;
}

/* Lines "key = value"; "#" begins a comment line. The values point into `text`, which is cut up. `config` is zeroed first. */
bool parse_config(char *text, struct config *config, const char **why, unsigned int *line)
{
	char *next = text;

	memset(config, 0, sizeof(*config));
	config->success_audit = -1;
	config->wait_s = 10;
	for (*line = 1; next; (*line)++) {
		char *here = next, *equals;

		next = strchr(here, '\n');
		if (next)
			*next++ = '\0';
		here = trimmed(here);
		if (!*here || *here == '#')
			continue;
		equals = strchr(here, '=');
		*why = "wanted: key = value";
		if (!equals)
			return false;
		*equals = '\0';
		equals = trimmed(equals + 1);
		*why = "unknown key, or a value that it cannot have";
		if (!*equals || !take_setting(config, trimmed(here), equals))
			return false;
	}
	*line = 0;
	return config_fits(config, why);
}

/* Copies the value of NAME=VALUE from the kernel's command line. Returns how many there are (the last is copied), -1 if too long. */
int command_line_word(const char *line, const char *name, char *value, size_t size)
{
	size_t name_length = strlen(name);
	int found = 0;

	while (*(line += strspn(line, whitespace))) {
		bool quoted = false;
		size_t length = 0;

		while (line[length] && (quoted || !strchr(whitespace, line[length])))
			quoted ^= line[length++] == '"';
		if (length == 2 && !strncmp(line, "--", 2))
			break;
		if (length > name_length && !strncmp(line, name, name_length) && line[name_length] == '=') {
			size_t rest = length - name_length - 1;

			if (rest >= size)
				return -1;
			memcpy(value, line + name_length + 1, rest);
			value[rest] = '\0';
			found++;
		}
		line += length;
	}
	return found;
}
