/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* The parts of the probe and their functions. */

#ifndef PROBE_H
#define	PROBE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#define	PAGE_SIZE	4096
#define	PAGE_ALIGNED	__attribute__((aligned(4096), section(".bss.page")))
#define	PRINTF_LIKE(f, a)	__attribute__((format(printf, f, a)))
#define	nitems(x)	(sizeof(x) / sizeof((x)[0]))

/*
 * FAULT is a string constant, empty in the image that is meant to be used,
 * so that the compiler drops every comparison there.
 */
#ifndef FAULT
#define	FAULT		""
#endif
#define	fault(name)	(__builtin_strcmp(FAULT, name) == 0)

/* string.c */
void	*memcpy(void *, const void *, size_t);
void	*memset(void *, int, size_t);
int	 memcmp(const void *, const void *, size_t);
int	 strcmp(const char *, const char *);
size_t	 strlen(const char *);
int	 format(char *, size_t, const char *, va_list);

/* console.c */
void	 say(const char *, ...) PRINTF_LIKE(1, 2);
void	 power_off(int) __attribute__((noreturn));
void	 bail_out(const char *, ...) PRINTF_LIKE(1, 2)
	    __attribute__((noreturn));

/* trap.c */
void	 trap_init(void);
int	 guarded(void (*)(void *), void *);	/* -1, or the exception */
int	 rdmsr_safe(uint32_t, uint64_t *);	/* 0, or the exception */

/* watchdog.c: the 8254 timer takes L2's processor away. */
#define	WATCHDOG_VECTOR	0x20
#define	WATCHDOG_TICKS	20		/* of 55 ms: L2 has a second */
#define	TICK_SHORT	1193		/* 1 ms */
#define	TICK_LONG	0xffff
void	 watchdog_init(void);
void	 watchdog_arm(uint16_t);
void	 watchdog_disarm(void);
void	 watchdog_ack(void);
int	 watchdog_pending(void);

/*
 * tap.c: every test is a row of a table.  A row runs when all it needs
 * held; a row that cannot run is not ok and names what was missing.
 */
#define	R_MODULE	0x01	/* vmm.ko refuses to load without it */
#define	R_RUN		0x02	/* the L2 part cannot run without it */
#define	R_L2		0x04	/* a step of the L2 part */
#define	R_OPTIONAL	0x08	/* used when present */
#define	R_NEEDS_RUN	0x10	/* needs every R_RUN row */
#define	R_LAST		0x20	/* optional; runs after the verdict */

struct row {
	const char	*name;
	const char	*desc;
	unsigned	flags;
	int		(*fn)(const struct row *);
	const char	*needs[3];
	int		reg, bit, want;		/* for the capability rows */
};

void	 tap_run(const char *, const struct row *, size_t);
int	 tap_held(const char *);
int	 tap_failed(void);
void	 detail(const char *, ...) PRINTF_LIKE(1, 2);

/* nested.c: guest-physical to physical, for EPT and for nested paging. */
#define	MAP_READ	0x1
#define	MAP_WRITE	0x2
#define	MAP_EXEC	0x4
uint64_t nested_init(int);
void	 nested_map(uint64_t, void *, unsigned);

/* vtrun.S: L2's registers that neither VMCS nor VMCB hold. */
struct regs {
	uint64_t	rax, rbx, rcx, rdx, rsi, rdi, rbp;
	uint64_t	r8, r9, r10, r11, r12, r13, r14, r15;
};

/* Why L2 stopped, in terms common to both vendors. */
enum exit_kind {
	EXIT_OTHER,
	EXIT_ENTRY_FAILED,	/* L2 did not start at all */
	EXIT_CPUID,
	EXIT_NESTED,		/* EPT violation or nested page fault */
	EXIT_IO,
	EXIT_CALL,		/* VMCALL or VMMCALL */
	EXIT_INTERRUPT,
	EXIT_HLT,
	EXIT_SILENT,		/* none until the watchdog's limit */
};

struct vexit {
	enum exit_kind	kind;
	uint64_t	reason;		/* as the processor encodes it */
	uint64_t	info;		/* exit qualification or EXITINFO1 */
	uint64_t	gpa;
	uint64_t	gla;		/* VMX only */
	uint64_t	rip, next_rip;
	int		io_out, io_size, io_port;
	int		vector;		/* of the interrupt, VMX only */
	int		error;		/* VM-instruction error */
};

/* The functions of vmx.c and svm.c for l2run.c. */
struct vt {
	int		svm;
	const char	*nested_name;
	void		(*enter)(struct vexit *);
	void		(*set_rip)(uint64_t);
	void		(*flush)(void);
	int		(*check_nested)(const struct vexit *, int write);
	struct regs	*regs;
};

/* l2run.c */
extern uint8_t	l2_data[PAGE_SIZE], l2_hole[PAGE_SIZE];
uint64_t l2_init(int svm);
void	 l2_begin(const struct vt *);
uint64_t l2_cost(void);
int	 l2_launch(const struct row *);
int	 l2_memory(const struct row *);
int	 l2_real_mode(const struct row *);
int	 l2_fault_read(const struct row *);
int	 l2_read_resumed(const struct row *);
int	 l2_fault_write(const struct row *);
int	 l2_write_resumed(const struct row *);
int	 l2_registers(const struct row *);
int	 l2_out(const struct row *);
int	 l2_hypercall(const struct row *);
int	 l2_interrupt(const struct row *);
int	 l2_round_trips(const struct row *);
int	 l2_halt(const struct row *);

/* vmx.c, vmxcaps.c, svm.c */
extern const struct row vmx_rows[], svm_rows[];
extern const size_t vmx_nrows, svm_nrows;
void	 vmx_describe(void);
void	 svm_describe(void);
uint32_t vmx_control(int, uint32_t, uint32_t);
int	 cap_bit(const struct row *, uint64_t, const char *, int);
int	 cpu_long_mode(const struct row *);

#endif /* PROBE_H */
