/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* A stand-in for the I/O ports that parts of bhyve(8) register. */

#include <sys/types.h>

#include <errno.h>

#include <vmmapi.h>

#include "inout.h"
#include "unit.h"

#define	PORTS	8

static struct inout_port ports[PORTS];
static int nports;

int guest_ncpus = 3;
int raw_stdio;

int	register_inout(struct inout_port *);

int
register_inout(struct inout_port *port)
{
	if (nports == PORTS)
		return (ENOSPC);
	ports[nports++] = *port;
	return (0);
}

static void
access_port(int in, int port, int bytes, uint32_t *value)
{
	for (int i = 0; i < nports; i++) {
		if (ports[i].port != port)
			continue;
		if (ports[i].handler(NULL, in, port, bytes, value,
		    ports[i].arg) != 0)
			miss("port %#x refuses %d bytes", port, bytes);
		return;
	}
	miss("port %#x has no handler", port);
}

uint32_t
port_in(int port, int bytes)
{
	uint32_t value = 0;

	access_port(1, port, bytes, &value);
	return (value);
}

void
port_out(int port, int bytes, uint32_t value)
{
	access_port(0, port, bytes, &value);
}
