// SPDX-License-Identifier: MIT
/*
 * AdamW with SPAM's element clip: moments, master weights and weights in one pass.
 */
#include "optim.cuh"

enum {
	THREADS = 256,
	BLOCK = 4 * THREADS * GROUP,	/* elements of a thread block */
};

static __device__ __forceinline__ void update(const struct adam &a, float decay, float &w, float g,
					      float &m, float &v)
{
	float gi = (a.clip > 0 ? clipped(g, v, a.clip) : g) * a.gscale;

	m = a.keep_m * m + a.take_m * gi;
	v = a.keep_v * v + a.take_v * gi * gi;
	w -= a.step * m / (sqrtf(v * a.inv_corr2) + a.epsilon) + decay * w;
	if (a.reset)
		m = v = 0;
}

/*
 * W elements: at @i of the optimizer's buffers, their weights at @wide (float) or at @w.
 * Without masters the weights are their own.
 */
template <int W> static __device__ __forceinline__ void
update_at(const struct adam &a, float decay, const struct adam_buffers &x, size_t i, float *wide,
	  real *narrow)
{
	float w[W], g[W], m[W], v[W];

	row_load<W>(g, x.g + i);
	row_load<W>(m, x.m + i);
	row_load<W>(v, x.v + i);
	if (x.master)
		row_load<W>(w, x.master + i);
	else if (wide)
		row_load<W>(w, wide);
	else
		row_load<W>(w, narrow);
#pragma unroll
	for (int e = 0; e < W; e++)
		update(a, decay, w[e], g[e], m[e], v[e]);
	row_store<W>(x.m + i, m);
	row_store<W>(x.v + i, v);
	if (x.master)
		row_store<W>(x.master + i, w);
	if (wide)
		row_store<W>(wide, w);
	else
		row_store<W>(narrow, w);
}

static __global__ void __launch_bounds__(THREADS)
adamw_kernel(struct adam_buffers x, struct optim_span s, struct adam_hyper hp,
	     const struct adam_state *st)
{
	__shared__ struct adam a;
	size_t from = s.offset + (size_t)blockIdx.x * BLOCK;
	size_t end = MIN(from + BLOCK, s.offset + s.n);

	if (st->common.skip)
		return;
	if (threadIdx.x == 0)
		a = adam_of(&hp, st);
	__syncthreads();
	each_piece(s, from, end, [&](const struct optim_range *r, size_t at, size_t to) {
		const struct adam own = a;
		float decay = st->lr * r->decay;
		float *wide = r->wide ? (float *)(x.w + r->offset) - r->offset : NULL;
		bool aligned = r->offset % WIDE == 0;
		size_t i = at + threadIdx.x * GROUP;

		for (; i < to; i += THREADS * GROUP) {
			if (aligned && i + GROUP <= to && i % GROUP == 0) {
				update_at<GROUP>(own, decay, x, i - s.offset,
						 wide ? wide + i : NULL, real_of(x.w) + i);
				continue;
			}
			for (size_t k = i; k < MIN(i + GROUP, to); k++)
				update_at<1>(own, decay, x, k - s.offset, wide ? wide + k : NULL,
					     real_of(x.w) + k);
		}
	});
}

void k_adamw(const struct adam_buffers *x, const struct optim_span *s, const struct adam_hyper *hp,
	     const struct adam_state *st)
{
	unsigned int blocks = (s->n + BLOCK - 1) / BLOCK;

	if (!blocks)
		return;
	adamw_kernel<<<blocks, THREADS, 0, cuda_stream()>>>(*x, *s, *hp, st);
	CUDA_LAUNCHED();
}
