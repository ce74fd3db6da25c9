/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * vtxprobe: does this computer, real or emulated, have what FreeBSD's vmm.ko
 * needs? It finds out by trying, and reports over COM1 as TAP.
 */

#include "cpu.h"
#include "probe.h"

void	main(void) __attribute__((noreturn));

/* Twelve bytes of a CPUID leaf as text; never anything but ASCII. */
static void
printable(char *dst, const void *src, size_t n)
{
	const char *s = src;
	size_t i;

	for (i = 0; i < n && s[i] != '\0'; i++)
		dst[i] = s[i] < ' ' || s[i] > '~' || s[i] == '"' ? '?' : s[i];
	dst[i] = '\0';
}

static void
describe_cpu(void)
{
	struct cpuid r, b[3];
	char vendor[13], brand[49];
	uint32_t raw[3];
	const char *s;
	unsigned i, family, model;

	r = cpuid(0, 0);
	raw[0] = r.ebx;
	raw[1] = r.edx;
	raw[2] = r.ecx;
	printable(vendor, raw, sizeof(raw));
	r = cpuid(1, 0);
	family = r.eax >> 8 & 0xf;
	model = r.eax >> 4 & 0xf;
	if (family == 6 || family == 15)
		model |= (r.eax >> 16 & 0xf) << 4;
	if (family == 15)
		family += r.eax >> 20 & 0xff;
	brand[0] = '\0';
	if (cpuid(0x80000000, 0).eax >= 0x80000004) {
		for (i = 0; i < 3; i++)
			b[i] = cpuid(0x80000002 + i, 0);
		printable(brand, b, sizeof(b));
	}
	for (s = brand; *s == ' '; s++)
		;
	say("# cpu vendor=%s family=%u model=%u stepping=%u brand=\"%s\"\n",
	    vendor, family, model, r.eax & 0xf, s);

	if ((r.ecx & 1U << 31) != 0) {
		r = cpuid(0x40000000, 0);
		raw[0] = r.ebx;
		raw[1] = r.ecx;
		raw[2] = r.edx;
		printable(vendor, raw, sizeof(raw));
		say("# hypervisor=\"%s\"\n", vendor);
	} else
		say("# hypervisor=none\n");
}

/*
 * The feature bits decide, and where neither is set the vendor does, so
 * that what is missing gets the name it has on that vendor's processors.
 */
static int
use_svm(void)
{
	uint32_t vendor;

	if ((cpuid(1, 0).ecx & 1U << 5) != 0)
		return (0);
	if (cpuid(0x80000000, 0).eax >= 0x80000001 &&
	    (cpuid(0x80000001, 0).ecx & 1U << 2) != 0)
		return (1);
	vendor = cpuid(0, 0).ebx;
	return (vendor == 0x68747541 || vendor == 0x6f677948);
}

/* entry.S does not get this far without it. */
int
cpu_long_mode(const struct row *r)
{
	(void)r;
	return (1);
}

/* FAULT=hide-NAME has a capability taken as missing. */
static int
hidden(const char *name)
{
	const char *f, *h;

	for (f = FAULT, h = "hide-"; *h != '\0'; f++, h++)
		if (*f != *h)
			return (0);
	return (strcmp(f, name) == 0);
}

/* A capability row: bit `bit` of `val`, read from `what`, is r->want. */
int
cap_bit(const struct row *r, uint64_t val, const char *what, int bit)
{
	int set;

	if (hidden(r->name)) {
		detail("taken as missing: FAULT=%s", FAULT);
		return (0);
	}
	set = (int)(val >> bit & 1);
	if (set == r->want)
		return (1);
	detail("%s = 0x%lx: bit %d is %d", what, val, bit, set);
	return (0);
}

void
main(void)
{
	int svm;

	trap_init();
	watchdog_init();

	say("TAP version 13\n");
	if (FAULT[0] != '\0')
		say("# fault=%s\n", FAULT);
	describe_cpu();
	if (fault("trap"))
		__asm__ volatile("ud2");
	svm = use_svm();
	if (svm)
		svm_describe();
	else
		vmx_describe();
	if (svm)
		tap_run("svm", svm_rows, svm_nrows);
	else
		tap_run("vmx", vmx_rows, vmx_nrows);
	power_off(tap_failed() == 0 ? EXIT_HELD : EXIT_NOT_OK);
}
