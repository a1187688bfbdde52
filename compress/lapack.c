// SPDX-License-Identifier: MIT
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "lapack.h"
#include "util.h"

/* Fortran's symbols: every library of the kind has them, with headers or without. */
void dsyevr_(const char *vectors, const char *range, const char *half, const int *n, double *a,
	     const int *lda, const double *from, const double *to, const int *first, const int *last,
	     const double *tolerance, int *found, double *lambda, double *z, const int *ldz,
	     int *support, double *work, const int *nr_work, int *iwork, const int *nr_iwork,
	     int *info);
void dsyrk_(const char *half, const char *trans, const int *n, const int *k, const double *alpha,
	    const double *a, const int *lda, const double *beta, double *c, const int *ldc);
/* Results must not depend on the number of threads; other libraries have one anyway. */
void openblas_set_num_threads(int n) __attribute__((weak));

void product(double *c, const double *a, long row, long col, const double *b, int m, int n, int k)
{
	for (int i = 0; i < m; i++, c += n, a += row) {
		int l = 0;

		for (; l + 4 <= k; l += 4) {
			const double *a0 = a + l * col, *b0 = b + (long)l * n;
			const double *b1 = b0 + n, *b2 = b1 + n, *b3 = b2 + n;
			double s0 = a0[0], s1 = a0[col], s2 = a0[2 * col], s3 = a0[3 * col];

#pragma omp simd
			for (int j = 0; j < n; j++)
				c[j] += (s0 * b0[j] + s1 * b1[j]) + (s2 * b2[j] + s3 * b3[j]);
		}
		for (; l < k; l++) {
			const double *b0 = b + (long)l * n;
			double s = a[l * col];

#pragma omp simd
			for (int j = 0; j < n; j++)
				c[j] += s * b0[j];
		}
	}
}

double dot(const double *a, const double *b, long n)
{
	double sum = 0;

#pragma omp simd reduction(+:sum)
	for (long i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static void one_thread(void)
{
	if (openblas_set_num_threads)
		openblas_set_num_threads(1);
}

/* @z: [m][n], the smallest of the m first */
static int call_dsyevr(double *a, int n, int m, double *lambda, double *z)
{
	int first = n - m + 1, found, nr = -1, nr_int = -1, info, *support, *iwork, size;
	double zero = 0, *work, best;

	dsyevr_(z ? "V" : "N", "I", "U", &n, a, &n, &zero, &zero, &first, &n, &zero, &found, lambda,
		z, &n, NULL, &best, &nr, &size, &nr_int, &info);
	nr = best;
	nr_int = size;
	work = xmalloc(sizeof(*work) * nr);
	iwork = xmalloc(sizeof(*iwork) * nr_int);
	support = xmalloc(sizeof(*support) * 2 * n);
	dsyevr_(z ? "V" : "N", "I", "U", &n, a, &n, &zero, &zero, &first, &n, &zero, &found, lambda,
		z, &n, support, work, &nr, iwork, &nr_int, &info);
	free(support);
	free(iwork);
	free(work);
	return info;
}

void eigen(double *a, int n, int m, double *lambda, double *vec)
{
	double *up = xmalloc(sizeof(*up) * n), *z = vec ? xmalloc(sizeof(*z) * m * n) : NULL;

	for (long i = 0; i < (long)n * n; i++)
		if (!isfinite(a[i]))
			die("compress: a state is not finite; the checkpoint has diverged, choose "
			    "an earlier one");
	one_thread();
	if (call_dsyevr(a, n, m, up, z))
		die("compress: LAPACK's dsyevr found no eigenvalues of a matrix of %d", n);
	for (int i = 0; i < m; i++) {
		lambda[i] = MAX(up[m - 1 - i], 0);
		if (vec)
			memcpy(vec + (long)i * n, z + (long)(m - 1 - i) * n, sizeof(*z) * n);
	}
	free(z);
	free(up);
}

/* For Fortran x is [n] by [m]. */
void products_of_rows(double *g, const double *x, int m, int n, bool columns)
{
	double one = 1, zero = 0;
	int size = columns ? n : m, sum = columns ? m : n;

	one_thread();
	dsyrk_("U", columns ? "N" : "T", &size, &sum, &one, x, &n, &zero, g, &size);
	for (int i = 0; i < size; i++)
		for (int j = 0; j < i; j++)
			g[(long)j * size + i] = g[(long)i * size + j];
}

/* What is left of a row that those before it span is rounding. */
#define SPANNED 1e-10

void orthonormal(double *x, int m, int n)
{
	for (int i = 0; i < m; i++) {
		double *row = x + (long)i * n, before = dot(row, row, n), after;

		for (int twice = 0; twice < 2; twice++)
			for (int j = 0; j < i; j++) {
				const double *other = x + (long)j * n;
				double part = dot(row, other, n);

				for (int c = 0; c < n; c++)
					row[c] -= part * other[c];
			}
		after = dot(row, row, n);
		after = after > SPANNED * SPANNED * before ? 1 / sqrt(after) : 0;
		for (int c = 0; c < n; c++)
			row[c] *= after;
	}
}

void random_rows(double *x, int m, int n, uint64_t stream)
{
	for (long i = 0; i < (long)m * n; i++)
		x[i] = rng_normal(0, stream, i);
	orthonormal(x, m, n);
}
