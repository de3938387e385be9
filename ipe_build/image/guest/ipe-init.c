/* SPDX-License-Identifier: MIT
 *
 * The order of the boot, and what happens when a step fails. There is one way through: a failed step never continues.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipe-init.h"

#define CONFIG_FILE "/etc/ipe-init.conf"
#define DEVKMSG "/proc/sys/kernel/printk_devkmsg"

static struct config config;
static bool config_read;
static char *const *environment;

/* One line to the kernel log; to the console where there is no log. `level` is printk's. */
static void print(int level, const char *text)
{
	char line[1024];
	int size = snprintf(line, sizeof(line), "<%d>ipe-init: %s\n", level, text);
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);

	if (size >= (int)sizeof(line))
		size = sizeof(line) - 1;
	if (fd < 0 || write(fd, line, (size_t)size) != size)
		dprintf(STDERR_FILENO, "ipe-init: %s\n", text);
	if (fd >= 0)
		close(fd);
}

void say(const char *format, ...)
{
	char text[900];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	print(6, text);
}

static void run_recovery(void)
{
	char *const arguments[] = { (char *)config.recovery, NULL };

	umount2(SYSROOT, MNT_DETACH);
	close_verity();
	say("starting the recovery program %s", config.recovery);
	execve(config.recovery, arguments, environment);
	print(2, "the recovery program cannot be run");
}

/* Ends the boot. The configured action is tried; if it comes back, process 1 ends and the kernel panics. */
void fatal(const char *step, const char *format, ...)
{
	static bool again;
	char reason[700], text[800];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(reason, sizeof(reason), format, arguments);
	va_end(arguments);
	snprintf(text, sizeof(text), "FATAL: %s: %s", step, reason);
	print(2, text);
	if (config_read && !again) {
		again = true; /* a failure on the way into recovery is the last one */
		if (config.on_failure == FAIL_RECOVERY)
			run_recovery();
		if (config.on_failure == FAIL_REBOOT)
			reboot(LINUX_REBOOT_CMD_RESTART);
		if (config.on_failure == FAIL_POWEROFF)
			reboot(LINUX_REBOOT_CMD_POWER_OFF);
	}
	_exit(1);
}

static void read_config(void)
{
	static char text[64 * 1024];
	const char *why = NULL;
	unsigned int line;

	read_file("config", CONFIG_FILE, text, sizeof(text));
	if (!parse_config(text, &config, &why, &line))
		fatal("config", CONFIG_FILE ":%u: %s", line, why);
	config_read = true;
}

static void read_command_line(struct root_hash *hash, char *init, size_t size)
{
	static char line[16 * 1024];
	char value[2 * MAX_HASH + 1];

	read_file("command line", "/proc/cmdline", line, sizeof(line));
	if (config.root_hash_from_command_line) {
		if (command_line_word(line, "roothash", value, sizeof(value)) != 1)
			fatal("command line", "wanted one roothash=HEX");
		if (!parse_root_hash(value, hash))
			fatal("command line", "roothash= is not 64 to 128 hex digits");
	} else {
		*hash = config.root_hash;
	}
	if (config.init_from_command_line) {
		if (command_line_word(line, "init", init, size) < 0)
			fatal("command line", "init= is too long");
		if (init[0] && init[0] != '/')
			fatal("command line", "init= is no absolute path");
	}
}

/* The kernel drops all but the first lines of a burst; a failure must not be among those. */
static void unlimit_log(const char *setting)
{
	(void)write_file(DEVKMSG, setting, strlen(setting));
}

static void reopen_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		return;
	for (int standard = 0; standard < 3; standard++)
		dup2(fd, standard);
	if (fd > 2)
		close(fd);
}

int main(int argc, char **argv, char **environ_of_kernel)
{
	struct root_hash hash;
	char device[64], init[256] = "";

	environment = environ_of_kernel;
	if (getpid() != 1) {
		fputs("ipe-init: is the first program of an initramfs, not for a running system\n", stderr);
		return 2;
	}
	(void)argc;
	umask(0);
	mount_kernel_filesystems();
	unlimit_log("on\n");
	read_config();
	check_enforcing();
	load_modules(&config);
	read_command_line(&hash, init, sizeof(init));
	open_verity(&config, &hash, device, sizeof(device));
	mount_root(&config, device);
	load_policies(&config);
	set_success_audit(config.success_audit);
	check_keyrings(&config);
	load_evm_key(&config);
	load_ima_policy(&config);
	check_enforcing();
	restrict_helpers(&config);
	unlimit_log("ratelimit\n");
	switch_root(&config);
	drop_capabilities(&config);
	reopen_console();
	argv[0] = init[0] ? init : (char *)config.init;
	say("starting %s", argv[0]);
	execve(argv[0], argv, environment);
	fatal("init", "%s: %s", argv[0], strerror(errno));
}
