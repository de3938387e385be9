/* SPDX-License-Identifier: MIT
 *
 * Reading and writing whole files.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipe-init.h"

static ssize_t read_fully(int fd, char *buffer, size_t size)
{
	size_t used = 0;

	while (used < size) {
		ssize_t got = read(fd, buffer + used, size - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (!got)
			break;
		used += (size_t)got;
	}
	return (ssize_t)used;
}

/* Reads a small file into `buffer` and ends it with NUL; a file that does not fit is an error. */
size_t read_file(const char *step, const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t used;

	if (fd < 0)
		fatal(step, "%s: %s", path, strerror(errno));
	used = read_fully(fd, buffer, size);
	if (used < 0)
		fatal(step, "%s: %s", path, strerror(errno));
	if ((size_t)used == size)
		fatal(step, "%s: is longer than %zu bytes", path, size - 1);
	close(fd);
	buffer[used] = '\0';
	return (size_t)used;
}

/* Returns a file's content, with a NUL after it. The memory is never freed: this program ends in an exec. */
char *read_whole(const char *step, int fd, const char *name, size_t max, size_t *size)
{
	struct stat status;
	char *buffer;

	if (fstat(fd, &status) < 0)
		fatal(step, "%s: %s", name, strerror(errno));
	if (!S_ISREG(status.st_mode) || status.st_size <= 0 || (uint64_t)status.st_size > max)
		fatal(step, "%s: wanted a file of 1 to %zu bytes", name, max);
	*size = (size_t)status.st_size;
	buffer = malloc(*size + 1);
	if (!buffer)
		fatal(step, "%s: no memory", name);
	errno = 0;
	if (read_fully(fd, buffer, *size) != status.st_size)
		fatal(step, "%s: cannot be read: %s", name, errno ? strerror(errno) : "it is shorter than it says");
	buffer[*size] = '\0';
	return buffer;
}

/* Writes `data` in one call, as securityfs and sysctl files want it. Returns 0 or a negative errno. */
int write_file(const char *path, const char *data, size_t size)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t put;
	int error;

	if (fd < 0)
		return -errno;
	put = write(fd, data, size);
	error = put < 0 ? -errno : (size_t)put == size ? 0 : -EIO;
	close(fd);
	return error;
}
