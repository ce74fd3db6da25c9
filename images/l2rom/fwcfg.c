/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * QEMU's fw_cfg, which bhyve has with -l bootrom,FILE,fwcfg=qemu, and the E820
 * map in it. The machine is defined in harness/bhyve/l2.py: 64 MiB, one vCPU,
 * and a file from the command line.
 */

#include "rom.h"

#define	SELECTOR	0x510
#define	DATA		0x511
#define	DIRECTORY	0x19u
#define	NAME_BYTES	56u
#define	MOST_FILES	32u

struct file {
	uint32_t	size;
	uint16_t	selector;
	char		name[NAME_BYTES];
};

static void
select(uint32_t item)
{
	outw(SELECTOR, (uint16_t)item);
}

/* `bytes` of the selected item, little endian, or big endian if `big`. */
static uint32_t
number(uint32_t bytes, bool big)
{
	uint32_t value = 0, byte;

	for (uint32_t i = 0; i < bytes; i++) {
		byte = inb(DATA);
		value = big ? value << 8 | byte : value | byte << i * 8;
	}
	return (value);
}

static uint32_t
files(struct file *list)
{
	uint32_t count;

	select(DIRECTORY);
	count = number(4, true);
	for (uint32_t i = 0; i < count && i < MOST_FILES; i++) {
		list[i].size = number(4, true);
		list[i].selector = (uint16_t)number(2, true);
		(void)number(2, true);
		for (uint32_t j = 0; j < NAME_BYTES; j++)
			list[i].name[j] = (char)inb(DATA);
	}
	return (count < MOST_FILES ? count : MOST_FILES);
}

static int
compare(const char *one, const char *other)
{
	while (*one != '\0' && *one == *other) {
		one++;
		other++;
	}
	return ((uint8_t)*one - (uint8_t)*other);
}

static uint32_t
open_file(const char *name)
{
	struct file list[MOST_FILES];
	uint32_t count = files(list);

	for (uint32_t i = 0; i < count; i++) {
		if (compare(list[i].name, name) == 0) {
			select(list[i].selector);
			return (list[i].size);
		}
	}
	return (0);
}

/* Its signature, its revision, and the number of processors. */
void
fwcfg_items(void)
{
	select(0);
	equal("QEMU", number(4, true), 0x51454d55);
	equal("behind its end", inb(DATA), 0);
	select(1);
	equal("the revision: no DMA", number(4, false), 1);
	select(5);
	equal("processors", number(2, false), 1);
	select(0x0f);
	equal("processors at most", number(2, false), 1);
	select(0);
	equal("QEMU, again", number(4, true), 0x51454d55);
	select(0x3f0);
	equal("an unknown item", inb(DATA), 0);
}

/* The directory is sorted, and each file has its own selector. */
void
fwcfg_directory(void)
{
	struct file list[MOST_FILES];
	uint32_t count = files(list);

	if (count < 3)
		wrong("files", count, 3);
	for (uint32_t i = 0; i < count; i++) {
		if (list[i].size == 0)
			wrong("a file's size", 0, 1);
		if (list[i].selector < 0x20 || list[i].selector >= 0x20 + count)
			wrong("a file's selector", list[i].selector, 0x20);
		for (uint32_t j = 0; j < i; j++) {
			if (list[j].selector == list[i].selector)
				wrong("a selector of two files",
				    list[i].selector, 0);
		}
		if (i > 0 && compare(list[i - 1].name, list[i].name) >= 0)
			wrong("a file out of order", i, 0);
	}
	/* The file from the command line, and its end. */
	equal("the word's length", open_file("opt/workbench/word"), 6);
	equal("the word", number(4, true), 0x68656c6c);
	equal("its end", number(2, true), 0x6f00);
	equal("hw.ncpu's length", open_file("opt/bhyve/hw.ncpu"), 4);
	equal("hw.ncpu", number(4, false), 1);
}

/* E820: in order, nothing twice, nothing empty, and all of the memory. */
void
fwcfg_e820(void)
{
	uint32_t size = open_file("etc/e820"), before = 0, before_type = 0;
	uint32_t memory = 0;

	equal("a piece of an entry", size % 20, 0);
	if (size < 40)
		wrong("the map's size", size, 60);
	for (uint32_t at = 0; at + 20 <= size && at < 64 * 20; at += 20) {
		uint32_t base = number(4, false), base_high = number(4, false);
		uint32_t length = number(4, false), high = number(4, false);
		uint32_t type = number(4, false);

		equal("above 4 GiB", base_high | high, 0);
		if (length == 0)
			wrong("an entry's length", 0, 1);
		if (base < before)
			wrong("where an entry begins", base, before);
		if (at != 0 && base == before && type == before_type)
			wrong("an entry that should be one with the last",
			    base, type);
		if (at == 0)
			equal("the first entry", base, 0);
		if (type == 1) {
			memory += length;
			/* The areas of VGA and ROMs are not memory. */
			if (base < 0x100000 && base + length > 0xa0000)
				wrong("memory where VGA is", base, 0x100000);
		}
		before = base + length;
		before_type = type;
	}
	equal("its end", before, 64u << 20);
	if (memory > (64u << 20) - 0x60000 || memory < 60u << 20)
		wrong("memory in all", memory, (64u << 20) - 0x60000);
}
