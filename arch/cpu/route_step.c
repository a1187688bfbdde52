// SPDX-License-Identifier: MIT
/*
 * Routing of one new position per sequence: the dense row is at hand, so the
 * selection of route.c runs on it directly and the row stays dense.
 */
#include <math.h>
#include <stdint.h>

#include "route.h"

/* One more entry for a descending list of n, behind its equals; returns the new n. */
static int list_insert(act_t *weight, int32_t *index, int n, int topk, act_t x, int u)
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
static void row_topk(const struct route *r, act_t *row, int n)
{
	act_t *weight = tile_scratch(2 * (size_t)r->topk);
	int32_t *index = (int32_t *)(weight + r->topk);
	double sum = 0;
	act_t factor;
	int kept = 0;

	for (int u = 0; u < n; u++)
		kept = list_insert(weight, index, kept, r->topk, row[u], u);
	route_sort(weight, index, kept);
	for (int j = 0; j < kept; j++)
		sum += weight[j];
	factor = route_factor(r, sum);
	for (int u = 0; u < n; u++)
		row[u] = 0;
	for (int j = 0; j < kept; j++)
		row[index[j]] = factor * weight[j];
}

/* Keep the entries of row[n] from the threshold on. */
static void row_threshold(const struct route *r, act_t *row, int n)
{
	double squares = 0, sum = 0;
	act_t thr = 0, factor;

	for (int u = 0; u < n; u++)
		squares += (double)row[u] * row[u];
	if (r->mode == ROUTE_RMS)
		thr = r->tau * sqrt(squares / n);
	for (int u = 0; u < n; u++) {
		row[u] = row[u] >= thr ? row[u] : 0;
		sum += row[u];
	}
	factor = route_factor(r, sum);
	for (int u = 0; u < n; u++)
		row[u] *= factor;
}

void k_route_step(const struct route *r, const act_t *p, long p_stride, int b, int heads, int pos)
{
	int share = heads / r->nr;	/* heads of a row set: all, or 1 */
	const act_t *from;
	act_t *row;

#pragma omp parallel for collapse(2) private(from, row)
	for (int i = 0; i < b; i++) {
		for (int set = 0; set < r->nr; set++) {
			from = p + ((long)i * heads + set * share) * p_stride;
			row = r->row + ((long)i * r->nr + set) * r->row_stride;
			for (int u = 0; u <= pos; u++)
				row[u] = from[u];
			for (int h = 1; h < share; h++)
				for (int u = 0; u <= pos; u++)
					row[u] += from[h * p_stride + u];
			for (int u = 0; u <= pos; u++)
				row[u] *= (act_t)1 / share;
			if (r->mode == ROUTE_TOPK)
				row_topk(r, row, pos + 1);
			else
				row_threshold(r, row, pos + 1);
		}
	}
}

/* y[cols] of one row set */
static void step_columns(act_t *y, const act_t *row, const act_t *x, long x_row, int cols, int pos,
			 act_t alpha, act_t beta)
{
	act_t factor;

	for (int c = 0; c < cols; c++)
		y[c] = beta == 0 ? 0 : beta * y[c];
	for (int u = 0; u <= pos; u++) {
		if (row[u] == 0)	/* not routed */
			continue;
		factor = alpha * row[u];
		for (int c = 0; c < cols; c++)
			y[c] += factor * x[u * x_row + c];
	}
}

void k_route_gather_step(const struct route *r, act_t *y, long ldy, const act_t *x, long x_seq,
			 long x_row, int b, int width, int pos, double alpha, double beta)
{
	enum { COLS = 64 };	/* columns of a task */
	int own = width / r->nr;
	long at;

#pragma omp parallel for collapse(3) private(at)
	for (int i = 0; i < b; i++)
		for (int set = 0; set < r->nr; set++)
			for (int c = 0; c < own; c += COLS) {
				at = (long)set * own + c;
				step_columns(y + i * ldy + at,
					     r->row + ((long)i * r->nr + set) * r->row_stride,
					     x + i * x_seq + at, x_row, MIN(COLS, own - c), pos,
					     alpha, beta);
			}
}
