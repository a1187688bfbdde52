/* SPDX-License-Identifier: MIT */
/**
 * DOC: dense linear algebra in double
 *
 * Matrices are row-major. Eigenvalues come from LAPACK, in one thread.
 */
#ifndef TENON_COMPRESS_LAPACK_H
#define TENON_COMPRESS_LAPACK_H

#include <stdbool.h>
#include <stdint.h>

/**
 * product() - c[m][n] += a b
 * @a: element (i, l) at a[i * row + l * col]
 * @b: [k][n]
 */
void product(double *c, const double *a, long row, long col, const double *b, int m, int n, int k);

/** dot() - of two vectors of @n */
double dot(const double *a, const double *b, long n);

/**
 * eigen() - the largest eigenvalues of a symmetric matrix
 * @a: [n][n], destroyed
 * @m: how many
 * @lambda: [m], the largest first
 * @vec: [m][n] their vectors, or NULL
 *
 * Dies where LAPACK does not converge (a matrix that is not finite).
 */
void eigen(double *a, int n, int m, double *lambda, double *vec);

/** products_of_rows() - g[m][m] = x x^T, or @columns g[n][n] = x^T x, of x[m][n] */
void products_of_rows(double *g, const double *x, int m, int n, bool columns);

/**
 * orthonormal() - Gram and Schmidt, twice
 * @x: [m][n]; a row that the rows before it span becomes 0
 */
void orthonormal(double *x, int m, int n);

/** random_rows() - m orthonormal rows of n, of the uniform distribution over such */
void random_rows(double *x, int m, int n, uint64_t stream);

#endif
