// SPDX-License-Identifier: MIT
/*
 * Embedding and cross-entropy.
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	RADIX_BITS = 11,
	RADIX = 1 << RADIX_BITS,
	RUN_RANGE = 32,		/* sorted positions whose runs one thread takes at a time */
	CHUNK = 2048,		/* logits in the first cache between maximum and sum */
};

void k_embed_fwd(act_t *x, const int32_t *tok, int ld, const param_t *wte, const param_t *wpe,
		 int b, int t, int pos, int c)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)b * t * c >= SPLIT_MIN)
	for (int i = 0; i < b; i++)
		for (int j = 0; j < t; j++) {
			const param_t *e = wte + (long)tok[(long)i * ld + j] * c;
			const param_t *p = wpe + (long)(pos + j) * c;
			act_t *out = x + ((long)i * t + j) * c;

#pragma omp simd simdlen(LANES_WIDE)
			for (int l = 0; l < c; l++)
				out[l] = e[l] + p[l];
		}
}

/* Token ids [b][t] with a row stride. */
struct tokens {
	const int32_t *tok;
	int ld, t;
};

/* Token of row @i, i = sequence * t + position. */
static int32_t token_of(const struct tokens *k, int i)
{
	return k->tok[(long)(i / k->t) * k->ld + i % k->t];
}

/*
 * Stable sort of the rows 0..n-1 by their token, least significant digit first,
 * from one half of @order into the other. Returns the half that is sorted.
 */
static const int32_t *sort_rows(const struct tokens *k, int32_t *order, int n)
{
	int32_t *from = order, *to = order + n, *swap, max = 0;

	for (int i = 0; i < n; i++) {
		from[i] = i;
		max = MAX(max, token_of(k, i));
	}
	for (int shift = 0; shift < 31 && max >> shift; shift += RADIX_BITS) {
		int32_t start[RADIX + 1] = { 0 };

		for (int i = 0; i < n; i++)
			start[(token_of(k, i) >> shift) % RADIX + 1]++;
		for (int i = 0; i < RADIX; i++)
			start[i + 1] += start[i];
		for (int i = 0; i < n; i++)
			to[start[(token_of(k, from[i]) >> shift) % RADIX]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	return from;
}

static void add_row(grad_t *sum, const act_t *x, int c)
{
#pragma omp simd simdlen(LANES_WIDE)
	for (int l = 0; l < c; l++)
		sum[l] += x[l];
}

/* The runs of equal tokens that start in rows[at..at + RUN_RANGE). */
static void add_runs(grad_t *dwte, const act_t *dx, const struct tokens *k, const int32_t *rows,
		     int at, int n, int c)
{
	int end = MIN(at + RUN_RANGE, n);

	while (at > 0 && at < end && token_of(k, rows[at]) == token_of(k, rows[at - 1]))
		at++;
	while (at < end) {
		int32_t token = token_of(k, rows[at]);

		do
			add_row(dwte + (long)token * c, dx + (long)rows[at++] * c, c);
		while (at < n && token_of(k, rows[at]) == token);
	}
}

void k_embed_bwd(grad_t *dwte, grad_t *dwpe, const act_t *dx, const int32_t *tok, int ld, int b,
		 int t, int t_max, int c, int32_t *order)
{
	const struct tokens k = { tok, ld, t };
	int n = b * t;
	const int32_t *rows = sort_rows(&k, order, n);

#pragma omp parallel if ((long)n * c >= SPLIT_MIN)
	{
#pragma omp for schedule(static) nowait
		for (int j = 0; j < t_max; j++) {
			grad_t *sum = dwpe + (long)j * c;

			memset(sum, 0, c * sizeof(*sum));
			for (int i = 0; i < (j < t ? b : 0); i++)
				add_row(sum, dx + ((long)i * t + j) * c, c);
		}
#pragma omp for schedule(dynamic)
		for (int at = 0; at < n; at += RUN_RANGE)
			add_runs(dwte, dx, &k, rows, at, n, c);
	}
}

/* Maximum, or -inf for a row of NaN: those show in the sum. */
static act_t maximum(const act_t *x, int n)
{
	act_t m = -INFINITY;

#pragma omp simd simdlen(LANES_WIDE) reduction(max : m)
	for (int i = 0; i < n; i++)
		m = x[i] > m ? x[i] : m;
	return m;
}

static act_t sum_exp(const act_t *x, act_t shift, int n)
{
	act_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += r_exp(x[i] - shift);
	return sum;
}

/*
 * Maximum and sum of exponentials of one row, read once: a chunk's own maximum is
 * taken while it is in the first cache, the sum so far is rescaled where it rises.
 */
static void row_sum(const act_t *x, int n, act_t *max, double *sum)
{
	*max = -INFINITY;
	*sum = 0;
	for (int i = 0; i < n; i += CHUNK) {
		int len = MIN(CHUNK, n - i);
		act_t m = maximum(x + i, len);

		if (m > *max) {
			*sum *= r_exp(*max - m);
			*max = m;
		}
		*sum += sum_exp(x + i, *max, len);
	}
}

/* x = dscale softmax(x), 0 from @vocab on */
static void row_gradient(act_t *x, act_t max, double sum, int vocab, int v, double dscale)
{
	const act_t factor = dscale / sum;

#pragma omp simd simdlen(LANES_WIDE)
	for (int i = 0; i < vocab; i++)
		x[i] = factor * r_exp(x[i] - max);
	memset(x + vocab, 0, (v - vocab) * sizeof(*x));
}

void k_xent(acc_t *loss, act_t *logits, const int32_t *target, int t, int ld, int row0, int n,
	    int v, int vocab, double dscale)
{
	const struct tokens k = { target, ld, t };

#pragma omp parallel for schedule(static) if ((long)n * v >= SPLIT_MIN)
	for (int i = 0; i < n; i++) {
		act_t *x = logits + (long)i * v, max;
		int32_t want = token_of(&k, row0 + i);
		double sum;

		row_sum(x, vocab, &max, &sum);
		loss[i] = log(sum) + max - x[want];
		if (dscale != 0) {
			row_gradient(x, max, sum, vocab, v, dscale);
			x[want] -= dscale;
		}
	}
}

void k_mask_padding(act_t *logits, int n, int v, int vocab)
{
	for (long i = 0; i < n; i++)
		for (int j = vocab; j < v; j++)
			logits[i * v + j] = -INFINITY;
}

void k_mean(double *dst, const acc_t *x, int n)
{
	double sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += x[i];
	*dst = sum / n;
}
