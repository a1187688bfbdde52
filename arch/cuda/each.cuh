/* SPDX-License-Identifier: MIT */
/**
 * DOC: element-wise work
 */
#ifndef TENON_CUDA_EACH_CUH
#define TENON_CUDA_EACH_CUH

#include "rows.cuh"

enum { EACH_THREADS = 256 };

/* f(first) of every group of W elements, and of the last ones one by one. */
template <int W, class F> static __global__ void __launch_bounds__(EACH_THREADS)
each_kernel(F f, size_t n)
{
	size_t i = ((size_t)blockIdx.x * EACH_THREADS + threadIdx.x) * W;

	let_next();
	after_previous();
	if (i + W <= n)
		f.template at<W>(i);
	else
		for (; i < n; i++)
			f.template at<1>(i);
}

template <int W, class F> static void each_of(F f, size_t n)
{
	size_t block = (size_t)EACH_THREADS * W;

	launch(each_kernel<W, F>, (unsigned int)((n + block - 1) / block), EACH_THREADS, 0, f, n);
}

/**
 * each() - f.at<W>(i) for all of @n elements
 * @wide: WIDE at a time
 */
template <class F> static void each(F f, size_t n, bool wide)
{
	if (n && wide)
		each_of<WIDE>(f, n);
	else if (n)
		each_of<1>(f, n);
}

#endif
