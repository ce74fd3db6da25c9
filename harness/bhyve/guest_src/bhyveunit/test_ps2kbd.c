/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* amd64/ps2kbd.c: the keyboard of the keyboard controller. */

#include <sys/param.h>

#include <stdio.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

int raw_stdio;

void
atkbdc_event(struct atkbdc_softc *sc __unused, int keyboard __unused)
{
}

const char *
get_config_value(const char *path __unused)
{
	return (NULL);
}

void
console_kbd_register(kbd_event_func_t event __unused, void *arg __unused,
    int priority __unused)
{
}

static struct ps2kbd_softc *keyboard;

/* Send bytes, and compare all answers. */
static void
talk(const char *what, const uint8_t *sent, size_t nsent, const uint8_t *wanted,
    size_t nwanted)
{
	uint8_t got;

	if (keyboard == NULL)
		keyboard = ps2kbd_init(NULL);
	for (size_t i = 0; i < nsent; i++)
		ps2kbd_write(keyboard, sent[i]);
	for (size_t i = 0; i < nwanted; i++) {
		if (ps2kbd_read(keyboard, &got) == -1) {
			miss("%s: byte %zu of the answer is missing", what, i);
			return;
		}
		if (got != wanted[i])
			miss("%s: byte %zu of the answer is %#x, not %#x", what,
			    i, got, wanted[i]);
	}
	if (ps2kbd_read(keyboard, &got) != -1)
		miss("%s: %#x is left", what, got);
}

#define	TALK(what, sent, ...) do {					\
	static const uint8_t wanted[] = { __VA_ARGS__ };		\
	talk((what), (const uint8_t *)(sent), sizeof(sent) - 1, wanted,	\
	    sizeof(wanted));						\
} while (0)

static void
commands(void)
{
	TALK("reset", "\xff", 0xfa, 0xaa);
	TALK("set defaults", "\xf6", 0xfa);
	TALK("disable", "\xf5", 0xfa);
	TALK("enable", "\xf4", 0xfa);
	TALK("identify", "\xf2", 0xfa, 0xab, 0x83);
	TALK("echo", "\xee", 0xee);
	TALK("lamps", "\xed\x07", 0xfa, 0xfa);
	TALK("rate", "\xf3\x20", 0xfa, 0xfa);
	TALK("scan code set", "\xf0\x02", 0xfa, 0xfa);
}

static void
forgets(void)
{
	/* These commands discard keys that were typed before. */
	TALK("echo, then reset", "\xee\xff", 0xfa, 0xaa);
	TALK("echo, then defaults", "\xee\xf6", 0xfa);
	TALK("echo, then enable", "\xee\xf4", 0xfa);
}

static void
overflows(void)
{
	uint8_t got;
	int bytes = 0;

	keyboard = ps2kbd_init(NULL);
	for (int i = 0; i < 100; i++)
		ps2kbd_write(keyboard, 0xee);
	while (ps2kbd_read(keyboard, &got) != -1 && bytes < 200) {
		equal("an echo", got, 0xee);
		bytes++;
	}
	if (bytes == 0 || bytes > 100)
		miss("%d bytes came back for 100", bytes);
	TALK("reset", "\xff", 0xfa, 0xaa);
}

const struct unit units[] = {
	{ "ps2kbd.commands", "each command is acknowledged", commands },
	{ "ps2kbd.forget", "reset, defaults and enable empty the buffer",
	    forgets },
	{ "ps2kbd.overflow", "more than the buffer holds does no harm",
	    overflows },
};
const size_t nunits = nitems(units);
