/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/*
 * uart_emul.c: the serial port, a 16550 as in its data sheet (PC16550D).  The
 * other half, which stores received bytes, is simulated here.
 */

#include <sys/param.h>

#include <stdio.h>
#include <string.h>

/* The part itself, from the tree under test. */
#include "part.h"

#include "unit.h"

#define	FIFO_BYTES	16

struct uart_softc {
	uint8_t	bytes[FIFO_BYTES];
	int	size, used;
	uint8_t	sent[64];
	int	nsent;
};

static struct uart_softc line;
static bool line_up;			/* the interrupt line */

void
uart_rxfifo_drain(struct uart_softc *sc __unused, bool loopback __unused)
{
}

int
uart_rxfifo_getchar(struct uart_softc *sc)
{
	int first;

	if (sc->used == 0)
		return (-1);
	first = sc->bytes[0];
	memmove(sc->bytes, sc->bytes + 1, (size_t)--sc->used);
	return (first);
}

int
uart_rxfifo_numchars(struct uart_softc *sc)
{
	return (sc->used);
}

int
uart_rxfifo_putchar(struct uart_softc *sc, uint8_t ch, bool loopback)
{
	if (!loopback) {
		if (sc->nsent < (int)sizeof(sc->sent))
			sc->sent[sc->nsent++] = ch;
		return (0);
	}
	if (sc->used == sc->size)
		return (-1);
	sc->bytes[sc->used++] = ch;
	return (0);
}

void
uart_rxfifo_reset(struct uart_softc *sc, int size)
{
	sc->used = 0;
	sc->size = size;
}

int
uart_rxfifo_size(struct uart_softc *sc __unused)
{
	return (FIFO_BYTES);
}

struct uart_softc *
uart_init(void)
{
	return (&line);
}

int
uart_tty_open(struct uart_softc *sc __unused, const char *path __unused,
    void (*drain)(int, enum ev_type, void *) __unused, void *arg __unused)
{
	return (-1);
}

void
uart_softc_lock(struct uart_softc *sc __unused)
{
}

void
uart_softc_unlock(struct uart_softc *sc __unused)
{
}

static void
up(void *arg __unused)
{
	line_up = true;
}

static void
down(void *arg __unused)
{
	line_up = false;
}

static struct uart_ns16550_softc *
fresh(void)
{
	memset(&line, 0, sizeof(line));
	line_up = false;
	return (uart_ns16550_init(up, down, NULL));
}

#define	get(port)	uart_ns16550_read(uart, (port))
#define	put(port, v)	uart_ns16550_write(uart, (port), (v))

/* Offsets and bits are from the data sheet, not from the tree's headers. */
enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };
#define	FCR	IIR
#define	DLAB	0x80
#define	LOOP	0x10

static void
registers(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(SCR, 0xa5);
	equal("the scratch register", get(SCR), 0xa5);
	put(LCR, 0x1b);
	equal("LCR", get(LCR), 0x1b);
	put(MCR, 0xff);
	equal("MCR, its upper bits", get(MCR) & 0xe0, 0);
	put(MCR, 0);
	put(IER, 0xff);
	equal("IER, its upper bits", get(IER), 0x0f);
	put(IER, 0);
	equal("THRE and TEMT", get(LSR) & 0x60, 0x60);
	equal("MSR: DCD and DSR", get(MSR) & 0xa0, 0xa0);
	put(LSR, 0);
	equal("LSR, written", get(LSR) & 0x60, 0x60);
}

/* The divisor is selected by DLAB, and shares no bit with data and IER. */
static void
divisor(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(IER, 5);
	put(LCR, DLAB | 3);
	put(DATA, 0x34);
	put(IER, 0x12);
	equal("the divisor's lower half", get(DATA), 0x34);
	equal("the divisor's upper half", get(IER), 0x12);
	put(LCR, 3);
	equal("IER", get(IER), 5);
	equal("bytes sent", (uint64_t)line.nsent, 0);
	put(LCR, DLAB);
	equal("the divisor later", get(DATA), 0x34);
}

static void
sent(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(DATA, 'o');
	put(DATA, 'k');
	equal("bytes sent", (uint64_t)line.nsent, 2);
	equal("the first", line.sent[0], 'o');
	equal("the second", line.sent[1], 'k');
	equal("ready for the next", get(LSR) & 0x60, 0x60);
}

static void
received(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(FCR, 1);
	equal("data ready without data", get(LSR) & 1, 0);
	line.bytes[0] = 'a';
	line.bytes[1] = 'b';
	line.used = 2;
	equal("data ready", get(LSR) & 1, 1);
	equal("the first", get(DATA), 'a');
	equal("data ready, of one", get(LSR) & 1, 1);
	equal("the second", get(DATA), 'b');
	equal("data ready at the end", get(LSR) & 1, 0);
}

/* Sent bytes come back; too many are an overrun, which is reported once. */
static void
loopback(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(FCR, 1);
	put(MCR, LOOP);
	put(DATA, 0x5a);
	equal("bytes on the line", (uint64_t)line.nsent, 0);
	equal("data ready", get(LSR) & 1, 1);
	equal("it comes back", get(DATA), 0x5a);
	for (int i = 0; i <= FIFO_BYTES; i++)
		put(DATA, (uint8_t)i);
	equal("overrun", get(LSR) & 2, 2);
	equal("overrun, read again", get(LSR) & 2, 0);
	/* Then MCR's outputs are MSR's inputs: RTS, DTR, OUT1, OUT2. */
	put(MCR, LOOP | 2);
	equal("RTS is CTS", get(MSR) & 0xf0, 0x10);
	put(MCR, LOOP | 1);
	equal("DTR is DSR", get(MSR) & 0xf0, 0x20);
	put(MCR, LOOP | 4);
	equal("OUT1 is RI", get(MSR) & 0xf0, 0x40);
	put(MCR, LOOP | 8);
	equal("OUT2 is DCD", get(MSR) & 0xf0, 0x80);
	equal("the changes, read again", get(MSR) & 0x0f, 0);
	put(MCR, LOOP | 2);
	equal("CTS and DCD have changed", get(MSR) & 0x0b, 0x09);
}

/* IIR: the highest enabled cause; the interrupt line follows it. */
static void
interrupts(void)
{
	struct uart_ns16550_softc *uart = fresh();

	put(FCR, 1);
	equal("nothing pending", get(IIR), 0xc1);
	put(IER, 2);
	equal("the line, as the transmitter is empty", line_up, true);
	equal("transmitter empty", get(IIR), 0xc2);
	equal("it is acknowledged by reading IIR", get(IIR), 0xc1);
	equal("the line after that", line_up, false);
	put(DATA, 'x');
	equal("the line after a byte", line_up, true);
	/* Receiving has a higher priority, and lasts while there is data. */
	line.bytes[0] = 'r';
	line.used = 1;
	put(IER, 3);
	equal("received", get(IIR) & 0x0f & ~8u, 4);
	equal("still received", get(IIR) & 0x0f & ~8u, 4);
	(void)get(DATA);
	equal("then the transmitter", get(IIR), 0xc2);
	put(IER, 0);
	put(DATA, 'x');
	equal("the line while all is disabled", line_up, false);
	/* Modem status, by MCR in loopback mode. */
	put(IER, 8);
	put(MCR, LOOP | 2);
	equal("modem status", get(IIR), 0xc0);
	equal("the line", line_up, true);
	(void)get(MSR);
	equal("modem status, read", get(IIR), 0xc1);
	equal("the line", line_up, false);
	/* An overrun has the highest priority. */
	put(IER, 0x0f);
	for (int i = 0; i <= FIFO_BYTES; i++)
		put(DATA, (uint8_t)i);
	equal("line status", get(IIR), 0xc6);
	(void)get(LSR);
	equal("then received data", get(IIR) & 0x0f & ~8u, 4);
}

/* FCR: turning FIFOs on or off empties them; so does their reset. */
static void
fifos(void)
{
	struct uart_ns16550_softc *uart = fresh();

	equal("IIR without FIFOs", get(IIR), 1);
	put(FCR, 1);
	equal("IIR with FIFOs", get(IIR), 0xc1);
	equal("room", (uint64_t)line.size, FIFO_BYTES);
	line.used = 3;
	put(FCR, 3);
	equal("after a reset of the receiver's", (uint64_t)line.used, 0);
	line.used = 3;
	put(FCR, 0xc1);
	equal("after its level is set", (uint64_t)line.used, 3);
	put(FCR, 0);
	equal("without FIFOs", (uint64_t)line.used, 0);
	equal("room without FIFOs", (uint64_t)line.size, 1);
	equal("IIR without FIFOs", get(IIR), 1);
}

/* COM1 to COM4 can be taken once each. */
static void
places(void)
{
	static const int bases[] = { 0x3f8, 0x2f8, 0x3e8, 0x2e8 };
	static const int irqs[] = { 4, 3, 4, 3 };
	int base, irq;

	for (int i = 0; i < 4; i++) {
		if (uart_legacy_alloc(i, &base, &irq) != 0) {
			miss("COM%d cannot be taken", i + 1);
			continue;
		}
		equal("its port", (uint64_t)base, (uint64_t)bases[i]);
		equal("its IRQ", (uint64_t)irq, (uint64_t)irqs[i]);
		if (uart_legacy_alloc(i, &base, &irq) == 0)
			miss("COM%d can be taken twice", i + 1);
	}
	if (uart_legacy_alloc(4, &base, &irq) == 0 ||
	    uart_legacy_alloc(-1, &base, &irq) == 0)
		miss("there are COM0 or COM5");
}

const struct unit units[] = {
	{ "uart.registers", "registers have their writable bits only",
	    registers },
	{ "uart.divisor", "DLAB selects the divisor", divisor },
	{ "uart.sent", "bytes are sent", sent },
	{ "uart.received", "bytes are received", received },
	{ "uart.loopback", "loopback connects data and modem lines, and "
	    "overruns are reported", loopback },
	{ "uart.interrupts",
	    "interrupts have the priorities of the data sheet", interrupts },
	{ "uart.fifos", "FIFOs", fifos },
	{ "uart.places", "COM1 to COM4 can be taken once each", places },
};
const size_t nunits = nitems(units);
