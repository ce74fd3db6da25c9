/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

#ifndef _LEGACY_H_
#define	_LEGACY_H_

#include "devices.h"

/* The two 8259A, and the vectors that init_pics() sets. */
#define	MASTER	0x20
#define	SLAVE	0xa0
#define	BASE1	0x30
#define	BASE2	0x38

void	init_pics(struct vm *, uint8_t, uint16_t);
struct vm *vm_with_pic(uint32_t, uint8_t);
void	pulse(struct vm *, int);
uint8_t	irr(struct vm *, uint16_t);
uint8_t	isr(struct vm *, uint16_t);

#endif /* !_LEGACY_H_ */
