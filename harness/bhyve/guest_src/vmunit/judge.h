/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _JUDGE_H_
#define	_JUDGE_H_

#include <stdatomic.h>

#include "vmunit.h"

#define	NOTE_BYTES	4096

/* Data shared by the process of a group and the process that watches it. */
struct shared {
	_Atomic unsigned running;	/* the current test, + 1; 0: none */
	_Atomic unsigned next;		/* the first test not begun */
	_Atomic bool failed;
	_Atomic unsigned patience;	/* seconds for the current test */
	char		notes[NOTE_BYTES];
	char		skipped[256];
	unsigned	number;		/* of the last line of TAP */
	unsigned	failures;
};

extern struct shared *shared;
extern volatile sig_atomic_t late;

/* All groups, in order. */
extern const struct group modrm_group, string_group, fault_group, cpuid_group,
    msr_group, exception_group, state_group, instruction_group, lapic_group,
    ioapic_group, legacy_group, hpet_group, rtc_group, clock_group, memory_group,
    gla_group, capability_group, smp_group, second_group, end_group,
    access_group, wear_group, interrupt_group, library_group,
    fresh_group, sleep_group, stuck_group, registers_group, task_group,
    x2apic_group, legacy_more_group, ioctl_group;

#define	PATIENCE_S	8

void	judge(const struct test *);
void	report(const struct test *, bool, double);

#endif /* !_JUDGE_H_ */
