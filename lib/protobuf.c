// SPDX-License-Identifier: MIT
/*
 * protobuf.h: the four wire types that have a use here.
 */
#include <stdlib.h>
#include <string.h>

#include "protobuf.h"

enum { WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES, WIRE_FIXED32 = 5 };

static void put(struct pb *m, const void *data, size_t n)
{
	if (m->n + n > m->room)
		m->p = xrealloc(m->p, m->room = 2 * (m->n + n));
	memcpy(m->p + m->n, data, n);
	m->n += n;
}

static void put_varint(struct pb *m, uint64_t v)
{
	uint8_t byte;

	for (; v >= 0x80; v >>= 7) {
		byte = v | 0x80;
		put(m, &byte, 1);
	}
	byte = v;
	put(m, &byte, 1);
}

/* The @n low bytes of @bits, the lowest first. */
static void put_fixed(struct pb *m, int field, uint64_t bits, int n)
{
	put_varint(m, field << 3 | (n == 8 ? WIRE_FIXED64 : WIRE_FIXED32));
	for (int i = 0; i < n; i++)
		put(m, &(uint8_t){ bits >> 8 * i }, 1);
}

void pb_int(struct pb *m, int field, uint64_t v)
{
	put_varint(m, field << 3 | WIRE_VARINT);
	put_varint(m, v);
}

void pb_float(struct pb *m, int field, float v)
{
	uint32_t bits;

	memcpy(&bits, &v, sizeof(bits));
	put_fixed(m, field, bits, 4);
}

void pb_double(struct pb *m, int field, double v)
{
	uint64_t bits;

	memcpy(&bits, &v, sizeof(bits));
	put_fixed(m, field, bits, 8);
}

void pb_bytes(struct pb *m, int field, const void *data, size_t n)
{
	put_varint(m, field << 3 | WIRE_BYTES);
	put_varint(m, n);
	if (n)
		put(m, data, n);
}

void pb_string(struct pb *m, int field, const char *text)
{
	pb_bytes(m, field, text, strlen(text));
}

void pb_message(struct pb *m, int field, struct pb *inner)
{
	pb_bytes(m, field, inner->p, inner->n);
	pb_free(inner);
}

void pb_free(struct pb *m)
{
	free(m->p);
	*m = (struct pb){ 0 };
}
