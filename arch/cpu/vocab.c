// SPDX-License-Identifier: MIT
/*
 * Embedding and cross-entropy.
 */
#include "kernels.h"
#include "math.h"
#include "util.h"

enum {
	SPLIT_MIN = 16384,	/* elements below which threads cost more than they gain */
	RUN_RANGE = 32,		/* sorted positions whose runs one thread takes at a time */
	CHUNK = 2048,		/* logits in the first cache between maximum and sum */
};

static void embed_row(act_t *x, const param_t *e, const param_t *p, int c)
{
	if (!p) {
		memcpy(x, e, c * sizeof(*x));
		return;
	}
#pragma omp simd simdlen(LANES_WIDE)
	for (int l = 0; l < c; l++)
		x[l] = store(load(e[l]) + load(p[l]));
}

void k_embed_fwd(act_t *x, const int32_t *tok, const int32_t *pos, const param_t *wte,
		 const param_t *wpe, int b, int t, int c)
{
#pragma omp parallel for collapse(2) schedule(static) if ((long)b * t * c >= SPLIT_MIN)
	for (int i = 0; i < b; i++)
		for (int j = 0; j < t; j++) {
			long row = (long)i * t + j, at = pos ? (long)pos[i] + j : j;

			embed_row(x + row * c, wte + (long)tok[row] * c,
				  wpe ? wpe + at * c : NULL, c);
		}
}

static void add_row(grad_t *sum, const act_t *x, int c)
{
#pragma omp simd simdlen(LANES_WIDE)
	for (int l = 0; l < c; l++)
		sum[l] += load(x[l]);
}

/* The runs of equal tokens that start in rows[at..at + RUN_RANGE). */
static void add_runs(grad_t *dwte, const act_t *dx, const int32_t *tok, const int32_t *rows,
		     int at, int n, int c)
{
	int end = MIN(at + RUN_RANGE, n);

	while (at > 0 && at < end && tok[rows[at]] == tok[rows[at - 1]])
		at++;
	while (at < end) {
		int32_t token = tok[rows[at]];

		do
			add_row(dwte + (long)token * c, dx + (long)rows[at++] * c, c);
		while (at < n && tok[rows[at]] == token);
	}
}

/* A run goes to one thread, which adds to dwte directly. */
size_t k_embed_scratch(int b, int t, int c)
{
	(void)b, (void)t, (void)c;
	return 0;
}

void k_embed_bwd(grad_t *dwte, grad_t *dwpe, const act_t *dx, const int32_t *tok,
		 const int32_t *order, int b, int t, int t_max, int c, void *scratch)
{
	int n = b * t;

	(void)scratch;
#pragma omp parallel if ((long)n * c >= SPLIT_MIN)
	{
#pragma omp for schedule(static) nowait
		for (int j = 0; j < (dwpe ? t_max : 0); j++) {
			grad_t *sum = dwpe + (long)j * c;

			memset(sum, 0, c * sizeof(*sum));
			for (int i = 0; i < (j < t ? b : 0); i++)
				add_row(sum, dx + ((long)i * t + j) * c, c);
		}
#pragma omp for schedule(dynamic)
		for (int at = 0; at < n; at += RUN_RANGE)
			add_runs(dwte, dx, tok, order, at, n, c);
	}
}

/* Maximum, or -inf for a row of NaN: those show in the sum. */
static acc_t maximum(const act_t *x, int n)
{
	acc_t m = -INFINITY;

#pragma omp simd simdlen(LANES_WIDE) reduction(max : m)
	for (int i = 0; i < n; i++)
		m = load(x[i]) > m ? load(x[i]) : m;
	return m;
}

static acc_t sum_exp(const act_t *x, acc_t shift, int n)
{
	acc_t sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += r_exp(load(x[i]) - shift);
	return sum;
}

/*
 * Maximum and sum of exponentials of one row, read once: a chunk's own maximum is
 * taken while it is in the first cache, the sum so far is rescaled where it rises.
 */
static void row_sum(const act_t *x, int n, acc_t *max, double *sum)
{
	*max = -INFINITY;
	*sum = 0;
	for (int i = 0; i < n; i += CHUNK) {
		int len = MIN(CHUNK, n - i);
		acc_t m = maximum(x + i, len);

		if (m > *max) {
			*sum *= r_exp(*max - m);
			*max = m;
		}
		*sum += sum_exp(x + i, *max, len);
	}
}

/* x = factor (softmax(x) - one_hot), 0 from @vocab on */
static void row_gradient(act_t *x, int32_t target, acc_t max, double sum, int vocab, int v,
			 double factor)
{
	const acc_t each = factor / sum, own = each * r_exp(load(x[target]) - max);

#pragma omp simd simdlen(LANES_WIDE)
	for (int i = 0; i < vocab; i++)
		x[i] = store(each * r_exp(load(x[i]) - max));
	x[target] = store(own - factor);
	memset(x + vocab, 0, (v - vocab) * sizeof(*x));
}

static acc_t row_xent(act_t *x, int32_t target, int v, int vocab, double factor, bool grad)
{
	acc_t max, at;
	double sum;

	if (target < 0) {
		if (grad)
			memset(x, 0, v * sizeof(*x));
		return 0;
	}
	at = load(x[target]);
	row_sum(x, vocab, &max, &sum);
	if (grad)
		row_gradient(x, target, max, sum, vocab, v, factor);
	return log(sum) + max - at;
}

void k_xent(acc_t *loss, act_t *logits, const int32_t *target, int n, int v, int vocab,
	    const int32_t *scored, bool grad)
{
	const double factor = 1.0 / *scored;

#pragma omp parallel for schedule(static) if ((long)n * v >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		loss[i] = row_xent(logits + (long)i * v, target[i], v, vocab, factor, grad);
}

void k_mask_padding(acc_t *logits, int n, int v, int vocab)
{
	for (long i = 0; i < n; i++)
		for (int j = vocab; j < v; j++)
			logits[i * v + j] = -INFINITY;
}

static int32_t row_argmax(const acc_t *x, int n)
{
	acc_t max = -INFINITY;
	int32_t best = 0;

	for (int j = 0; j < n; j++)
		if (x[j] > max) {
			max = x[j];
			best = j;
		}
	return best;
}

void k_argmax(int32_t *best, const acc_t *x, int n, int v, int vocab)
{
#pragma omp parallel for schedule(static) if ((long)n * v >= SPLIT_MIN)
	for (int i = 0; i < n; i++)
		best[i] = row_argmax(x + (long)i * v, vocab);
}

void k_loss_mean(double *dst, const acc_t *x, int n, const int32_t *scored)
{
	double sum = 0;

#pragma omp simd simdlen(LANES_WIDE) reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += x[i];
	*dst = sum / *scored;
}
