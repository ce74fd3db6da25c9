/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _VMUNIT_H_
#define	_VMUNIT_H_

#include <sys/param.h>
#include <sys/cpuset.h>

#include <machine/vmm.h>
#include <machine/vmm_dev.h>
/* FreeBSD 15 moved the machine-independent part here. */
#if __has_include(<dev/vmm/vmm_dev.h>)
#include <dev/vmm/vmm_dev.h>
#endif
#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include <stdbool.h>
#include <stdint.h>
#include <vmmapi.h>

/*
 * A test.  The name is group.case; `what` is the claim in one sentence.  With
 * `arg` one function can serve many tests.
 */
struct test {
	const char	*name;
	const char	*what;
	void		(*func)(const void *);
	const void	*arg;
};

/* Tests that belong together; one process runs them one after another. */
struct group {
	const char	*name;
	const struct test *(*tests)(size_t *);
};

#define	GROUP(_name, _tests)						\
static const struct test *						\
_name##_tests(size_t *count)						\
{									\
	*count = nitems(_tests);					\
	return (_tests);						\
}									\
const struct group _name##_group = { #_name, _name##_tests }

/* Judging; judge.c. */
extern bool intel;		/* the processor's vendor; else AMD */
extern bool emulated;		/* L1 runs in Bochs */
extern bool apicv;		/* the processor delivers interrupts itself */
/* AMD's processors require this bit in a guest's EFER (APM 2, 15.5.1). */
#define	EFER_HOST	(intel ? 0ul : (uint64_t)EFER_SVM)
/* The first words of the reason if a case does not apply here. */
#define	N_A	"does not apply: "

void	note(const char *, ...) __printflike(1, 2);
void	fail(const char *, ...) __printflike(1, 2) __dead2;
void	miss(const char *, ...) __printflike(1, 2);
void	skip(const char *, ...) __printflike(1, 2) __dead2;
bool	equal(const char *, uint64_t, uint64_t);
bool	equal_at(const char *, uint64_t, uint64_t, uint64_t);
#define	check(_cond, ...) do {						\
	if (!(_cond))							\
		miss(__VA_ARGS__);					\
} while (0)
double	uptime(void);
void	patience(unsigned);

/*
 * The layout of the guest's 2 MiB of memory.  Everything below 4 GiB is mapped
 * to the same address except the window, which has page tables of its own for
 * the tests.
 */
#define	MEM_BYTES	(2ul << 20)
#define	A_IVT		0x00000u	/* real mode's vectors */
#define	A_GDT		0x01000u
#define	A_TSS		0x01800u
#define	A_IDT64		0x02000u
#define	A_IDT32		0x03000u
#define	A_PDPT_PAE	0x03800u
#define	A_HANDLERS	0x04000u	/* 256 of 16 bytes, common code */
#define	A_HANDLERS32	0x06000u
#define	A_HANDLERS16	0x08000u
#define	A_COUNTS	0x0a000u	/* uint32_t for each vector */
#define	A_FLAGS		0x0a400u	/* what an interrupt's handler does */
#define	A_LAST		0x0a404u	/* the last vector */
#define	A_CODE		0x10000u
#define	A_CODE2		0x12000u	/* follows the window; see paging.c */
#define	A_DATA		0x18000u	/* four pages */
#define	A_STACK		0x1f000u	/* its top */
#define	A_PAGES		0x20000u	/* page tables; see paging.c */
#define	A_AP		0x0b000u	/* start of the second vCPU */

/* What an interrupt handler does: */
#define	H_EOI_LAPIC	0x01u
#define	H_EOI_X2APIC	0x02u
#define	H_EOI_PIC	0x04u
#define	H_EXIT		0x08u		/* ... ends the run */

/* Ports without a device; OUT to them ends a run. */
#define	PORT_DONE	0xf0u
#define	PORT_FAULT	0xf1u
#define	PORT_INTR	0xf2u

#define	LAPIC		0xfee00000u
#define	IOAPIC		0xfec00000u
#define	HPET		0xfed00000u

enum mode { REAL, PROT16, PROT32, LONG64, NO_MODE };

/* Page tables: what the window maps. */
#define	WINDOW		0x40000000u
#define	WINDOW_BYTES	0x4000u
enum window { W_RAM, W_DEVICE, W_HPET, WINDOWS };
#define	DEVICE		0x10000000u	/* guest-physical, no memory there */

struct fault {
	int		vector;		/* -1: none */
	uint64_t	error;
	uint64_t	rip;
	uint64_t	rflags;
};

/* A segment of memory that is free for a device; FreeBSD 14 has four in all. */
#ifdef VM_MAXSYSMEM
#define	SEG_DEVICE	VM_MAXSYSMEM
#else
#define	SEG_DEVICE	3
#endif

#define	MAX_VCPUS	4
struct vm {
	char		name[32];
	struct vmctx	*ctx;
	struct vcpu	*vcpu[MAX_VCPUS];
	int		cpu;		/* the current one */
	int		fd;
	char		*mem;
	enum mode	mode;
	/* The last exit. */
	struct vm_exit	exit;
	cpuset_t	cpus;
	struct fault	fault;
	/* Called for an access to an address without memory. */
	int		(*emulate)(struct vm *);
	void		*arg;
};

/* Virtual machines; vm.c. */
struct vm *vm_new(void);
struct vm *vm_bare(void);
struct vm *vm_shared(void);
void	vm_free(struct vm *);
void	vm_mode(struct vm *, enum mode);
void	vm_forget_shared(void);
void	vm_name_next(char *, size_t);
struct vcpu *vm_cpu(struct vm *, int);
uint64_t reg(struct vm *, int);
void	set_reg(struct vm *, int, uint64_t);
int	step(struct vm *, struct vcpu *);
bool	run(struct vm *);
void	expect_done(struct vm *);
const char *exit_name(int);
extern const uint8_t *guest_code;

/* Pieces of code; code.c. */
#define	RUN(_vm, ...) do {						\
	static const uint8_t _code[] = { __VA_ARGS__ };			\
	code(_vm, _code, sizeof(_code));				\
	(void)run(_vm);							\
} while (0)
void	code(struct vm *, const uint8_t *, size_t);
uint64_t g_in(struct vm *, uint16_t, int);
void	g_out(struct vm *, uint16_t, int, uint32_t);
#define	inb(_vm, _port)		((uint8_t)g_in(_vm, _port, 1))
#define	outb(_vm, _port, _value) g_out(_vm, _port, 1, _value)
uint64_t g_read(struct vm *, uint64_t, int);
void	g_write(struct vm *, uint64_t, int, uint64_t);
bool	g_rdmsr(struct vm *, uint32_t, uint64_t *);
bool	g_wrmsr(struct vm *, uint32_t, uint64_t);
void	g_cpuid(struct vm *, uint64_t, uint64_t, uint64_t [4]);
uint32_t count(struct vm *, int);
void	handlers(struct vm *, uint32_t);
bool	g_halt(struct vm *);

/* Page tables and descriptors; paging.c. */
void	make_tables(char *);
uint64_t cr3_of(enum mode, enum window);

/* The host's own CPUID. */
void	h_cpuid(uint32_t, uint32_t, uint32_t [4]);

/* The tree's instruction emulation, as in bhyve; device.c. */
int	emulate_access(struct vm *);
struct device {
	uint8_t		bytes[WINDOW_BYTES];
	int		reads, writes, size;
	uint64_t	gpa;
};

#endif /* !_VMUNIT_H_ */
