/* SPDX-License-Identifier: MIT
 *
 * IPE: is it enforcing, load and activate policies. The order is systemd's (src/core/ipe-setup.c): update, else new_policy,
 * then activate.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipe-init.h"

#define IPE "/sys/kernel/security/ipe"
#define MAX_POLICY (4 * 1024 * 1024)

static void check_flag(const char *step, const char *path, const char *wanted)
{
	char text[8];

	read_file(step, path, text, sizeof(text));
	if (strncmp(text, wanted, 1))
		fatal(step, "%s: wanted %s, got %s", path, wanted, text);
}

/* A boot policy that the kernel refuses is not seen here: IPE's hooks and files stay, and enforce a policy that is loaded later
 * (security/ipe/ipe.c, ipe_init; fs.c, ipe_init_securityfs). */
void check_enforcing(void)
{
	if (access(IPE, F_OK))
		fatal("ipe", "the kernel has no IPE (CONFIG_SECURITY_IPE, CONFIG_LSM, lsm=)");
	check_flag("ipe", IPE "/enforce", "1");
	say("IPE enforces");
}

void set_success_audit(int value)
{
	const char *text = value ? "1" : "0";
	int error;

	if (value < 0)
		return;
	error = write_file(IPE "/success_audit", text, 1);
	if (error)
		fatal("ipe", "success_audit: %s", strerror(-error));
	check_flag("ipe", IPE "/success_audit", text);
}

/* Opens a file of the verity root: links stay inside the root, other mounts are not entered. */
static int open_in_root(const char *path)
{
	struct open_how how = { .flags = O_RDONLY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS };
	int root = open(SYSROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd;

	if (root < 0)
		return -1;
	fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
	close(root);
	return fd;
}

/* Opens a policy of the verity root, or of the initramfs where its path begins with "initramfs:". */
int open_policy_file(const char *path)
{
	return strncmp(path, "initramfs:", 10) ? open_in_root(path) : open(path + 10, O_RDONLY | O_CLOEXEC);
}

/* The file's name without folder and last suffix is the policy's name. */
static void name_of_policy(const char *path, char *name, size_t size)
{
	const char *base = strrchr(path, '/') + 1;
	const char *dot = strrchr(base, '.');
	size_t length = dot ? (size_t)(dot - base) : strlen(base);

	if (!length || length >= size)
		fatal("policy", "%s: its name is no policy's name", path);
	memcpy(name, base, length);
	name[length] = '\0';
}

static const char *policy_failure(int error)
{
	switch (-error) {
	case ENOKEY:
		return "signed by a key that the kernel does not trust";
	case EBADMSG:
		return "not a signed policy, or a policy that the kernel does not understand";
	case EKEYREJECTED:
		return "its signature does not fit";
	case ESTALE:
		return "its version is not higher than the loaded one's";
	case EEXIST:
		return "a policy of that name is loaded already";
	case EPERM:
		return "CAP_MAC_ADMIN is missing";
	default:
		return strerror(-error);
	}
}

/* A policy in plain text, of which the kernel is told the path (our patch of the kernel): the policy in force has to vouch for the file. */
static int load_unsigned(const char *path)
{
	char place[512];
	const char *inside = strncmp(path, "initramfs:", 10) ? NULL : path + 10;
	int size = snprintf(place, sizeof(place), "%s%s", inside ? "" : SYSROOT, inside ? inside : path);

	if (size >= (int)sizeof(place))
		fatal("policy", "%s: is too long", path);
	return write_file(IPE "/new_policy", place, (size_t)size);
}

static int load_signed(const char *path, const char *name)
{
	char node[512];
	size_t size;
	char *policy;
	int fd = open_policy_file(path);

	if (fd < 0)
		fatal("policy", "%s: %s", path, strerror(errno));
	policy = read_whole("policy", fd, path, MAX_POLICY, &size);
	close(fd);

	snprintf(node, sizeof(node), IPE "/policies/%s/update", name);
	if (access(node, F_OK))
		snprintf(node, sizeof(node), IPE "/new_policy");
	return write_file(node, policy, size);
}

static bool is_plain_text(const char *path)
{
	const char *suffix = strrchr(path, '.');

	return suffix && !strcmp(suffix, ".pol");
}

static void load_policy(const char *path)
{
	char name[256], node[512];
	int error;

	name_of_policy(path, name, sizeof(name));
	error = is_plain_text(path) ? load_unsigned(path) : load_signed(path, name);
	if (error == -EBADMSG && is_plain_text(path))
		fatal("policy", "%s: the kernel does not understand it, or takes no paths (it lacks ipe-policy-by-path.patch)", path);
	if (error == -EACCES && is_plain_text(path))
		fatal("policy", "%s: no rule op=POLICY of the policy in force vouches for it", path);
	if (error)
		fatal("policy", "%s: %s", path, policy_failure(error));
	snprintf(node, sizeof(node), IPE "/policies/%s/active", name);
	if (access(node, F_OK))
		fatal("policy", "%s: its policy_name is not %s", path, name);
	error = write_file(node, "1", 1);
	if (error)
		fatal("policy", "%s: cannot be activated: %s", path, strerror(-error));
	check_flag("policy", node, "1");
	say("policy %s is active", name);
}

static void delete_policy(const char *name)
{
	char node[512];
	int error;

	if (snprintf(node, sizeof(node), IPE "/policies/%s/delete", name) >= (int)sizeof(node))
		fatal("policy", "the name of the policy to delete is too long");
	error = write_file(node, "1", 1);
	if (error)
		fatal("policy", "%s: cannot be deleted: %s", name, strerror(-error));
	say("policy %s is deleted", name);
}

void load_policies(const struct config *config)
{
	for (size_t i = 0; i < config->policies.count; i++)
		load_policy(config->policies.items[i]);
	for (size_t i = 0; i < config->delete_policies.count; i++)
		delete_policy(config->delete_policies.items[i]);
}
