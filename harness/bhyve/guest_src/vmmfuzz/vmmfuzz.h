/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _VMMFUZZ_H_
#define	_VMMFUZZ_H_

#include <sys/param.h>
#include <sys/ioccom.h>
#include <sys/sysctl.h>

#include <machine/vmm.h>
#include <machine/vmm_dev.h>
/* FreeBSD 14's header of ioctls does not include this one. */
#if __has_include(<machine/vmm_snapshot.h>)
#include <machine/vmm_snapshot.h>
#endif
/* 15 moved the machine-independent parts here. */
#if __has_include(<dev/vmm/vmm_dev.h>)
#include <dev/vmm/vmm_dev.h>
#endif
#if __has_include(<dev/vmm/vmm_mem.h>)
#include <dev/vmm/vmm_mem.h>
#endif

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define	ARG_BYTES	IOCPARM_MAX
#define	MAX_THREADS	4
#define	MAX_OIDS	128
#define	TICK_US		20000		/* how long a call may sleep */
#define	STALL_US	3000000		/* no call ends, so the round is ended */
#define	HANG_US		10000000	/* even SIGKILL does not end it: a hang */

struct rng {
	uint64_t	state;
};

struct thread {
	struct rng	rng;
	int		number;
	int		fd;		/* the round's VM */
	uint32_t	calls;
	unsigned char	arg[ARG_BYTES] __aligned(16);
};

/* Data that outlives a round's process. */
struct shared {
	_Atomic uint64_t calls;
	_Atomic uint32_t at[MAX_THREADS];	/* call number + 1 of a round */
	_Atomic uint32_t op[MAX_THREADS];
	_Atomic uint32_t counts[128][ELAST + 2];
};

enum kind { IOCTL, CONTROL, RAW, SYSCTL, FILEIO, MAPPING };

struct op {
	const char	*name;
	enum kind	kind;
	unsigned long	cmd;
	void		(*fill)(struct thread *, void *);
	int		weight;
	/*
	 * The answer depends only on the calls before it; -a makes only these.
	 */
	bool		steady;
	/* So does the output, and it contains no address of ours. */
	bool		shown;
};

struct oid {
	int		mib[CTL_MAXNAME];
	size_t		length;
	bool		names_vm;
};

/*
 * Calls that are known to harm the stock module, each with the name of its file
 * in harness/bhyve/known/; -x leaves them out. ANY_RUN is a call that an
 * emulator may not survive.
 */
enum harm { ANY_RUN, DEVMEM_NAME, LAPIC_MSI, RENDEZVOUS, RTC_TIME, VMCS_FIELD,
	HARMS };

/* Data shared by the rounds; main.c. */
extern struct shared *shared;
extern struct oid oids[MAX_OIDS];
extern size_t oid_count;
extern uint64_t seed;
extern uint32_t round_number;
extern int control, console;
extern bool dry;
extern bool answers;			/* print each call's answer */
extern char vm_name[32];
extern char *good, *edge, *readonly;	/* 64 KiB; ends at an unmapped page */
extern bool avoided[HARMS];

/* Numbers that are almost valid; numbers.c. */
uint64_t next(struct rng *);
uint64_t below(struct rng *, uint64_t);
bool	one_in(struct rng *, unsigned);
uint64_t odd_number(struct rng *);
uint64_t number(struct rng *, uint64_t);
void	*pointer(struct rng *, size_t);
void	bytes(struct rng *, void *, size_t);
int	vcpu(struct rng *);
int	reg(struct rng *);
void	name_of_vm(struct rng *, char *, size_t);

/* The possible calls; calls.c. */
extern const struct op ops[];
extern const size_t op_count;
const struct op *draw(struct rng *);

/* Making a call; make.c. */
void	make_call(struct thread *);

/* A round with this number of calls; round.c. False if it hangs. */
bool	run_round(uint32_t);

#endif /* !_VMMFUZZ_H_ */
