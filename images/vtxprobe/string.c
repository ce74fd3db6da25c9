/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Copyright (c) 2026 The vmm-workbench authors
 */

/* Functions that a compiler expects, and a printf(3) with a few conversions. */

#include "probe.h"

void *
memcpy(void *dst, const void *src, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep movsb" : "+D" (dst), "+S" (src), "+c" (n)
	    : : "memory");
	return (ret);
}

void *
memset(void *dst, int c, size_t n)
{
	void *ret = dst;

	__asm__ volatile("rep stosb" : "+D" (dst), "+c" (n) : "a" (c)
	    : "memory");
	return (ret);
}

int
memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *p = a, *q = b;

	for (; n > 0; n--, p++, q++)
		if (*p != *q)
			return (*p - *q);
	return (0);
}

int
strcmp(const char *a, const char *b)
{
	while (*a != '\0' && *a == *b) {
		a++;
		b++;
	}
	return ((uint8_t)*a - (uint8_t)*b);
}

size_t
strlen(const char *s)
{
	size_t n;

	for (n = 0; s[n] != '\0'; n++)
		;
	return (n);
}

static char *
number(char *end, uint64_t v, unsigned base)
{
	*--end = '\0';
	do {
		*--end = "0123456789abcdef"[v % base];
		v /= base;
	} while (v != 0);
	return (end);
}

/*
 * %s %c %d %u %x with an optional "l" and, for numbers, a zero-padded width.
 * Returns the number of characters written; the result is cut to fit.
 */
int
format(char *buf, size_t size, const char *fmt, va_list ap)
{
	char tmp[24], *s, one[2] = { 0, 0 };
	size_t len = 0, width, have;
	uint64_t v;
	int is_long;

	for (; *fmt != '\0'; fmt++) {
		one[0] = *fmt;
		s = one;
		width = 0;
		if (*fmt == '%') {
			is_long = 0;
			for (fmt++; *fmt >= '0' && *fmt <= '9'; fmt++)
				width = width * 10 + (size_t)(*fmt - '0');
			for (; *fmt == 'l'; fmt++)
				is_long = 1;
			switch (*fmt) {
			case 's':
				s = va_arg(ap, char *);
				break;
			case 'c':
				one[0] = (char)va_arg(ap, int);
				break;
			case 'd':
			case 'u':
			case 'x':
				v = is_long ? va_arg(ap, uint64_t) :
				    va_arg(ap, unsigned);
				if (*fmt == 'd' && !is_long && (int)v < 0) {
					v = -(uint64_t)(int)v;
					if (len + 1 < size)
						buf[len++] = '-';
				}
				s = number(tmp + sizeof(tmp), v,
				    *fmt == 'x' ? 16 : 10);
				break;
			}
		}
		for (have = strlen(s); have < width && len + 1 < size; width--)
			buf[len++] = '0';
		for (; *s != '\0' && len + 1 < size; s++)
			buf[len++] = *s;
	}
	buf[len] = '\0';
	return ((int)len);
}
