/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * A loader for bhyveload(8), as /boot/userboot.so is one: it asks for the guest's
 * memory and for the environment, puts a program of its own and a line of text
 * into the guest, and lets the guest begin there in 32-bit mode.  The program
 * prints the text on COM1 and powers the machine off.
 */

#include <sys/types.h>
#include <sys/stat.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "userboot.h"

#define	PROGRAM		0x100000u
#define	TEXT		0x180000u
#define	TABLES		0x190000u	/* bhyveload puts a GDT here */
#define	STACK		0x1a0000u
#define	RSP		4		/* as setreg() numbers it */
#define	NAME		"marker="

void	loader_main(struct loader_callbacks *, void *, int, int);

extern const char program[], program_end[];

__asm__(
	".section .rodata\n"
	".code32\n"
	"program:\n"
	"	movl	$0x180000, %esi\n"
	"1:	lodsb\n"
	"	testb	%al, %al\n"
	"	jz	3f\n"
	"	movb	%al, %cl\n"
	"	movw	$0x3fd, %dx\n"
	"2:	inb	%dx, %al\n"
	"	testb	$0x20, %al\n"
	"	jz	2b\n"
	"	movw	$0x3f8, %dx\n"
	"	movb	%cl, %al\n"
	"	outb	%al, %dx\n"
	"	jmp	1b\n"
	"3:	movw	$0x404, %dx\n"
	"	movw	$0x3400, %ax\n"
	"	outw	%ax, %dx\n"
	"4:	hlt\n"
	"	jmp	4b\n"
	"program_end:\n"
	".code64\n"
	".text\n");

void
loader_main(struct loader_callbacks *cb, void *arg, int version, int disks)
{
	uint64_t low, high;
	const char *marker = "none";
	char text[256], *variable;

	if (version < USERBOOT_VERSION_4)
		cb->exit(arg, USERBOOT_EXIT_QUIT);
	for (int i = 0; (variable = cb->getenv(arg, i)) != NULL; i++) {
		if (strncmp(variable, NAME, sizeof(NAME) - 1) == 0)
			marker = variable + sizeof(NAME) - 1;
	}
	cb->getmem(arg, &low, &high);
	(void)snprintf(text, sizeof(text), "USERBOOT runs, marker %s, %ju MiB, "
	    "%d disks\r\n", marker, (uintmax_t)(low >> 20), disks);
	if (cb->copyin(arg, program, PROGRAM,
	    (size_t)(program_end - program)) != 0 ||
	    cb->copyin(arg, text, TEXT, strlen(text) + 1) != 0)
		cb->exit(arg, USERBOOT_EXIT_QUIT);
	cb->setreg(arg, RSP, STACK);
	cb->setgdt(arg, TABLES, 24);
	cb->exec(arg, PROGRAM);
}
