/* SPDX-License-Identifier: MIT */
/**
 * DOC: Philox 4x32-10
 *
 * Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Here
 * where a kernel's loop over counters can become vectors of them; everybody else calls philox().
 */
#ifndef TENON_PHILOX_H
#define TENON_PHILOX_H

#include <stdint.h>

/* Multipliers and Weyl constants of the paper, section 4.3. */
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

static inline __attribute__((always_inline)) void philox_round(uint32_t c[4], uint32_t k0,
							       uint32_t k1)
{
	uint64_t p0 = (uint64_t)PHILOX_M0 * c[0], p1 = (uint64_t)PHILOX_M1 * c[2];

	c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
	c[1] = (uint32_t)p1;
	c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
	c[3] = (uint32_t)p0;
}

/** philox_words() - four random words for @c under (@k0, @k1), in @c */
static inline __attribute__((always_inline)) void philox_words(uint32_t k0, uint32_t k1,
							       uint32_t c[4])
{
	for (uint32_t r = 0; r < 10; r++)
		philox_round(c, k0 + r * PHILOX_W0, k1 + r * PHILOX_W1);
}

#endif
