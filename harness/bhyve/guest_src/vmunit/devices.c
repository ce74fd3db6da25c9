/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Access to a guest's devices. */

#include <time.h>

#include "devices.h"

uint32_t
lapic(struct vm *vm, unsigned offset)
{
	return ((uint32_t)g_read(vm, LAPIC + offset, 4));
}

void
set_lapic(struct vm *vm, unsigned offset, uint32_t value)
{
	g_write(vm, LAPIC + offset, 4, value);
}

/* The bit of a vector in IRR, ISR or TMR. */
bool
lapic_bit(struct vm *vm, unsigned set, unsigned vector)
{
	return ((lapic(vm, set + vector / 32 * 0x10) >> vector % 32 & 1) != 0);
}

/* A VM whose APIC is enabled; `flags` (H_*) say what interrupt handlers do. */
struct vm *
vm_with_lapic(uint32_t flags)
{
	struct vm *vm = vm_new();

	set_lapic(vm, L_SVR, 0x1ff);
	handlers(vm, flags);
	return (vm);
}

/*
 * sti; nop; nop; cli: all pending interrupts are delivered one after another.
 */
void
window(struct vm *vm)
{
	RUN(vm, 0xfb, 0x90, 0x90, 0xfa);
}

uint32_t
ioapic(struct vm *vm, unsigned number)
{
	g_write(vm, IOAPIC, 4, number);
	return ((uint32_t)g_read(vm, IOAPIC + 0x10, 4));
}

void
set_ioapic(struct vm *vm, unsigned number, uint32_t value)
{
	g_write(vm, IOAPIC, 4, number);
	g_write(vm, IOAPIC + 0x10, 4, value);
}

/* Route a pin to the only APIC: vector, delivery mode, trigger, mask. */
void
route(struct vm *vm, unsigned pin, uint32_t low)
{
	set_ioapic(vm, REDIR(pin) + 1, 0);
	set_ioapic(vm, REDIR(pin), low);
}

uint64_t
hpet(struct vm *vm, unsigned offset, int size)
{
	return (g_read(vm, HPET + offset, size));
}

void
set_hpet(struct vm *vm, unsigned offset, int size, uint64_t value)
{
	g_write(vm, HPET + offset, size, value);
}

void
wait_ms(unsigned milliseconds)
{
	struct timespec time = { .tv_sec = milliseconds / 1000,
	    .tv_nsec = (long)(milliseconds % 1000) * 1000000 };

	while (nanosleep(&time, &time) != 0)
		continue;
}
