// SPDX-License-Identifier: MIT
/*
 * Routing of one new position per sequence: the dense row is at hand, so the
 * selection of route.c runs on it directly and the row stays dense.
 */
#include <math.h>
#include <stdint.h>

#include "route.h"

/* One more entry for a descending list of n, behind its equals; returns the new n. */
static int list_insert(acc_t *weight, int32_t *index, int n, int topk, acc_t x, int u)
{
	int at;

	if (n == topk && !(x > weight[n - 1]))
		return n;
	at = n < topk ? n : n - 1;
	for (; at && x > weight[at - 1]; at--) {
		weight[at] = weight[at - 1];
		index[at] = index[at - 1];
	}
	weight[at] = x;
	index[at] = u;
	return MIN(n + 1, topk);
}

/* Keep the topk largest of row[n], the rest is 0. */
static void row_topk(const struct route_step *r, acc_t *row, int n)
{
	acc_t *weight = tile_scratch(2 * (size_t)r->topk);
	int32_t *index = (int32_t *)(weight + r->topk);
	double sum = 0;
	acc_t factor;
	int kept = 0;

	for (int u = 0; u < n; u++)
		kept = list_insert(weight, index, kept, r->topk, row[u], u);
	route_sort(weight, index, kept);
	for (int j = 0; j < kept; j++)
		sum += weight[j];
	factor = route_factor(r->normalize, sum);
	for (int u = 0; u < n; u++)
		row[u] = 0;
	for (int j = 0; j < kept; j++)
		row[index[j]] = factor * weight[j];
}

/* Keep the entries of row[n] from the threshold on. */
static void row_threshold(const struct route_step *r, acc_t *row, int n)
{
	double squares = 0, sum = 0;
	acc_t thr = 0, factor;

	for (int u = 0; u < n; u++)
		squares += (double)row[u] * row[u];
	if (r->mode == ROUTE_RMS)
		thr = r->tau * sqrt(squares / n);
	for (int u = 0; u < n; u++) {
		row[u] = row[u] >= thr ? row[u] : 0;
		sum += row[u];
	}
	factor = route_factor(r->normalize, sum);
	for (int u = 0; u < n; u++)
		row[u] *= factor;
}

void k_route_step(const struct route_step *r, const acc_t *p, long p_stride, int heads)
{
	int share = heads / r->nr, n;	/* heads of a row set: all, or 1 */
	const acc_t *from;
	acc_t *row;

#pragma omp parallel for collapse(2) private(from, row, n)
	for (int i = 0; i < r->b; i++) {
		for (int set = 0; set < r->nr; set++) {
			n = r->pos[i] + 1;
			from = p + ((long)i * heads + set * share) * p_stride;
			row = r->row + ((long)i * r->nr + set) * r->row_stride;
			for (int u = 0; u < n; u++)
				row[u] = from[u];
			for (int h = 1; h < share; h++)
				for (int u = 0; u < n; u++)
					row[u] += from[h * p_stride + u];
			for (int u = 0; u < n; u++)
				row[u] *= (acc_t)1 / share;
			if (r->mode == ROUTE_TOPK)
				row_topk(r, row, n);
			else
				row_threshold(r, row, n);
		}
	}
}

enum { COLS = 64 };	/* columns of a task */

/* y[cols] of one row set */
static void step_columns(void *y, size_t size, const acc_t *row, const act_t *x, long x_row,
			 int cols, int pos, acc_t alpha, acc_t beta)
{
	acc_t factor, buf[COLS], *sum = sums_begin(y, size, buf, cols, beta);

	for (int u = 0; u <= pos; u++) {
		if (row[u] == 0)	/* not routed */
			continue;
		factor = alpha * row[u];
		for (int c = 0; c < cols; c++)
			sum[c] += factor * load(x[u * x_row + c]);
	}
	sums_end(y, sum, cols);
}

/* @width columns of y, of elements of @size, from those of x that start at @at */
static void step_part(const struct route_step *r, void *y, size_t size, long ldy,
		      const struct cache_rows *x, int at, int width, acc_t alpha, acc_t beta)
{
	int own = width / r->nr;
	long to;

#pragma omp parallel for collapse(3) private(to)
	for (int i = 0; i < r->b; i++)
		for (int set = 0; set < r->nr; set++)
			for (int c = 0; c < own; c += COLS) {
				to = (long)set * own + c;
				step_columns((char *)y + (i * ldy + to) * (long)size, size,
					     r->row + ((long)i * r->nr + set) * r->row_stride,
					     x->base + i * x->seq + at + to, x->row,
					     MIN(COLS, own - c), r->pos[i], alpha, beta);
			}
}

void k_route_gather_step(const struct route_step *r, const struct route_rows *y,
			 const struct cache_rows *x, double alpha, double beta)
{
	step_part(r, y->x, sizeof(act_t), y->ld, x, 0, y->width, alpha, beta);
	if (y->wide)
		step_part(r, y->wide, sizeof(acc_t), y->wide_ld, x, y->width, y->wide_width,
			  alpha, beta);
}
