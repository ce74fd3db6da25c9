/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Runs commands for the workbench, one after another, over one SSH channel.
 *
 * For each command sshd(8) forks, sets up a login session and starts a shell;
 * in an emulator that takes longer than most commands.  This program is started
 * once per connection and only forks and executes.
 *
 * It prints HELLO.  Then it reads requests from standard input, each a line
 * "ARGUMENTS STDIN\n" with two numbers of bytes, followed by the arguments,
 * each ended by a NUL, and by what the command gets as standard input.  It
 * answers with "o N\n" and N bytes of the command's output, "e N\n" and N
 * bytes of its errors, as they come, and at the end with "x CODE\n": the exit
 * code, or the negative number of the signal that ended the command.
 *
 * This program itself executes the command PUT, with a path and an octal mode:
 * it writes standard input to a file, which gets its name when it is complete.
 *
 * The program exits when its standard input ends; a command that still runs
 * goes on, as it would with sshd.
 */

#include <sys/types.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define	HELLO		"vmm-workbench runner 1\n"
#define	NO_FORK		"e 23\ncannot start a process\n"
#define	PUT		":put"
#define	MOST_BYTES	(64UL << 20)
#define	CHUNK_BYTES	65536
/* A daemon that a command left behind holds its output open. */
#define	LEFT_BEHIND_MS	2000

enum { FROM_HARNESS, OUTPUT, ERRORS, INPUT, CHILD, NFDS };

static int child_pipe[2];

static void
child_ended(int sig __attribute__((unused)))
{
	int saved;

	saved = errno;
	(void)write(child_pipe[1], "", 1);
	errno = saved;
}

/* Write everything, or exit: then nothing reads this program's output. */
static void
say(const char *data, size_t size)
{
	ssize_t done;

	while (size > 0) {
		done = write(STDOUT_FILENO, data, size);
		if (done < 0) {
			if (errno == EINTR)
				continue;
			exit(1);
		}
		data += done;
		size -= (size_t)done;
	}
}

static bool
read_exactly(char *data, size_t size)
{
	ssize_t got;

	while (size > 0) {
		got = read(STDIN_FILENO, data, size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return (false);
		data += got;
		size -= (size_t)got;
	}
	return (true);
}

/* One byte at a time, so that no byte of the rest is taken. */
static bool
read_header(size_t *arguments, size_t *input)
{
	char line[64];
	size_t used;

	for (used = 0; used < sizeof(line) - 1; used++) {
		if (!read_exactly(&line[used], 1))
			return (false);
		if (line[used] == '\n') {
			line[used] = '\0';
			return (sscanf(line, "%zu %zu", arguments, input) ==
			    2 && *arguments > 0 && *arguments < MOST_BYTES &&
			    *input < MOST_BYTES);
		}
	}
	return (false);
}

static void
make_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC) != 0)
		err(1, "pipe");
}

static pid_t
start(char **argv, int *input, int *output, int *errors)
{
	int in[2], out[2], fail[2];
	pid_t pid;

	make_pipe(in);
	make_pipe(out);
	make_pipe(fail);
	pid = fork();
	if (pid == 0) {
		(void)setsid();
		(void)signal(SIGPIPE, SIG_DFL);
		if (dup2(in[0], STDIN_FILENO) < 0 ||
		    dup2(out[1], STDOUT_FILENO) < 0 ||
		    dup2(fail[1], STDERR_FILENO) < 0)
			_exit(126);
		(void)execvp(argv[0], argv);
		(void)dprintf(STDERR_FILENO, "%s: %s\n", argv[0],
		    errno == ENOENT ? "not found" : strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	(void)close(in[0]);
	(void)close(out[1]);
	(void)close(fail[1]);
	*input = in[1];
	*output = out[0];
	*errors = fail[0];
	/* This program does not wait until the command reads its input. */
	(void)fcntl(in[1], F_SETFL, O_NONBLOCK);
	return (pid);
}

/* Pass on what a pipe has; false at its end. */
static bool
pass_on(int fd, char kind)
{
	static char buffer[CHUNK_BYTES];
	char header[32];
	ssize_t got;

	got = read(fd, buffer, sizeof(buffer));
	if (got < 0)
		return (errno == EINTR || errno == EAGAIN);
	if (got == 0)
		return (false);
	say(header, (size_t)snprintf(header, sizeof(header), "%c %zd\n", kind,
	    got));
	say(buffer, (size_t)got);
	return (true);
}

static void
forget(struct pollfd *one)
{
	if (one->fd >= 0)
		(void)close(one->fd);
	one->fd = -1;
}

/* Run a command to its end; its wait(2) status. */
static int
run(char **argv, const char *input, size_t left)
{
	struct pollfd fds[NFDS];
	char ignored[16];
	ssize_t done;
	pid_t pid;
	int ready, status;
	bool ended;

	memset(fds, 0, sizeof(fds));
	pid = start(argv, &fds[INPUT].fd, &fds[OUTPUT].fd, &fds[ERRORS].fd);
	if (pid < 0) {
		forget(&fds[INPUT]);
		forget(&fds[OUTPUT]);
		forget(&fds[ERRORS]);
		say(NO_FORK, strlen(NO_FORK));
		return (126 << 8);
	}
	fds[FROM_HARNESS].fd = STDIN_FILENO;
	fds[CHILD].fd = child_pipe[0];
	fds[CHILD].events = POLLIN;
	fds[OUTPUT].events = fds[ERRORS].events = POLLIN;
	fds[INPUT].events = POLLOUT;
	if (left == 0)
		forget(&fds[INPUT]);
	status = 0;
	ended = false;
	for (;;) {
		if (ended && fds[OUTPUT].fd < 0 && fds[ERRORS].fd < 0)
			break;
		ready = poll(fds, NFDS, ended ? LEFT_BEHIND_MS : -1);
		if (ready == 0)
			break;
		if (ready < 0)
			continue;
		if (fds[FROM_HARNESS].revents != 0)
			exit(0);
		if (fds[OUTPUT].revents != 0 && !pass_on(fds[OUTPUT].fd, 'o'))
			forget(&fds[OUTPUT]);
		if (fds[ERRORS].revents != 0 && !pass_on(fds[ERRORS].fd, 'e'))
			forget(&fds[ERRORS]);
		if (fds[INPUT].revents != 0) {
			done = write(fds[INPUT].fd, input, left);
			if (done > 0) {
				input += done;
				left -= (size_t)done;
			} else if (errno != EAGAIN && errno != EINTR)
				left = 0;
			if (left == 0)
				forget(&fds[INPUT]);
		}
		if (fds[CHILD].revents != 0) {
			(void)read(child_pipe[0], ignored, sizeof(ignored));
			if (!ended && waitpid(pid, &status, WNOHANG) == pid) {
				ended = true;
				forget(&fds[INPUT]);
			}
		}
	}
	forget(&fds[INPUT]);
	forget(&fds[OUTPUT]);
	forget(&fds[ERRORS]);
	return (status);
}

static int
put_failed(const char *path, const char *part)
{
	char header[32], text[512];
	int size;

	size = snprintf(text, sizeof(text), "%s: %s\n", path, strerror(errno));
	if (size >= (int)sizeof(text))
		size = sizeof(text) - 1;
	if (part != NULL)
		(void)unlink(part);
	say(header, (size_t)snprintf(header, sizeof(header), "e %d\n", size));
	say(text, (size_t)size);
	return (1 << 8);
}

/* Write a file; a wait(2) status, as run() gives. */
static int
put(const char *path, const char *mode, const char *data, size_t left)
{
	char part[1024];
	ssize_t done;
	int fd, saved;

	if (snprintf(part, sizeof(part), "%s.part", path) >=
	    (int)sizeof(part)) {
		errno = ENAMETOOLONG;
		return (put_failed(path, NULL));
	}
	fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return (put_failed(path, NULL));
	while (left > 0) {
		done = write(fd, data, left);
		if (done < 0 && errno != EINTR)
			break;
		if (done > 0) {
			data += done;
			left -= (size_t)done;
		}
	}
	if (left > 0 || fchmod(fd, (mode_t)strtoul(mode, NULL, 8)) != 0) {
		saved = errno;
		(void)close(fd);
		errno = saved;
		return (put_failed(path, part));
	}
	if (close(fd) != 0 || rename(part, path) != 0)
		return (put_failed(path, part));
	return (0);
}

/* The arguments as execvp(3) wants them; they stay where they are. */
static char **
split(char *arguments, size_t size)
{
	char **argv;
	size_t count, i;

	count = 0;
	for (i = 0; i < size; i++)
		count += arguments[i] == '\0';
	argv = calloc(count + 1, sizeof(*argv));
	if (argv == NULL)
		err(1, NULL);
	for (i = 0; i < count; i++) {
		argv[i] = arguments;
		arguments += strlen(arguments) + 1;
	}
	return (argv);
}

int
main(void)
{
	char end[32], *data, **argv;
	size_t arguments, input;
	int status;

	make_pipe(child_pipe);
	(void)fcntl(child_pipe[1], F_SETFL, O_NONBLOCK);
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGCHLD, child_ended);
	say(HELLO, strlen(HELLO));
	while (read_header(&arguments, &input)) {
		data = malloc(arguments + input);
		if (data == NULL)
			err(1, NULL);
		if (!read_exactly(data, arguments + input) ||
		    data[arguments - 1] != '\0')
			return (1);
		argv = split(data, arguments);
		if (strcmp(argv[0], PUT) == 0 && argv[1] != NULL &&
		    argv[2] != NULL)
			status = put(argv[1], argv[2], data + arguments, input);
		else
			status = run(argv, data + arguments, input);
		free(argv);
		free(data);
		say(end, (size_t)snprintf(end, sizeof(end), "x %d\n",
		    WIFEXITED(status) ? WEXITSTATUS(status) :
		    -WTERMSIG(status)));
	}
	return (0);
}
