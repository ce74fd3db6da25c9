/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "vmmfuzz.h"

uint64_t
next(struct rng *rng)
{
	uint64_t z;

	/* splitmix64 */
	z = rng->state += 0x9e3779b97f4a7c15;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return (z ^ (z >> 31));
}

uint64_t
below(struct rng *rng, uint64_t limit)
{
	return (next(rng) % limit);
}

bool
one_in(struct rng *rng, unsigned times)
{
	return (below(rng, times) == 0);
}

uint64_t
odd_number(struct rng *rng)
{
	static const uint64_t odd[] = {
		0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 63, 64, 127, 128, 255, 256,
		4095, 4096, 4097, 65535, 65536, 1 << 20, INT_MAX, UINT_MAX,
		(uint64_t)INT_MAX + 1, (uint64_t)UINT_MAX + 1, -1ULL, -2ULL,
		-4096ULL, INT64_MAX, (uint64_t)INT64_MAX + 1,
		(uint64_t)INT32_MIN, 1ULL << 32, 3ULL << 30, 4ULL << 30,
		1ULL << 46, 1ULL << 47, 1ULL << 52, 0xfee00000, 0xfec00000,
		0xfed00000, 0xffff800000000000, 0xfffff80000000000,
		0xffffffff80200000,
	};
	uint64_t value;

	value = odd[below(rng, nitems(odd))];
	if (one_in(rng, 8))
		value += below(rng, 3) - 1;
	return (one_in(rng, 6) ? next(rng) : value);
}

/* Usually small enough to be valid. */
uint64_t
number(struct rng *rng, uint64_t limit)
{
	return (one_in(rng, 5) ? odd_number(rng) : below(rng, limit));
}

void *
pointer(struct rng *rng, size_t length)
{
	switch (below(rng, 10)) {
	case 0:
		return (NULL);
	case 1:
		return (edge - below(rng, length + 1));
	case 2:
		return (readonly);
	case 3:
		return ((void *)(uintptr_t)odd_number(rng));
	default:
		return (good + below(rng, 64) * 8);
	}
}

void
bytes(struct rng *rng, void *buffer, size_t length)
{
	unsigned char *at = buffer;

	for (size_t i = 0; i < length; i++)
		at[i] = next(rng);
}

int
vcpu(struct rng *rng)
{
	return (one_in(rng, 6) ? (int)odd_number(rng) : (int)below(rng, 2));
}

int
reg(struct rng *rng)
{
	/* Negative numbers name fields of the VMCS. */
	static const uint32_t fields[] = {
		0x0000, 0x0800, 0x0c00, 0x2000, 0x201a, 0x2800, 0x2c00, 0x4000,
		0x400c, 0x4012, 0x4402, 0x4800, 0x4c00, 0x6000, 0x6800, 0x6c00,
		0x6c14, 0x6c16,
	};

	if (one_in(rng, 10))
		return ((int)(0x80000000 | fields[below(rng, nitems(fields))]));
	return ((int)number(rng, VM_REG_LAST + 1));
}

void
name_of_vm(struct rng *rng, char *name, size_t size)
{
	size_t length;

	/* Rarely the round's own VM: without it most calls would fail. */
	if (one_in(rng, 40)) {
		(void)snprintf(name, size, "%s", vm_name);
		return;
	}
	switch (below(rng, 8)) {
	case 0:
		bytes(rng, name, size);
		break;
	case 1:
		length = below(rng, size);
		memset(name, 'a' + (int)below(rng, 26), length);
		name[length] = '\0';
		break;
	case 2:
		(void)snprintf(name, size, "other%ju/%s",
		    (uintmax_t)below(rng, 3), one_in(rng, 2) ? "x" : "..");
		break;
	case 3:
		(void)snprintf(name, size, "other\"%c",
		    (int)below(rng, 255) + 1);
		break;
	default:
		(void)snprintf(name, size, "other%ju",
		    (uintmax_t)below(rng, 4));
	}
}
