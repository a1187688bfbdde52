// SPDX-License-Identifier: MIT
/*
 * Rotary positions, and what heads share. A position's cosines and sines are made once
 * for all sequences and heads that have it, so that no table is kept.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels_rope.h"
#include "real.h"
#include "tile.h"
#include "util.h"

enum { SPLIT_MIN = 16384 };	/* elements below which threads cost more than they gain */

/* cs[i] and cs[half + i] = cos and sin of the angle of pair i at a position */
static void rope_angles(acc_t *cs, const struct rope *r, const double *turn, int pos)
{
	int half = r->width / 2;

	for (int i = 0; i < half; i++) {
		double a = pos * turn[i];

		cs[i] = cos(a);
		cs[half + i] = r->back ? -sin(a) : sin(a);
	}
}

static void rope_vector(act_t *x, const acc_t *cs, int half)
{
#pragma omp simd
	for (int i = 0; i < half; i++) {
		acc_t a = load(x[i]), b = load(x[half + i]);

		x[i] = store(a * cs[i] - b * cs[half + i]);
		x[half + i] = store(b * cs[i] + a * cs[half + i]);
	}
}

static void rope_row(const struct rope *r, const struct rope_heads *x, int nr, const acc_t *cs,
		     int row)
{
	for (int j = 0; j < nr; j++)
		for (int h = 0; h < x[j].heads; h++)
			rope_vector(x[j].x + row * x[j].row + h * x[j].head, cs, r->width / 2);
}

/* Elements that rotate. */
static long rope_size(const struct rope *r, const struct rope_heads *x, int nr)
{
	long heads = 0;

	for (int j = 0; j < nr; j++)
		heads += x[j].heads;
	return heads * r->n * r->width;
}

void k_rope(const struct rope *r, const struct rope_heads *x, int nr)
{
	int half = r->width / 2, rows = r->pos ? r->n : MIN(r->n, r->t);
	double *turn = xmalloc(half * sizeof(*turn));

	for (int i = 0; i < half; i++)
		turn[i] = pow(r->theta, -2.0 * i / r->width);
#pragma omp parallel if (rope_size(r, x, nr) >= SPLIT_MIN)
	{
		acc_t *cs = tile_scratch(2 * (size_t)half);

#pragma omp for schedule(static)
		for (int u = 0; u < rows; u++) {
			rope_angles(cs, r, turn, r->pos ? r->pos[u] : u);
			for (int row = u; row < r->n; row += r->pos ? r->n : r->t)
				rope_row(r, x, nr, cs, row);
		}
	}
	free(turn);
}

void k_heads_spread(act_t *dst, long row, long head, const act_t *src, long ld, int n, int heads,
		    int width)
{
#pragma omp parallel for schedule(static) if ((long)n * heads * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		for (int h = 0; h < heads; h++)
			memcpy(dst + i * row + h * head, src + i * ld, width * sizeof(*src));
}

void k_heads_sum(act_t *dst, long ld, const act_t *src, long row, long head, int n, int heads,
		 int width)
{
#pragma omp parallel for schedule(static) if ((long)n * heads * width >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		for (int j = 0; j < width; j++) {
			acc_t sum = 0;

			for (int h = 0; h < heads; h++)
				sum += load(src[i * row + h * head + j]);
			dst[i * ld + j] = store(sum);
		}
}

void k_gemm_past(const struct gemm *g, const int32_t *pos)
{
	for (int i = 0; i < g->batch; i++) {
		struct gemm one = *g;

		one.batch = 1;
		one.m = pos[i] + 1;
		one.a = (const act_t *)g->a + i * g->sa;
		one.c = (act_t *)g->c + i * g->sc;
		k_gemm(&one);
	}
}
