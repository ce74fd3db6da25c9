/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * virtio.c: rings and registers of a legacy virtio device (specification
 * 0.9.5).  The guest's memory and PCI are simulated here.
 */

#include <sys/param.h>
#include <sys/uio.h>

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

int raw_stdio;

#define	GUEST_BYTES	0x10000u
#define	RING		0x1000u		/* of queue 0; 1's is two pages later */
#define	QUEUE		8u
#define	USED(ring)	((ring) + 0x1000u)
#define	AVAIL(ring)	((ring) + QUEUE * 16)

#define	F_NEXT		1
#define	F_WRITE		2
#define	F_INDIRECT	4
#define	C_NOTIFY_ON_EMPTY (1ul << 24)
#define	C_INDIRECT	(1ul << 28)
#define	C_EVENT_IDX	(1ul << 29)

static uint8_t *guest;
static unsigned lintr, msi, msix, last_msix, resets, notified;
static bool msix_on;

void *
paddr_guest2host(struct vmctx *ctx __unused, uintptr_t gaddr, size_t length)
{
	if (gaddr > GUEST_BYTES || length > GUEST_BYTES - gaddr)
		return (NULL);
	return (guest + gaddr);
}

void
pci_lintr_assert(struct pci_devinst *pi __unused)
{
	lintr++;
}

void
pci_lintr_deassert(struct pci_devinst *pi __unused)
{
	lintr = 0;
}

void
pci_lintr_request(struct pci_devinst *pi __unused)
{
}

void
pci_generate_msi(struct pci_devinst *pi __unused, int number __unused)
{
	msi++;
}

void
pci_generate_msix(struct pci_devinst *pi __unused, int number)
{
	msix++;
	last_msix = (unsigned)number;
}

int
pci_msix_enabled(struct pci_devinst *pi __unused)
{
	return (msix_on);
}

int
pci_msix_table_bar(struct pci_devinst *pi __unused)
{
	return (1);
}

int
pci_msix_pba_bar(struct pci_devinst *pi __unused)
{
	return (1);
}

uint64_t
pci_emul_msix_tread(struct pci_devinst *pi __unused, uint64_t offset,
    int size __unused)
{
	return (offset + 0x77);
}

int
pci_emul_msix_twrite(struct pci_devinst *pi __unused, uint64_t offset __unused,
    int size __unused, uint64_t value __unused)
{
	return (0);
}

int
pci_emul_alloc_bar(struct pci_devinst *pi __unused, int idx __unused,
    enum pcibar_type type __unused, uint64_t size __unused)
{
	return (0);
}

int
pci_emul_add_msicap(struct pci_devinst *pi __unused, int count __unused)
{
	return (0);
}

int
pci_emul_add_msixcap(struct pci_devinst *pi __unused, int count __unused,
    int bar __unused)
{
	return (0);
}

static void
reset(void *device)
{
	resets++;
	vi_reset_dev(device);
}

static void
notify(void *device __unused, struct vqueue_info *vq)
{
	notified = 1u << vq->vq_num;
}

static uint32_t config[2];

static int
read_config(void *device __unused, int offset, int size, uint32_t *value)
{
	*value = 0;
	memcpy(value, (char *)config + offset, (size_t)size);
	return (0);
}

static int
write_config(void *device __unused, int offset, int size, uint32_t value)
{
	memcpy((char *)config + offset, &value, (size_t)size);
	return (0);
}

static struct virtio_consts consts = { .vc_name = "unit", .vc_nvq = 2,
    .vc_cfgsize = sizeof(config), .vc_reset = reset, .vc_qnotify = notify,
    .vc_cfgread = read_config, .vc_cfgwrite = write_config,
    .vc_hv_caps = C_NOTIFY_ON_EMPTY | C_INDIRECT | C_EVENT_IDX | 5 };
static struct virtio_softc device;
static struct pci_devinst pci;
static struct vqueue_info queues[2];
static struct vqueue_info *const queue = &queues[0];

#define	get(offset, size)	vi_pci_read(&pci, 0, (offset), (size))
#define	put(offset, size, v)	vi_pci_write(&pci, 0, (offset), (size), (v))
enum { HOST_FEATURES = 0, FEATURES = 4, PFN = 8, NUM = 12, SELECT = 14,
	NOTIFY = 16, STATUS = 18, ISR = 19, CONFIG_VECTOR = 20,
	QUEUE_VECTOR = 22 };

/* A device whose driver has set up queue 0. */
static void
begin(uint64_t features)
{
	/*
	 * Rings have the same alignment in the host's memory as in the
	 * guest's.
	 */
	guest = aligned_alloc(PAGE_SIZE, GUEST_BYTES);
	memset(guest, 0, GUEST_BYTES);
	queues[0].vq_qsize = queues[1].vq_qsize = QUEUE;
	vi_softc_linkup(&device, &consts, &device, &pci, queues);
	put(STATUS, 1, 0);
	put(FEATURES, 4, features);
	put(SELECT, 2, 0);
	put(PFN, 4, RING >> 12);
}

static void
put16(unsigned at, unsigned value)
{
	uint16_t word = (uint16_t)value;

	memcpy(guest + at, &word, sizeof(word));
}

static unsigned
get16(unsigned at)
{
	uint16_t word;

	memcpy(&word, guest + at, sizeof(word));
	return (word);
}

static uint32_t
get32(unsigned at)
{
	uint32_t word;

	memcpy(&word, guest + at, sizeof(word));
	return (word);
}

static void
descriptor(unsigned table, unsigned number, uint64_t address, uint32_t length,
    unsigned flags, unsigned next)
{
	uint8_t *at = guest + table + number * 16;

	memcpy(at, &address, sizeof(address));
	memcpy(at + 8, &length, sizeof(length));
	put16(table + number * 16 + 12, flags);
	put16(table + number * 16 + 14, next);
}

/* Offer a chain that begins at this descriptor. */
static void
offer(unsigned head)
{
	unsigned index = get16(AVAIL(RING) + 2);

	put16(AVAIL(RING) + 4 + index % QUEUE * 2, head);
	put16(AVAIL(RING) + 2, index + 1);
}

static void
registers(void)
{
	begin(~0ul);
	equal("the offered features", get(HOST_FEATURES, 4), consts.vc_hv_caps);
	equal("the accepted features, of all", get(FEATURES, 4),
	    consts.vc_hv_caps);
	put(FEATURES, 4, 4 | 1ul << 31);
	equal("the accepted features, of two", get(FEATURES, 4), 4);
	equal("the queue's size", get(NUM, 2), QUEUE);
	equal("the queue's page", get(PFN, 4), RING >> 12);
	put(SELECT, 2, 1);
	equal("the queue that is selected", get(SELECT, 2), 1);
	equal("another queue's page", get(PFN, 4), 0);
	put(SELECT, 2, 2);
	equal("the size of a queue that does not exist", get(NUM, 2), 0);
	put(STATUS, 1, 7);
	equal("the status", get(STATUS, 1), 7);
	/* Read-only registers, wrong sizes, beyond the end: no effect. */
	put(HOST_FEATURES, 4, 0);
	equal("the offered features", get(HOST_FEATURES, 4), consts.vc_hv_caps);
	equal("two bytes of a register of four", get(HOST_FEATURES, 2),
	    0xffff);
	equal("beyond its configuration", get(20 + sizeof(config), 4),
	    0xffffffff);
	equal("its last byte and one more", get(20 + sizeof(config) - 1, 2),
	    0xffff);
}

/* A reset clears queues, features and vectors. */
static void
reset_device(void)
{
	unsigned before;

	begin(4);
	device.vs_isr = 1;
	before = resets;
	put(STATUS, 1, 0);
	equal("resets", resets - before, 1);
	equal("the accepted features", get(FEATURES, 4), 0);
	put(SELECT, 2, 0);
	equal("the queue's page", get(PFN, 4), 0);
	equal("ISR", get(ISR, 1), 0);
	msix_on = true;
	equal("the vector of changes", get(CONFIG_VECTOR, 2), 0xffff);
	equal("the queue's vector", get(QUEUE_VECTOR, 2), 0xffff);
}

/* The device's own registers come after the vectors, if there are any. */
static void
configuration(void)
{
	begin(0);
	config[0] = 0x11223344;
	config[1] = 0x55667788;
	equal("without MSI-X", get(20, 4), 0x11223344);
	equal("its last byte", get(27, 1), 0x55);
	msix_on = true;
	equal("with MSI-X", get(24, 4), 0x11223344);
	put(28, 2, 0x9999);
	equal("what was written", config[1], 0x55669999);
	put(CONFIG_VECTOR, 2, 3);
	equal("the vector of changes", get(CONFIG_VECTOR, 2), 3);
	put(QUEUE_VECTOR, 2, 1);
	equal("the queue's vector", get(QUEUE_VECTOR, 2), 1);
	equal("nothing of it is configuration", config[0], 0x11223344);
}

static void
notifications(void)
{
	begin(0);
	put(NOTIFY, 2, 1);
	equal("the queue that is notified", notified, 2);
	notified = 0;
	put(NOTIFY, 2, 2);
	equal("a queue that does not exist", notified, 0);
}

/* Chains: read buffers before written ones; order and lengths. */
static void
chains(void)
{
	struct iovec iov[QUEUE];
	struct vi_req request;

	begin(0);
	memset(&request, 0, sizeof(request));
	equal("chains without an offer", (uint64_t)vq_getchain(queue, iov, QUEUE,
	    &request), 0);
	descriptor(RING, 3, 0x5000, 16, F_NEXT, 1);
	descriptor(RING, 1, 0x6000, 512, F_NEXT | F_WRITE, 6);
	descriptor(RING, 6, 0x7000, 1, F_WRITE, 0);
	descriptor(RING, 2, 0x8000, 64, 0, 0);
	offer(3);
	offer(2);
	equal("buffers of the first", (uint64_t)vq_getchain(queue, iov, QUEUE,
	    &request), 3);
	equal("its head", request.idx, 3);
	equal("to be read", (uint64_t)request.readable, 1);
	equal("to be written", (uint64_t)request.writable, 2);
	equal("the first's place", (uintptr_t)iov[0].iov_base -
	    (uintptr_t)guest, 0x5000);
	equal("the first's length", iov[0].iov_len, 16);
	equal("the second's place", (uintptr_t)iov[1].iov_base -
	    (uintptr_t)guest, 0x6000);
	equal("the third's length", iov[2].iov_len, 1);
	equal("buffers of the second", (uint64_t)vq_getchain(queue, iov,
	    QUEUE, &request), 1);
	equal("its head", request.idx, 2);
	equal("chains at the end", (uint64_t)vq_getchain(queue, iov, QUEUE,
	    &request), 0);
	/* Chains that are returned can be taken again. */
	vq_retchains(queue, 2);
	equal("buffers of the first, again", (uint64_t)vq_getchain(queue, iov,
	    QUEUE, &request), 3);
	/*
	 * Room for fewer buffers: all are counted, none is written beyond the
	 * room.
	 */
	vq_retchains(queue, 1);
	memset(iov, 0, sizeof(iov));
	equal("buffers, with room for one", (uint64_t)vq_getchain(queue, iov,
	    1, &request), 3);
	equal("the entry after the room", iov[1].iov_len, 0);
}

static void
indirect(void)
{
	struct iovec iov[QUEUE];
	struct vi_req request;

	begin(C_INDIRECT);
	descriptor(RING, 0, 0x9000, 3 * 16, F_INDIRECT, 0);
	descriptor(0x9000, 0, 0x5000, 16, F_NEXT, 2);
	descriptor(0x9000, 2, 0x6000, 100, F_NEXT | F_WRITE, 1);
	descriptor(0x9000, 1, 0x7000, 1, F_WRITE, 0);
	offer(0);
	equal("buffers", (uint64_t)vq_getchain(queue, iov, QUEUE, &request),
	    3);
	equal("its head", request.idx, 0);
	equal("to be read", (uint64_t)request.readable, 1);
	equal("to be written", (uint64_t)request.writable, 2);
	equal("the second's length", iov[1].iov_len, 100);
}

/*
 * What a driver must not do is an error, and never an endless loop or a wrong
 * access.
 */
static void
bad_chains(void)
{
	static const struct { const char *what; uint32_t length;
	    unsigned flags, next; } kinds[] = {
		{ "a loop", 16, F_NEXT, 0 },
		{ "a next descriptor that does not exist", 16, F_NEXT, QUEUE },
		{ "an indirect table of 15 bytes", 15, F_INDIRECT, 0 },
		{ "an indirect table of no bytes", 0, F_INDIRECT, 0 },
	};
	struct iovec iov[QUEUE];
	struct vi_req request;

	for (size_t i = 0; i < nitems(kinds); i++) {
		begin(C_INDIRECT);
		descriptor(RING, 0, 0x9000, kinds[i].length, kinds[i].flags,
		    kinds[i].next);
		offer(0);
		if (vq_getchain(queue, iov, QUEUE, &request) != -1)
			miss("%s is accepted", kinds[i].what);
	}
	/* In an indirect table. */
	begin(C_INDIRECT);
	descriptor(RING, 0, 0x9000, 32, F_INDIRECT, 0);
	descriptor(0x9000, 0, 0x5000, 16, F_NEXT, 2);
	offer(0);
	if (vq_getchain(queue, iov, QUEUE, &request) != -1)
		miss("a next descriptor beyond the indirect table is accepted");
	begin(C_INDIRECT);
	descriptor(RING, 0, 0x9000, 32, F_INDIRECT, 0);
	descriptor(0x9000, 0, 0x5000, 16, F_INDIRECT, 0);
	offer(0);
	if (vq_getchain(queue, iov, QUEUE, &request) != -1)
		miss("an indirect table in another is accepted");
	/* More chains than there are descriptors. */
	begin(0);
	put16(AVAIL(RING) + 2, QUEUE + 1);
	if (vq_getchain(queue, iov, QUEUE, &request) != -1)
		miss("more chains than descriptors are accepted");
	/* A head that does not exist. */
	begin(0);
	offer(QUEUE);
	if (vq_getchain(queue, iov, QUEUE, &request) != -1)
		miss("a head that does not exist is accepted");
}

/* Used elements fill the ring repeatedly, and its index goes on counting. */
static void
used(void)
{
	begin(0);
	for (unsigned i = 0; i < 3 * QUEUE; i++) {
		vq_relchain(queue, (uint16_t)(i % QUEUE), 100 + i);
		equal("the used index", get16(USED(RING) + 2), i + 1);
		equal("the element's id", get32(USED(RING) + 4 +
		    i % QUEUE * 8), i % QUEUE);
		equal("the element's length", get32(USED(RING) + 8 +
		    i % QUEUE * 8), 100 + i);
	}
	/* A prepared element is invisible; a published one is visible. */
	vq_relchain_prepare(queue, 5, 1);
	equal("the used index", get16(USED(RING) + 2), 3 * QUEUE);
	vq_relchain_publish(queue);
	equal("the used index", get16(USED(RING) + 2), 3 * QUEUE + 1);
}

static void
interrupts(void)
{
	begin(0);
	vq_endchains(queue, 0);
	equal("interrupts when nothing was used", msi, 0);
	vq_relchain(queue, 0, 1);
	vq_endchains(queue, 0);
	equal("interrupts", msi, 1);
	equal("the line", lintr, 1);
	equal("ISR", get(ISR, 1), 1);
	equal("the line after ISR was read", lintr, 0);
	equal("ISR, read again", get(ISR, 1), 0);
	/* The driver wants no interrupts. */
	put16(AVAIL(RING), 1);
	vq_relchain(queue, 0, 1);
	vq_endchains(queue, 1);
	equal("interrupts that are not wanted", msi, 1);
	put16(AVAIL(RING), 0);
	/* With MSI-X it is the queue's vector, and ISR stays clear. */
	msix_on = true;
	put(QUEUE_VECTOR, 2, 1);
	vq_relchain(queue, 0, 1);
	vq_endchains(queue, 0);
	equal("by MSI-X", msix, 1);
	equal("its vector", last_msix, 1);
	equal("others", msi, 1);
}

/* All buffers are used: an interrupt although the driver wants none. */
static void
on_empty(void)
{
	begin(C_NOTIFY_ON_EMPTY);
	put16(AVAIL(RING), 1);
	vq_relchain(queue, 0, 1);
	vq_endchains(queue, 0);
	equal("while there is more", msi, 0);
	vq_endchains(queue, 1);
	equal("when none is left", msi, 1);
}

/* With EVENT_IDX only when the index passes the driver's. */
static void
event_index(void)
{
	/* After the ring of available buffers. */
	const unsigned event = AVAIL(RING) + 4 + QUEUE * 2;

	begin(C_EVENT_IDX);
	put16(event, 2);
	vq_relchain(queue, 0, 1);
	vq_endchains(queue, 0);
	vq_relchain(queue, 1, 1);
	vq_endchains(queue, 0);
	equal("before the third", msi, 0);
	vq_relchain(queue, 2, 1);
	vq_endchains(queue, 0);
	equal("at the third", msi, 1);
	vq_relchain(queue, 3, 1);
	vq_endchains(queue, 0);
	equal("after the third", msi, 1);
	/* Several at once, beyond it. */
	put16(event, 5);
	for (unsigned i = 0; i < 4; i++)
		vq_relchain(queue, (uint16_t)i, 1);
	vq_endchains(queue, 0);
	equal("across the sixth", msi, 2);
}

const struct unit units[] = {
	{ "virtio.registers", "registers show features and queues", registers },
	{ "virtio.reset", "a reset clears everything", reset_device },
	{ "virtio.configuration",
	    "a device's own registers can be accessed", configuration },
	{ "virtio.notifications", "a queue is notified", notifications },
	{ "virtio.chains", "chains of descriptors are read", chains },
	{ "virtio.indirect", "indirect descriptors are read", indirect },
	{ "virtio.bad_chains", "wrong chains are errors", bad_chains },
	{ "virtio.used", "used elements fill the ring repeatedly", used },
	{ "virtio.interrupts", "an interrupt comes if the driver wants it",
	    interrupts },
	{ "virtio.on_empty",
	    "an interrupt comes when all buffers are used", on_empty },
	{ "virtio.event_index", "EVENT_IDX chooses when an interrupt comes",
	    event_index },
};
const size_t nunits = nitems(units);
