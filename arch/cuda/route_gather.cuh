/* SPDX-License-Identifier: MIT */
/**
 * DOC: gathers along routing rows
 */
#ifndef TENON_CUDA_ROUTE_GATHER_CUH
#define TENON_CUDA_ROUTE_GATHER_CUH

#include "route.cuh"

/**
 * struct columns - a group of columns of the moving ends
 * @out: y or dx; NULL where it is float
 * @out_wide: the same as float, or NULL
 * @ldo: its row stride
 * @in: x or dy; NULL where it is float
 * @in_wide: the same as float, or NULL
 * @ldi: its row stride
 * @width: columns of a row set
 */
struct columns {
	real *out;
	float *out_wide;
	long ldo;
	const real *in;
	const float *in_wide;
	long ldi;
	int width;
};

/**
 * struct gather - out = alpha R^ in + beta out, or with R^ transposed
 * @vec: in is read 8 elements at a time
 */
struct gather {
	struct route r;
	struct columns part;
	float alpha, beta;
	bool vec;
};

/** gather_dense() - by tiles recomputed, of the modes none and rms */
void gather_dense(const struct gather &g, bool transposed);

/** gather_lists() - topk, forward */
void gather_lists(const struct gather &g);

/** lists_sort() - entries of all rows stably sorted by u: k_route_scratch() bytes */
void lists_sort(const struct route *r, int32_t *lists);

/** gather_lists_back() - topk, transposed, along lists_sort()'s lists */
void gather_lists_back(const struct gather &g, const int32_t *lists);

#endif
