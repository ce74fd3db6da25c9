/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* qemu_fwcfg.c: files for firmware, read through two ports. */

#include <sys/param.h>
#include <sys/endian.h>
#include <sys/stat.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unit.h"

#define	calloc(count, size)	guarded((count), (size))
#define	free(pointer)		((void)(pointer))
/* The part itself, from the tree under test. */
#include "part.h"
#undef calloc
#undef free

#define	SELECTOR	0x510
#define	DATA		0x511
#define	SIGNATURE	0x00
#define	CPUS		0x05
#define	DIRECTORY	0x19

int
acpi_device_create(struct acpi_device **device __unused, void *softc __unused,
    struct vmctx *ctx __unused, const struct acpi_device_emul *emul __unused)
{
	return (0);
}

void
acpi_device_destroy(struct acpi_device *device __unused)
{
}

int
acpi_device_add_res_fixed_ioport(struct acpi_device *device __unused,
    uint16_t port __unused, uint8_t length __unused)
{
	return (0);
}

const char *
lpc_fwcfg(void)
{
	return ("qemu");
}

static void
start(void)
{
	equal("qemu_fwcfg_init's error", (uint64_t)qemu_fwcfg_init(NULL), 0);
}

static void
item(uint16_t number, void *data, size_t length)
{
	port_out(SELECTOR, 2, number);
	for (size_t i = 0; i < length; i++)
		((uint8_t *)data)[i] = (uint8_t)port_in(DATA, 1);
}

static void
fixed(void)
{
	char said[5] = "";
	uint16_t cpus = 0;

	start();
	item(SIGNATURE, said, 4);
	same("the signature", said, "QEMU");
	item(CPUS, &cpus, sizeof(cpus));
	equal("the number of processors", le16toh(cpus), 3);
}

/* The directory that a guest reads. */
struct entry {
	uint32_t size;
	uint16_t item;
	uint16_t reserved;
	char	name[56];
} __packed;

static struct entry entries[64];

static uint32_t
directory(void)
{
	uint32_t count = 0;

	item(DIRECTORY, &count, sizeof(count));
	count = be32toh(count);
	if (count > nitems(entries)) {
		miss("the directory has %u files", count);
		return (0);
	}
	port_out(SELECTOR, 2, DIRECTORY);
	for (size_t i = 0; i < sizeof(count); i++)
		(void)port_in(DATA, 1);
	for (size_t i = 0; i < count * sizeof(entries[0]); i++)
		((uint8_t *)entries)[i] = (uint8_t)port_in(DATA, 1);
	return (count);
}

/* Add files in the given order; the directory must be complete and sorted. */
static void
order(unsigned count, unsigned step)
{
	static char names[64][24], said[24];
	uint32_t found;

	start();
	for (unsigned i = 0; i < count; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "opt/file%02u",
		    i * step % count);
		equal("the error of adding", (uint64_t)qemu_fwcfg_add_file(
		    names[i], (uint32_t)strlen(names[i]) + 1, names[i]), 0);
	}
	found = directory();
	equal("the number of files", found, count);
	for (unsigned i = 0; i < found; i++) {
		if (i > 0 && strcmp(entries[i - 1].name, entries[i].name) >= 0)
			miss("%s is before %s", entries[i - 1].name,
			    entries[i].name);
		equal("the size", be32toh(entries[i].size), 11);
		item(be16toh(entries[i].item), said, 11);
		same("the content", said, entries[i].name);
	}
}

static void
few(void)
{
	order(5, 3);
}

static void
many_forwards(void)
{
	order(23, 1);
}

static void
many_backwards(void)
{
	order(23, 22);
}

static void
many_mixed(void)
{
	order(23, 7);
}

static void
long_name(void)
{
	char name[80];

	start();
	memset(name, 'x', sizeof(name));
	name[56] = '\0';
	equal("the error of 56 characters", (uint64_t)qemu_fwcfg_add_file(name,
	    1, name), EINVAL);
	name[55] = '\0';
	equal("the error of 55 characters", (uint64_t)qemu_fwcfg_add_file(name,
	    1, name), 0);
	if (directory() == 1)
		same("the name", entries[0].name, name);
}

const struct unit units[] = {
	{ "fwcfg.fixed", "signature and number of processors", fixed },
	{ "fwcfg.few", "files are found in the directory, sorted", few },
	{ "fwcfg.forwards", "more than ten files, each added after the last",
	    many_forwards },
	{ "fwcfg.backwards", "more than ten files, each added before the first",
	    many_backwards },
	{ "fwcfg.mixed",
	    "more than ten files, added in the middle", many_mixed },
	{ "fwcfg.name", "a name can have 55 characters, not 56", long_name },
};
const size_t nunits = nitems(units);
