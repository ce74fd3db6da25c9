/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* amd64/fwctl.c: requests of bhyve's own firmware, through two ports. */

#include <sys/param.h>
#include <sys/wait.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

#define	OUT		0x510
#define	IN		0x511
#define	GET		3
#define	GET_LEN		4
#define	TXID		0x12345678
#define	HEADER		12

static void
ident(const char *when)
{
	char said[5] = "";

	port_out(OUT, 2, 0);
	for (int i = 0; i < 4; i++)
		said[i] = (char)port_in(IN, 1);
	same(when, said, "BHYV");
}

static void
start(void)
{
	fwctl_init();
	ident("the signature");
}

static void
send_head(uint32_t length, uint32_t type)
{
	port_out(OUT, 4, length);
	port_out(OUT, 4, type);
	port_out(OUT, 4, TXID);
}

/* A request with `length` bytes of a name, sent in whole words. */
static void
request(uint32_t type, const char *name, uint32_t length)
{
	char padded[128];
	uint32_t word;

	memset(padded, 0, sizeof(padded));
	(void)strlcpy(padded, name, sizeof(padded));
	send_head(HEADER + length, type);
	for (uint32_t at = 0; at < length; at += sizeof(word)) {
		memcpy(&word, padded + at, sizeof(word));
		port_out(OUT, 4, word);
	}
}

/* The answer: its error code and its data. */
static uint32_t
answer(uint32_t type, uint32_t *data, size_t words)
{
	uint32_t error, length;

	length = port_in(IN, 4);
	if (length < 16 || length > 16 + 4 * words) {
		miss("the answer's length is %u", length);
		return (UINT32_MAX);
	}
	equal("the answer's type", port_in(IN, 4), type);
	equal("the answer's id", port_in(IN, 4), TXID);
	error = port_in(IN, 4);
	for (uint32_t i = 0; i < (length - 16) / 4; i++)
		data[i] = port_in(IN, 4);
	return (error);
}

static void
gets(uint32_t length)
{
	uint32_t data[16] = { 0 };

	request(GET_LEN, "hw.ncpu", length);
	equal("the error", answer(GET_LEN, data, nitems(data)), 0);
	equal("the length of hw.ncpu", data[0], sizeof(int));
	memset(data, 0, sizeof(data));
	request(GET, "hw.ncpu", length);
	equal("the error", answer(GET, data, nitems(data)), 0);
	equal("the length of hw.ncpu", data[0], sizeof(int));
	equal("hw.ncpu", data[2], 3);
}

static void
get(void)
{
	start();
	gets(8);
	gets(8);
}

static void
odd(void)
{
	uint32_t data[16];

	start();
	/* Shorter than a word: no such name exists, but there is an answer. */
	for (uint32_t length = 1; length <= 3; length++) {
		request(GET, "cpu", length);
		if (answer(GET, data, nitems(data)) == 0)
			miss("a name of %u bytes exists", length);
	}
	/* A name and its NUL need not fill the last word. */
	for (uint32_t length = 5; length <= 8; length++)
		gets(length);
}

static void
unknown(void)
{
	uint32_t data[16];

	start();
	request(GET, "hw.nothing", 12);
	if (answer(GET, data, nitems(data)) == 0)
		miss("hw.nothing exists");
	request(77, "hw.ncpu", 8);
	if (answer(77, data, nitems(data)) == 0)
		miss("request 77 is known");
	send_head(HEADER, 1);
	if (answer(1, data, nitems(data)) == 0)
		miss("request 1 is known");
	gets(8);
}

static void
too_long(void)
{
	uint32_t data[16];

	start();
	send_head(HEADER + 84, GET);
	for (int i = 0; i < 21; i++)
		port_out(OUT, 4, 0x61616161);
	if (answer(GET, data, nitems(data)) == 0)
		miss("a name of 84 bytes is accepted");
	gets(8);
}

static void
resets(void)
{
	start();
	ident("before a request");
	for (int words = 1; words <= 4; words++) {
		send_head(HEADER + 16, GET);
		for (int i = 3; i < words; i++)
			port_out(OUT, 4, 0);
		ident("in the middle of a request");
	}
	for (int words = 0; words <= 6; words++) {
		request(GET, "hw.ncpu", 8);
		for (int i = 0; i < words; i++)
			(void)port_in(IN, 4);
		ident("in the middle of an answer");
	}
	gets(8);
}

static void
signature_twice(void)
{
	start();
	port_out(OUT, 2, 0);
	(void)port_in(IN, 1);
	(void)port_in(IN, 1);
	ident("in the middle of the signature");
	gets(8);
}

static void
idle(void)
{
	start();
	equal("an answer without a request", port_in(IN, 4), UINT32_MAX);
	gets(8);
}

const struct unit units[] = {
	{ "fwctl.get", "hw.ncpu and its length", get },
	{ "fwctl.odd", "a request may end in the middle of a word", odd },
	{ "fwctl.unknown", "an unknown name or request is an error", unknown },
	{ "fwctl.long", "a name that is too long is an error", too_long },
	{ "fwctl.reset", "the signature can be requested at any time", resets },
	{ "fwctl.signature",
	    "reading the signature can begin again", signature_twice },
	{ "fwctl.idle", "without a request there is no answer", idle },
};
const size_t nunits = nitems(units);
