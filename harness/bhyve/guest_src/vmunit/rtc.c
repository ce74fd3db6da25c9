/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The real-time clock (MC146818A). */

#include <errno.h>
#include <string.h>
#include <time.h>

#include "devices.h"

#define	A		10
#define	B		11
#define	C		12
#define	D		13
#define	CENTURY		0x32
#define	B_24		0x02
#define	B_BINARY	0x04
#define	B_UPDATE	0x10
#define	B_ALARM		0x20
#define	B_PERIODIC	0x40
#define	B_HALT		0x80

static uint8_t
get(struct vm *vm, uint8_t offset)
{
	outb(vm, 0x70, offset);
	return (inb(vm, 0x71));
}

static void
set(struct vm *vm, uint8_t offset, uint8_t value)
{
	outb(vm, 0x70, offset);
	outb(vm, 0x71, value);
}

/* 2026-11-25 23:58:57, a Wednesday */
#define	MOMENT		1795651137

static void
expect_time(struct vm *vm, const char *format, const uint8_t wanted[8])
{
	static const uint8_t offsets[] = { 0, 2, 4, 6, 7, 8, 9, CENTURY };
	static const char *const names[] = { "seconds", "minutes", "hours",
	    "day of week", "day", "month", "year", "century" };

	for (size_t i = 0; i < nitems(offsets); i++) {
		uint8_t value = get(vm, offsets[i]);

		/* A second may pass during the reads. */
		check(value == wanted[i] || (i == 0 && value == wanted[0] + 1),
		    "%s: %s is %#x, not %#x", format, names[i], value,
		    wanted[i]);
	}
}

static void
formats(const void *arg __unused)
{
	struct vm *vm = vm_new();
	time_t now = 0;

	check(vm_rtc_settime(vm->ctx, MOMENT) == 0, "it cannot be set: %s",
	    strerror(errno));
	check(vm_rtc_gettime(vm->ctx, &now) == 0 && now - MOMENT <= 1 &&
	    now >= MOMENT, "it is %jd", (intmax_t)now);
	set(vm, B, B_24);
	expect_time(vm, "BCD", (const uint8_t []){ 0x57, 0x58, 0x23, 4, 0x25,
	    0x11, 0x26, 0x20 });
	set(vm, B, B_24 | B_BINARY);
	expect_time(vm, "binary", (const uint8_t []){ 57, 58, 23, 4, 25, 11,
	    26, 20 });
	set(vm, B, 0);
	expect_time(vm, "BCD, 12 hours", (const uint8_t []){ 0x57, 0x58, 0x91,
	    4, 0x25, 0x11, 0x26, 0x20 });
	set(vm, B, B_BINARY);
	expect_time(vm, "binary, 12 hours", (const uint8_t []){ 57, 58,
	    0x80 + 11, 4, 25, 11, 26, 20 });
	/* In 12-hour mode midnight and noon are 12. */
	check(vm_rtc_settime(vm->ctx, MOMENT + 183) == 0, "it cannot be set");
	equal("the hour after midnight", get(vm, 4), 12);
	check(vm_rtc_settime(vm->ctx, MOMENT + 183 + 43200) == 0,
	    "it cannot be set");
	equal("the hour after noon", get(vm, 4), 12 | 0x80);
	vm_free(vm);
}

/* Registers A to D: A shows no update in progress, D a valid time. */
static void
control(const void *arg __unused)
{
	struct vm *vm = vm_new();

	equal("register A", get(vm, A), 0x20);
	equal("register B", get(vm, B), 0x02);
	equal("register D", get(vm, D), 0x80);
	set(vm, D, 0);
	equal("register D, written", get(vm, D), 0x80);
	set(vm, A, 0xa6);
	equal("register A, update in progress", get(vm, A), 0x26);
	set(vm, C, 0xff);
	equal("register C", get(vm, C), 0);
	equal("port 70", inb(vm, 0x70), 0xff);
	/* Bit 7 of port 70 is the NMI mask and not part of the index. */
	equal("register D by 8D", get(vm, 0x80 | D), 0x80);
	vm_free(vm);
}

static void
written(const void *arg __unused)
{
	static const uint8_t offsets[] = { 0, 2, 4, 7, 8, 9, CENTURY };
	static const uint8_t values[] = { 0x05, 0x04, 0x03, 0x29, 0x02, 0x24,
	    0x20 };
	struct vm *vm = vm_new();
	time_t now = 0;

	/* 2024-02-29 03:04:05, while updates are halted */
	set(vm, B, B_24 | B_HALT);
	for (size_t i = 0; i < nitems(offsets); i++)
		set(vm, offsets[i], values[i]);
	wait_ms(1100);
	for (size_t i = 0; i < nitems(offsets); i++)
		equal_at("while halted", offsets[i], get(vm, offsets[i]),
		    values[i]);
	set(vm, B, B_24);
	check(vm_rtc_gettime(vm->ctx, &now) == 0 && now >= 1709175845 &&
	    now <= 1709175846, "it is %jd", (intmax_t)now);
	vm_free(vm);
}

/* Hours in 12-hour mode, written by a guest; BCD and binary. */
static void
hours(const void *arg __unused)
{
	static const struct { uint8_t bcd, binary; unsigned hour; } all[] = {
		{ 0x12, 12, 0 }, { 0x01, 1, 1 }, { 0x11, 11, 11 },
		{ 0x92, 0x8c, 12 }, { 0x81, 0x81, 13 }, { 0x91, 0x8b, 23 },
	};
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(all); i++) {
		for (unsigned binary = 0; binary < 2; binary++) {
			uint8_t mode = binary ? B_BINARY : 0;
			time_t now = 0;

			(void)vm_rtc_settime(vm->ctx, MOMENT);
			set(vm, B, mode | B_HALT);
			set(vm, 4, binary ? all[i].binary : all[i].bcd);
			set(vm, B, mode);
			(void)vm_rtc_gettime(vm->ctx, &now);
			equal_at(binary ? "the hour, binary," : "the hour, BCD,",
			    all[i].hour, (unsigned)(now / 3600 % 24),
			    all[i].hour);
			set(vm, B, B_24 | mode);
			equal_at("in 24 hours", all[i].hour, get(vm, 4),
			    binary ? all[i].hour : all[i].hour / 10 << 4 |
			    all[i].hour % 10);
		}
	}
	vm_free(vm);
}

/* Dates at the ends of months, years and centuries. */
static void
dates(const void *arg __unused)
{
	static const struct { uint8_t fields[7]; time_t time; } all[] = {
		/* seconds, minutes, hours, day, month, year, century */
		{ { 0x00, 0x00, 0x00, 0x01, 0x01, 0x70, 0x19 }, 0 },
		{ { 0x59, 0x59, 0x23, 0x31, 0x12, 0x99, 0x19 }, 946684799 },
		{ { 0x00, 0x00, 0x00, 0x29, 0x02, 0x00, 0x20 }, 951782400 },
		{ { 0x08, 0x14, 0x03, 0x19, 0x01, 0x38, 0x20 }, 2147483648 },
		{ { 0x00, 0x00, 0x12, 0x01, 0x03, 0x00, 0x21 }, 4107585600 },
	};
	static const uint8_t offsets[] = { 0, 2, 4, 7, 8, 9, CENTURY };
	struct vm *vm = vm_new();

	for (size_t i = 0; i < nitems(all); i++) {
		time_t now = -1;

		set(vm, B, B_24 | B_HALT);
		for (size_t j = 0; j < nitems(offsets); j++)
			set(vm, offsets[j], all[i].fields[j]);
		set(vm, B, B_24);
		check(vm_rtc_gettime(vm->ctx, &now) == 0 &&
		    now >= all[i].time && now <= all[i].time + 1,
		    "%jd is %jd", (intmax_t)all[i].time, (intmax_t)now);
		/* The other direction: the guest reads what the host sets. */
		set(vm, B, B_24 | B_HALT);
		set(vm, 9, 0x72);		/* also a leap year */
		set(vm, B, B_24);
		check(vm_rtc_settime(vm->ctx, all[i].time) == 0,
		    "%jd cannot be set", (intmax_t)all[i].time);
		for (size_t j = 3; j < nitems(offsets); j++) {
			if (i != 1)
				equal_at("register", offsets[j],
				    get(vm, offsets[j]), all[i].fields[j]);
		}
	}
	vm_free(vm);
}

static void
nvram(const void *arg __unused)
{
	static const int bad[] = { -1, 0, 9, 13, CENTURY, 128, 1000 };
	struct vm *vm = vm_new();
	uint8_t value = 0;

	for (unsigned offset = 14; offset < 128; offset += 9) {
		if (offset == CENTURY)
			continue;
		set(vm, (uint8_t)offset, (uint8_t)(offset * 3));
		equal_at("NVRAM", offset, get(vm, (uint8_t)offset),
		    (uint8_t)(offset * 3));
		check(vm_rtc_read(vm->ctx, (int)offset, &value) == 0 &&
		    value == (uint8_t)(offset * 3),
		    "from outside %u is %#x", offset, value);
		check(vm_rtc_write(vm->ctx, (int)offset, 0x77) == 0,
		    "%u cannot be written", offset);
		equal_at("NVRAM", offset, get(vm, (uint8_t)offset), 0x77);
	}
	for (size_t i = 0; i < nitems(bad); i++) {
		errno = 0;
		check(vm_rtc_write(vm->ctx, bad[i], 1) != 0 && errno == EINVAL,
		    "writing %d: %s", bad[i], strerror(errno));
	}
	check(vm_rtc_read(vm->ctx, 128, &value) != 0, "128 can be read");
	check(vm_rtc_read(vm->ctx, -1, &value) != 0, "-1 can be read");
	vm_free(vm);
}

/*
 * IRQ 8: periodic at 64 Hz, updates each second; a read of C shows the cause
 * and clears it.
 */
static void
interrupts(const void *arg __unused)
{
	struct vm *vm = vm_with_lapic(H_EOI_LAPIC);
	double began, took;
	uint32_t seen = 0;

	route(vm, 8, 0x98);
	set(vm, A, 0x2a);
	(void)get(vm, C);
	began = uptime();
	set(vm, B, B_24 | B_PERIODIC);
	while (seen < 8 && g_halt(vm)) {
		seen++;
		equal("register C", get(vm, C), 0xc0);
	}
	took = uptime() - began;
	equal("interrupts", count(vm, 0x98), 8);
	check(took > 7.5 / 64 && took < 9.0 / 64 + 0.3,
	    "8 periods of 1/64 s took %.4f s", took);
	set(vm, B, B_24);
	(void)get(vm, C);
	handlers(vm, H_EOI_LAPIC);
	set(vm, B, B_24 | B_UPDATE);
	check(g_halt(vm), "nothing ends HLT");
	equal("register C after an update", get(vm, C), 0x90);
	equal("register C, read again", get(vm, C), 0);
	/* An alarm each second: C0 and above match every value. */
	set(vm, B, B_24);
	(void)get(vm, C);
	for (uint8_t i = 1; i < 6; i += 2)
		set(vm, i, 0xc0);
	set(vm, B, B_24 | B_ALARM);
	check(g_halt(vm), "nothing ends HLT");
	equal("register C after an alarm", get(vm, C), 0xa0);
	vm_free(vm);
}

/*
 * The RTC's second has the right length: it changes at the same moment each
 * time.
 */
static void
rtc_speed(const void *arg __unused)
{
	struct vm *vm = vm_new();
	time_t first = 0, second = 0;
	double before, after;

	check(vm_rtc_settime(vm->ctx, MOMENT) == 0, "it cannot be set");
	before = uptime();
	wait_ms(4500);
	check(vm_rtc_gettime(vm->ctx, &first) == 0, "it cannot be read");
	after = uptime();
	check(first - MOMENT >= 4 && first - MOMENT <= after - before + 0.01,
	    "%jd s passed in %.3f s", (intmax_t)(first - MOMENT),
	    after - before);
	/* With its divider reset (register A) it stops. */
	set(vm, A, 0x60);
	(void)vm_rtc_gettime(vm->ctx, &first);
	wait_ms(2000);
	(void)vm_rtc_gettime(vm->ctx, &second);
	equal("while its divider is reset", (uint64_t)second, (uint64_t)first);
	vm_free(vm);
}

static const struct test tests[] = {
	{ "rtc.formats",
	    "the clock shows BCD, binary, 12 and 24 hours", formats, NULL },
	{ "rtc.control",
	    "registers A to D have the right bits", control, NULL },
	{ "rtc.written",
	    "the host sees the time that the guest sets", written, NULL },
	{ "rtc.hours", "the guest can set hours in 12-hour mode", hours,
	    NULL },
	{ "rtc.dates",
	    "dates at the ends of months and centuries are right", dates,
	    NULL },
	{ "rtc.nvram",
	    "its memory can be used by guest and host", nvram, NULL },
	{ "rtc.interrupts", "periodic, update and alarm interrupts come",
	    interrupts, NULL },
	{ "rtc.speed", "its seconds are the host's, and its divider stops "
	    "them", rtc_speed, NULL },
};

GROUP(rtc, tests);
