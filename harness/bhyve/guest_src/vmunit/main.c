/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * Unit tests for vmm.ko: it makes virtual machines, runs a few instructions in
 * each, and checks every exit.
 *
 * A process runs the tests of a group.  If a test crashes or does not end,
 * only this test fails: its process is killed, its virtual machines are
 * destroyed, and a new process starts the next test.  If even SIGKILL does not
 * end the process, it is left, and the next test starts nevertheless.
 */

#include <sys/mman.h>
#include <sys/param.h>
#include <sys/module.h>
#include <sys/sysctl.h>
#include <sys/wait.h>

#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "judge.h"

#define	KILL_S		6		/* time to stop after the limit */
#define	DESTROY_S	5		/* time to destroy a VM */
#define	TICK_US		20000
#define	MAX_LEFT	16
#define	MAX_WITHOUT	64

static const struct group *const groups[] = {
	&modrm_group,
	&string_group,
	&fault_group,
	&cpuid_group,
	&msr_group,
	&exception_group,
	&state_group,
	&instruction_group,
	&lapic_group,
	&ioapic_group,
	&legacy_group,
	&hpet_group,
	&rtc_group,
	&clock_group,
	&memory_group,
	&gla_group,
	&capability_group,
	&smp_group,
	&second_group,
	&end_group,
	&access_group,
	&wear_group,
	&interrupt_group,
	&library_group,
	&fresh_group,
	&sleep_group,
	&stuck_group,
	&registers_group,
	&task_group,
	&x2apic_group,
	&legacy_more_group,
	&ioctl_group,
};

struct shared *shared;
volatile sig_atomic_t late;
bool intel, emulated, apicv;

static int console = -1;
/* Tests that are left out, because the machine broke during them. */
static const char *without[MAX_WITHOUT];
static size_t left_out;

static void
on_alarm(int number __unused)
{
	late = 1;
}

static bool
chosen(const char *name, char **prefixes)
{
	for (size_t i = 0; i < left_out; i++) {
		if (strcmp(name, without[i]) == 0)
			return (false);
	}
	if (*prefixes == NULL)
		return (true);
	for (; *prefixes != NULL; prefixes++) {
		if (strncmp(name, *prefixes, strlen(*prefixes)) == 0)
			return (true);
	}
	return (false);
}

/* VMs that cannot be destroyed; it is useless to try again. */
static char left[MAX_LEFT][64];
static size_t left_over;

/* Runs in a child process: the tests from `shared->next` on. */
static void
run_tests(const struct test *tests, size_t count, char **prefixes)
{
	struct sigaction alarm_action = { .sa_handler = on_alarm };

	/* The processes that a test starts are in the same process group. */
	(void)setpgid(0, 0);
	/* No SA_RESTART: a system call that sleeps returns. */
	(void)sigaction(SIGALRM, &alarm_action, NULL);
	for (unsigned i = atomic_load(&shared->next); i < count; i++) {
		atomic_store(&shared->next, i + 1);
		if (!chosen(tests[i].name, prefixes))
			continue;
		atomic_store(&shared->running, i + 1);
		/* If the kernel panics, this line is left on the console. */
		if (console >= 0)
			(void)dprintf(console, "VMUNIT %s\n", tests[i].name);
		judge(&tests[i]);
		atomic_store(&shared->running, 0);
	}
	vm_forget_shared();
	_exit(0);
}

/* Wait for a process for some seconds; false if it has not ended. */
static bool
ends_within(pid_t pid, double seconds, int *status)
{
	double began = uptime();

	while (waitpid(pid, status, WNOHANG) != pid) {
		if (uptime() - began > seconds)
			return (false);
		(void)usleep(TICK_US);
	}
	return (true);
}

/*
 * Destroy a VM that a test has left.  The kernel waits for the VM's vCPUs, so
 * a child process does this: a vCPU that does not stop must not delay the
 * following tests.
 */
static void
destroy(const char *name)
{
	int status;
	pid_t pid;

	for (size_t i = 0; i < left_over; i++) {
		if (strcmp(left[i], name) == 0)
			return;
	}
	if ((pid = fork()) == 0)
		_exit(sysctlbyname("hw.vmm.destroy", NULL, NULL, name,
		    strlen(name)) != 0);
	if (pid < 0 || ends_within(pid, DESTROY_S, &status))
		return;
	(void)kill(pid, SIGKILL);
	(void)printf("# %s cannot be destroyed\n", name);
	if (left_over < MAX_LEFT)
		(void)strlcpy(left[left_over++], name, sizeof(left[0]));
}

/* Destroy the VMs that our processes have left. */
static void
clean_up(void)
{
	static const char prefix[] = "vmunit";
	struct dirent *entry;
	DIR *directory;

	if ((directory = opendir("/dev/vmm")) == NULL)
		return;
	while ((entry = readdir(directory)) != NULL) {
		if (strncmp(entry->d_name, prefix, sizeof(prefix) - 1) == 0)
			destroy(entry->d_name);
	}
	(void)closedir(directory);
}

/* Wait for a process, and kill it if a test takes too long. */
static void
watch(pid_t pid, const struct test *tests)
{
	unsigned running, seen = 0;
	double since = uptime(), limit;
	int status = 0;
	bool killed = false, ended = true;

	while (waitpid(pid, &status, WNOHANG) != pid) {
		(void)usleep(TICK_US);
		running = atomic_load(&shared->running);
		if (running != seen) {
			seen = running;
			since = uptime();
		}
		limit = atomic_load(&shared->patience) + KILL_S;
		if (uptime() - since > limit) {
			killed = true;
			(void)kill(-pid, SIGKILL);
			ended = ends_within(pid, KILL_S, &status);
			break;
		}
	}
	/* Nothing else would end the processes of a test that crashed. */
	(void)kill(-pid, SIGKILL);
	running = atomic_load(&shared->running);
	atomic_store(&shared->running, 0);
	if (running != 0) {
		if (!ended)
			note("it does not end, even by SIGKILL");
		else if (killed)
			note("it did not end within %u s",
			    atomic_load(&shared->patience) + KILL_S);
		else if (WIFSIGNALED(status))
			note("it was ended by signal %d (%s)", WTERMSIG(status),
			    strsignal(WTERMSIG(status)));
		else
			note("it exited with %d", WEXITSTATUS(status));
		report(&tests[running - 1], false, uptime() - since);
	}
	clean_up();
}

static void
run_group(const struct group *group, char **prefixes)
{
	const struct test *tests;
	size_t count;
	pid_t pid;

	tests = group->tests(&count);
	atomic_store(&shared->next, 0);
	atomic_store(&shared->patience, PATIENCE_S);
	while (atomic_load(&shared->next) < count) {
		(void)fflush(stdout);
		if ((pid = fork()) == 0)
			run_tests(tests, count, prefixes);
		if (pid < 0)
			err(EX_OSERR, "fork");
		watch(pid, tests);
	}
}

static int
sysctl_int(const char *name)
{
	int value = 0;
	size_t size = sizeof(value);

	return (sysctlbyname(name, &value, &size, NULL, 0) == 0 ? value : -1);
}

static size_t
list(char **prefixes, bool print)
{
	const struct test *tests;
	size_t count, total = 0;

	for (size_t g = 0; g < nitems(groups); g++) {
		tests = groups[g]->tests(&count);
		for (size_t i = 0; i < count; i++) {
			if (!chosen(tests[i].name, prefixes))
				continue;
			total++;
			if (print)
				(void)printf("%s: %s\n", tests[i].name,
				    tests[i].what);
		}
	}
	return (total);
}

int
main(int argc, char **argv)
{
	uint32_t leaf[4];
	int option;

	while ((option = getopt(argc, argv, "c:elx:")) != -1) {
		switch (option) {
		case 'c':
			console = open(optarg, O_WRONLY | O_NOCTTY);
			if (console < 0)
				err(EX_NOINPUT, "%s", optarg);
			break;
		case 'e':
			emulated = true;
			break;
		case 'l':
			(void)list(argv + optind, true);
			return (0);
		case 'x':
			if (left_out == MAX_WITHOUT)
				errx(EX_USAGE, "too many times -x");
			without[left_out++] = optarg;
			break;
		default:
			(void)fprintf(stderr, "usage: vmunit [-el] "
			    "[-c console] [-x test] [prefix ...]\n");
			return (EX_USAGE);
		}
	}
	argv += optind;
	/* FreeBSD 14 has no such device: there vmm is not loaded if it fails. */
#ifdef VMMCTL_VM_CREATE
	if (access("/dev/vmmctl", F_OK) != 0)
		errx(EX_UNAVAILABLE,
		    "/dev/vmmctl is missing: vmm is not loaded");
#else
	if (modfind("vmm") < 0)
		errx(EX_UNAVAILABLE, "vmm is not loaded");
#endif
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	    MAP_ANON | MAP_SHARED, -1, 0);
	if (shared == MAP_FAILED)
		err(EX_OSERR, "mmap");
	h_cpuid(0, 0, leaf);
	intel = leaf[1] == 0x756e6547;		/* "Genu" */
	apicv = sysctl_int("hw.vmm.vmx.cap.virtual_interrupt_delivery") == 1;
	(void)printf("TAP version 13\n1..%zu\n", list(argv, false));
	for (size_t g = 0; g < nitems(groups); g++)
		run_group(groups[g], argv);
	(void)printf("# verdict failed=%u total=%u\n", shared->failures,
	    shared->number);
	return (shared->failures != 0);
}
