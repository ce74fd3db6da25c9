/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Permissions of root, nobody, a jail with allow.vmm and a jail without. */

#include <sys/param.h>
#include <sys/ioctl.h>
#include <sys/jail.h>
#include <sys/mman.h>
#include <sys/sysctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmunit.h"

enum actor { ROOT, NOBODY, JAIL, JAIL_VMM, ACTORS };
static const char *const actors[] = { "root", "nobody", "a jail",
	"a jail with allow.vmm" };

static char host_vm[32];
static char path[64];

static void
put(struct iovec *iov, unsigned *used, const char *name, void *value,
    size_t size)
{
	iov[(*used)++] = (struct iovec){ __DECONST(char *, name),
	    strlen(name) + 1 };
	iov[(*used)++] = (struct iovec){ value, size };
}

/* Put this process and its children into a jail whose root is the host's. */
static void
enter_jail(bool vmm)
{
	struct iovec iov[8];
	unsigned used = 0;

	put(iov, &used, "path", __DECONST(char *, "/"), 2);
	put(iov, &used, vmm ? "allow.vmm" : "allow.novmm", NULL, 0);
	if (jail_set(iov, used, JAIL_CREATE | JAIL_ATTACH) < 0)
		_exit(200);
}

#ifdef VMMCTL_VM_CREATE
static int
try_control(void)
{
	int fd = open("/dev/vmmctl", O_RDWR);

	return (fd < 0 ? errno : 0);
}
#endif

static int
try_create(void)
{
	char name[32];

	vm_name_next(name, sizeof(name));
	if (sysctlbyname("hw.vmm.create", NULL, NULL, name, strlen(name)) != 0)
		return (errno);
	(void)sysctlbyname("hw.vmm.destroy", NULL, NULL, name, strlen(name));
	return (0);
}

/*
 * Pass a device through to a VM of this user.  The device does not exist, so
 * nothing happens.  It is not tried as root, because it would block.
 */
static int
try_pass_through(void)
{
	struct vm_pptdev device = { 0 };
	struct vm_pptdev_mmio memory = { 0 };
	struct vm_pptdev_msi msi = { 0 };
	struct vm_pptdev_msix msix = { 0 };
	const struct {
		u_long	call;
		void	*argument;
	} calls[] = {
		{ VM_UNBIND_PPTDEV, &device },
		{ VM_MAP_PPTDEV_MMIO, &memory },
		{ VM_UNMAP_PPTDEV_MMIO, &memory },
		{ VM_PPTDEV_MSI, &msi },
		{ VM_PPTDEV_MSIX, &msix },
		{ VM_PPTDEV_DISABLE_MSIX, &device },
	};
	char name[32], own[64];
	int error = EPERM, fd;

	vm_name_next(name, sizeof(name));
	if (sysctlbyname("hw.vmm.create", NULL, NULL, name, strlen(name)) != 0)
		return (errno);
	(void)snprintf(own, sizeof(own), "/dev/vmm/%s", name);
	if ((fd = open(own, O_RDWR)) < 0)
		error = errno == EPERM ? ENXIO : errno;
	for (size_t i = 0; i < nitems(calls) && error == EPERM; i++) {
		errno = 0;
		if (ioctl(fd, calls[i].call, calls[i].argument) == 0 ||
		    errno != EPERM)
			error = errno;
	}
	(void)close(fd);
	(void)sysctlbyname("hw.vmm.destroy", NULL, NULL, name, strlen(name));
	return (error);
}

static int
try_open(void)
{
	int fd = open(path, O_RDWR);

	return (fd < 0 ? errno : 0);
}

static int
try_map(void)
{
	int fd = open(path, O_RDWR);

	if (fd < 0)
		return (errno);
	return (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ?
	    errno : 0);
}

static int
try_destroy(void)
{
	return (sysctlbyname("hw.vmm.destroy", NULL, NULL, host_vm,
	    strlen(host_vm)) == 0 ? 0 : errno);
}

static int
try_list(void)
{
	DIR *directory = opendir("/dev/vmm");
	struct dirent *entry;

	if (directory == NULL)
		return (errno);
	while ((entry = readdir(directory)) != NULL) {
		if (strcmp(entry->d_name, host_vm) == 0)
			return (0);
	}
	return (ENOENT);
}

struct act {
	const char	*what;
	int		(*act)(void);
	int		answers[ACTORS];	/* UNTRIED: not tried */
};
#define	UNTRIED	-1

/* Destroying is last, because it works for root. */
static const struct act acts[] = {
#ifdef VMMCTL_VM_CREATE
	{ "opening /dev/vmmctl", try_control, { 0, EACCES, EPERM, 0 } },
#endif
	{ "creating a VM", try_create, { 0, EPERM, EPERM, 0 } },
	{ "using a PCI device", try_pass_through, { UNTRIED, EPERM, EPERM,
	    EPERM } },
	{ "listing the host's VM", try_list, { 0, 0, ENOENT, ENOENT } },
	{ "opening the host's VM", try_open, { 0, EACCES, ENOENT, ENOENT } },
	{ "mapping the host's VM", try_map, { 0, EACCES, ENOENT, ENOENT } },
	{ "destroying the host's VM", try_destroy,
	    { 0, EPERM, EPERM, EINVAL } },
};

static void
become(enum actor actor)
{
	if (actor == NOBODY && (setgid(65534) != 0 || setuid(65534) != 0))
		_exit(200);
	if (actor == JAIL || actor == JAIL_VMM)
		enter_jail(actor == JAIL_VMM);
}

static void
matrix(const void *arg)
{
	enum actor actor = *(const enum actor *)arg;
	struct vm *vm = vm_new();
	int status;
	pid_t pid;

	(void)strlcpy(host_vm, vm->name, sizeof(host_vm));
	(void)snprintf(path, sizeof(path), "/dev/vmm/%s", host_vm);
	for (size_t i = 0; i < nitems(acts); i++) {
		if ((acts[i].act == try_destroy && actor == ROOT) ||
		    acts[i].answers[actor] == UNTRIED)
			continue;
		if ((pid = fork()) == 0) {
			become(actor);
			_exit(acts[i].act());
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			fail("fork: %s", strerror(errno));
		if (WIFEXITED(status) && WEXITSTATUS(status) == 200)
			fail("this process cannot become %s", actors[actor]);
		check(WIFEXITED(status) &&
		    WEXITSTATUS(status) == acts[i].answers[actor],
		    "%s by %s: %s, not %s", acts[i].what, actors[actor],
		    strerror(WEXITSTATUS(status)),
		    strerror(acts[i].answers[actor]));
	}
	RUN(vm, 0x90);
	expect_done(vm);
	vm_free(vm);
}

#define	BY(_actor)	&(const enum actor){ _actor }
static const struct test tests[] = {
	{ "access.root", "root may use vmm", matrix, BY(ROOT) },
	{ "access.nobody",
	    "the user nobody may not use vmm", matrix, BY(NOBODY) },
	{ "access.jail", "a jail without allow.vmm may not use vmm", matrix,
	    BY(JAIL) },
	{ "access.jail_vmm",
	    "a jail with allow.vmm may use its own VMs only", matrix,
	    BY(JAIL_VMM) },
};

GROUP(access, tests);
