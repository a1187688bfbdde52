// SPDX-License-Identifier: MIT
/*
 * SHA-256, FIPS 180-4. Two versions of the block function: plain C, and the x86 SHA
 * instructions (about five times as fast), chosen here by what the compiler may use.
 */
#include <string.h>

#include "util.h"

#if defined(__SHA__) && defined(__SSE4_1__)
#include <immintrin.h>
#endif

static const uint32_t K[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

#if defined(__SHA__) && defined(__SSE4_1__)

/*
 * The instructions want the state as {a,b,e,f} and {c,d,g,h} and do four rounds per
 * pair; w[i] holds the schedule words 4i..4i+3.
 */
static void sha256_blocks(uint32_t h[8], const uint8_t *p, size_t blocks)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
	__m128i lo = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xB1);
	__m128i hi = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1B);
	__m128i abef = _mm_alignr_epi8(lo, hi, 8), cdgh = _mm_blend_epi16(hi, lo, 0xF0);

	for (; blocks; blocks--, p += 64) {
		__m128i a0 = abef, c0 = cdgh, w[16], m;

#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			if (i < 4)
				w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p + i),
							swap);
			else
				w[i] = _mm_sha256msg2_epu32(
					_mm_add_epi32(_mm_sha256msg1_epu32(w[i - 4], w[i - 3]),
						      _mm_alignr_epi8(w[i - 1], w[i - 2], 4)),
					w[i - 1]);
			m = _mm_add_epi32(w[i], _mm_load_si128((const __m128i *)K + i));
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, m);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(m, 0x0E));
		}
		abef = _mm_add_epi32(abef, a0);
		cdgh = _mm_add_epi32(cdgh, c0);
	}
	lo = _mm_shuffle_epi32(abef, 0x1B);
	hi = _mm_shuffle_epi32(cdgh, 0xB1);
	_mm_storeu_si128((__m128i *)h, _mm_blend_epi16(lo, hi, 0xF0));
	_mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(hi, lo, 8));
}

#else

#define ROR(x, n) ((x) >> (n) | (x) << (32 - (n)))
#define CH(e, f, g) ((g) ^ ((e) & ((f) ^ (g))))
#define MAJ(a, b, c) (((a) & (b)) | ((c) & ((a) | (b))))
#define SUM0(x) (ROR(x, 2) ^ ROR(x, 13) ^ ROR(x, 22))
#define SUM1(x) (ROR(x, 6) ^ ROR(x, 11) ^ ROR(x, 25))
#define SIG0(x) (ROR(x, 7) ^ ROR(x, 18) ^ (x) >> 3)
#define SIG1(x) (ROR(x, 17) ^ ROR(x, 19) ^ (x) >> 10)

static uint32_t load_be(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

/* Unrolled by eight, so that the renaming of a..h costs nothing. */
static void sha256_blocks(uint32_t h[8], const uint8_t *p, size_t blocks)
{
	uint32_t s[8], w[64], t;

	for (; blocks; blocks--, p += 64) {
		for (int i = 0; i < 16; i++)
			w[i] = load_be(p + 4 * i);
		for (int i = 16; i < 64; i++)
			w[i] = SIG1(w[i - 2]) + w[i - 7] + SIG0(w[i - 15]) + w[i - 16];
		memcpy(s, h, sizeof(s));
		for (int i = 0; i < 64; i += 8) {
#pragma GCC unroll 8
			for (int j = 0; j < 8; j++) {
				uint32_t *d = &s[(11 - j) & 7], *g = &s[(15 - j) & 7];

				t = *g + SUM1(s[(12 - j) & 7]) + K[i + j] + w[i + j] +
				    CH(s[(12 - j) & 7], s[(13 - j) & 7], s[(14 - j) & 7]);
				*d += t;
				*g = t + SUM0(s[(8 - j) & 7]) +
				     MAJ(s[(8 - j) & 7], s[(9 - j) & 7], s[(10 - j) & 7]);
			}
		}
		for (int i = 0; i < 8; i++)
			h[i] += s[i];
	}
}

#endif

void sha256_init(struct sha256 *s)
{
	static const uint32_t start[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};

	memcpy(s->h, start, sizeof(start));
	s->n = 0;
}

void sha256_update(struct sha256 *s, const void *buf, size_t n)
{
	const uint8_t *p = buf;
	size_t held = s->n % 64, take;

	s->n += n;
	if (held) {
		take = MIN(n, 64 - held);
		memcpy(s->block + held, p, take);
		if (held + take < 64)
			return;
		sha256_blocks(s->h, s->block, 1);
		p += take;
		n -= take;
	}
	sha256_blocks(s->h, p, n / 64);
	if (n % 64)
		memcpy(s->block, p + n / 64 * 64, n % 64);
}

/* Padding: a one bit, zeros, and the length in bits as the last 8 bytes of a block. */
void sha256_final(struct sha256 *s, char hex[65])
{
	uint8_t pad[72] = { 0x80 };
	uint64_t bits = s->n * 8;
	size_t zeros = (119 - s->n % 64) % 64;

	for (int i = 0; i < 8; i++)
		pad[1 + zeros + i] = bits >> (56 - 8 * i);
	sha256_update(s, pad, 1 + zeros + 8);
	for (int i = 0; i < 8; i++)
		snprintf(hex + 8 * i, 9, "%08x", s->h[i]);
}

void sha256_hex(const void *buf, size_t n, char hex[65])
{
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, buf, n);
	sha256_final(&s, hex);
}
