// SPDX-License-Identifier: MIT
/* Operands of a recurrence for the host, and outputs from there. */
#include <stdlib.h>

#include "linattn.cuh"

/* [n][width] of rows @row apart, as stored */
template <class T> static T *fetch(const T *src, long row, int n, int width)
{
	T *rows = (T *)xmalloc((size_t)n * width * sizeof(T));

	CUDA(cudaMemcpy2DAsync(rows, width * sizeof(T), src, row * sizeof(T), width * sizeof(T), n,
			       cudaMemcpyDefault, cuda_stream()));
	CUDA(cudaStreamSynchronize(cuda_stream()));
	return rows;
}

static void widen(double *dst, const real *src, long row, int n, int width)
{
	real *rows = fetch(src, row, n, width);

	for (long e = 0; e < (long)n * width; e++)
		dst[e] = (float)rows[e];
	free(rows);
}

static void get_alpha(double *dst, const struct linattn *a, int i, int h)
{
	const float *src = linattn_g(*a, i, h);
	int width = a->decay == LINATTN_VECTOR ? a->dk : 1;
	float *g = src ? fetch(src, a->g_row, a->t, width) : NULL;

	for (int r = 0; r < a->t; r++)
		for (int c = 0; c < a->dk; c++)
			*dst++ = g ? exp((double)g[(long)r * width + (width > 1 ? c : 0)]) :
				     (double)linattn_alpha(*a, h);
	free(g);
}

void k_linattn_get(const struct linattn *a, int i, int h, struct linattn_host *x)
{
	widen(x->q, linattn_q(*a, i, h), a->q_row, a->t, a->dk);
	widen(x->k, linattn_k(*a, i, h), a->k_row, a->t, a->dk);
	widen(x->v, linattn_v(*a, i, h), a->v_row, a->t, a->dv);
	get_alpha(x->alpha, a, i, h);
}

void k_linattn_put(const struct linattn *a, int i, int h, const double *o)
{
	long n = (long)a->t * a->dv, row = (long)a->heads * a->dv;
	real *rows = (real *)xmalloc(n * sizeof(*rows));

	for (long e = 0; e < n; e++)
		rows[e] = (real)(float)o[e];
	CUDA(cudaMemcpy2DAsync(real_of(a->o) + (long)i * a->t * row + (long)h * a->dv,
			       row * sizeof(*rows), rows, a->dv * sizeof(*rows),
			       a->dv * sizeof(*rows), a->t, cudaMemcpyDefault, cuda_stream()));
	CUDA(cudaStreamSynchronize(cuda_stream()));
	free(rows);
}
