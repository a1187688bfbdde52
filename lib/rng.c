// SPDX-License-Identifier: MIT
/*
 * Philox 4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011. A random number is a pure function of what it is for, so neither
 * threads nor ranks nor a resume can change it.
 */
#include <math.h>
#include <string.h>

#include "philox.h"
#include "util.h"

enum {
	PERMUTE_ROUNDS = 8,	/* 4 are a strong pseudo-random permutation (Luby-Rackoff);
				 * more for domains of a few bits */
};

/* Keeps rng_permute()'s blocks apart from rng_u64()'s: fraction of sqrt(3). */
#define PERMUTE_TWEAK 0xBB67AE8584CAA73Bull

void philox(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4])
{
	memcpy(out, ctr, 4 * sizeof(*out));
	philox_words(key[0], key[1], out);
}

/* The 128 bits of one (seed, stream, index). */
static void block(uint64_t seed, uint64_t stream, uint64_t index, uint64_t out[2])
{
	const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
	const uint32_t ctr[4] = { (uint32_t)index, (uint32_t)(index >> 32),
				  (uint32_t)stream, (uint32_t)(stream >> 32) };
	uint32_t w[4];

	philox(key, ctr, w);
	out[0] = (uint64_t)w[1] << 32 | w[0];
	out[1] = (uint64_t)w[3] << 32 | w[2];
}

/* The lowest bit set: never 0 or 1, and exact in a double. */
static double to_unit(uint64_t bits)
{
	return (double)(bits >> 11 | 1) * 0x1p-53;
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
	uint64_t w[2];

	block(seed, stream, index, w);
	return w[0];
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
	return to_unit(rng_u64(seed, stream, index));
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
	uint64_t w[2];

	block(seed, stream, index, w);
	return sqrt(-2 * log(to_unit(w[0]))) * cos(2 * M_PI * to_unit(w[1]));
}

/* One pass of a balanced Feistel network over 2 * @half bits. */
static uint64_t feistel(uint64_t seed, uint64_t stream, uint64_t x, int half)
{
	uint64_t mask = (1ull << half) - 1;
	uint64_t left = x >> half, right = x & mask, next;

	for (uint64_t r = 0; r < PERMUTE_ROUNDS; r++) {
		next = left ^ (rng_u64(seed, stream ^ PERMUTE_TWEAK, r << 32 | right) & mask);
		left = right;
		right = next;
	}
	return left << half | right;
}

/*
 * Cycle walking (Black and Rogaway 2002): the network permutes 4^half >= n values;
 * going on until a value is below n permutes 0..n-1.
 */
uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t i, uint64_t n)
{
	int half = 1;

	if (i >= n)
		die_bug("rng_permute: index %llu of %llu", (unsigned long long)i,
			(unsigned long long)n);
	while (half < 32 && (n - 1) >> (2 * half))
		half++;
	do
		i = feistel(seed, stream, i, half);
	while (i >= n);
	return i;
}

uint64_t hash_name(const char *s)
{
	uint64_t h = 0xcbf29ce484222325ull;	/* FNV offset basis and prime */

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 0x100000001b3ull;
	return h;
}
