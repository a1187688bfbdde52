// SPDX-License-Identifier: MIT
/*
 * Backward of a norm whose row fits a warp, in one pass over the rows. A lane has the same
 * columns of every row, so that what rows give to scale and shift adds up in registers.
 * Rows come through shared memory, STAGES at a time: a lane reads what it copied itself,
 * so that warps wait for nobody until their sums are put together.
 */
#include "norm.cuh"

enum {
	WARPS = 8,
	THREADS = 32 * WARPS,
	STAGES = 3,		/* rows of a warp under way, the one in hand with them */
	CHUNKS = 256,		/* parts of the rows, at most: two blocks a multiprocessor */
};

/* Places of a row: a group of WIDE elements of each of the three that are read. */
template <int HOLD> struct stage {
	uint4 x[HOLD][32], g[HOLD][32], res[HOLD][32];
};

template <int HOLD> struct ring {
	struct stage<HOLD> at[WARPS][STAGES];
};

/* Columns of group @k of this lane. */
static __device__ __forceinline__ int column(int k)
{
	return (k * 32 + threadIdx.x % 32) * WIDE;
}

/* Starts copying row @i, if it is before @end; a group of copies either way. */
template <int HOLD>
static __device__ __forceinline__ void fetch(struct stage<HOLD> &to, const struct norm_bwd &n,
					     long i, long end)
{
	int lane = threadIdx.x % 32;

#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		long at = i * n.a.c + column(k);

		if (i >= end || column(k) >= n.a.c)
			continue;
		copy16(&to.x[k][lane], bf16_of(n.a.x) + at);
		copy16(&to.g[k][lane], n.dxn + at);
		if (n.dres)
			copy16(&to.res[k][lane], n.dres + at);
	}
	copy_commit();
}

static __device__ __forceinline__ void widen(float (&f)[WIDE], const uint4 &x)
{
	row_load<WIDE>(f, (const bf16 *)&x);
}

/* What this lane has of dw and db. */
template <int HOLD> struct own {
	float dw[HOLD][WIDE], db[HOLD][WIDE];
};

/* xhat and the gradient of the norm's output, of the columns of group @k. */
template <int HOLD>
static __device__ __forceinline__ void group(float (&x)[WIDE], float (&g)[WIDE],
					     const struct stage<HOLD> &in, int k, float mean,
					     float r)
{
	widen(x, in.x[k][threadIdx.x % 32]);
	widen(g, in.g[k][threadIdx.x % 32]);
#pragma unroll
	for (int e = 0; e < WIDE; e++)
		x[e] = (x[e] - mean) * r;
}

/* dx of row @i, from shared memory twice: registers are for the sums. */
template <int HOLD>
static __device__ __forceinline__ void row_bwd(struct own<HOLD> &own, const struct stage<HOLD> &in,
					       const struct norm_bwd &n, long i)
{
	float x[WIDE], g[WIDE], w[WIDE], sum = 0, dot = 0;
	float mean = n.a.rms ? 0 : n.a.mean[i], r = n.a.rstd[i];
	int c = n.a.c;

#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		if (column(k) >= c)
			continue;
		group(x, g, in, k, mean, r);
		row_load<WIDE>(w, n.a.w + column(k));
#pragma unroll
		for (int e = 0; e < WIDE; e++) {
			own.db[k][e] += g[e];
			own.dw[k][e] += g[e] * x[e];
			sum += g[e] * w[e];
			dot += g[e] * w[e] * x[e];
		}
	}
	sum = n.a.rms ? 0 : warp_sum(sum) / c;
	dot = warp_sum(dot) / c;
#pragma unroll
	for (int k = 0; k < HOLD; k++) {
		float res[WIDE] = {};

		if (column(k) >= c)
			continue;
		group(x, g, in, k, mean, r);
		row_load<WIDE>(w, n.a.w + column(k));
		if (n.dres)
			widen(res, in.res[k][threadIdx.x % 32]);
#pragma unroll
		for (int e = 0; e < WIDE; e++)
			res[e] += r * (g[e] * w[e] - sum - x[e] * dot);
		row_store<WIDE>(n.dx + i * c + column(k), res);
	}
}

/* part[2][c] = the warps' dw and db, one below the other in @all [WARPS][c] */
template <int HOLD>
static __device__ void put_sums(float *part, float *all, const struct own<HOLD> &own, int c)
{
	for (int s = 0; s < 2; s++) {
		__syncthreads();
#pragma unroll
		for (int k = 0; k < HOLD; k++)
			if (column(k) < c)
				row_store<WIDE>(all + threadIdx.x / 32 * c + column(k),
						s ? own.db[k] : own.dw[k]);
		__syncthreads();
		for (int j = threadIdx.x; j < c; j += THREADS) {
			float sum = all[j];

			for (int warp = 1; warp < WARPS; warp++)
				sum += all[warp * c + j];
			part[s * c + j] = sum;
		}
	}
}

template <int HOLD> static __global__ void __launch_bounds__(THREADS, 2)
norm_bwd_kernel(struct norm_bwd n, float *part, int rows)
{
	extern __shared__ __align__(16) char mem[];
	struct stage<HOLD> *in = ((struct ring<HOLD> *)mem)->at[threadIdx.x / 32];
	long i = (long)blockIdx.x * rows, end = i + rows < n.a.n ? i + rows : n.a.n;
	struct own<HOLD> own = {};
	int stage = 0;

	i += threadIdx.x / 32;
	for (int s = 0; s < STAGES - 1; s++)
		fetch(in[s], n, i + s * WARPS, end);
	for (; i < end; i += WARPS) {
		fetch(in[(stage + STAGES - 1) % STAGES], n, i + (STAGES - 1) * WARPS, end);
		copy_wait<STAGES - 1>();
		row_bwd(own, in[stage], n, i);
		stage = (stage + 1) % STAGES;
	}
	copy_wait<0>();
	put_sums(part + 2l * blockIdx.x * n.a.c, (float *)mem, own, n.a.c);
}

template <int HOLD> static void norm_bwd(const struct norm_bwd *n)
{
	int rows = ROUND_UP(div_up(n->a.n, CHUNKS), WARPS), chunks = div_up(n->a.n, rows);
	float *part = (float *)workspace_part((size_t)chunks * 2 * n->a.c * sizeof(*part));
	int bytes = sizeof(struct ring<HOLD>);

	shared_room(norm_bwd_kernel<HOLD>, bytes);
	norm_bwd_kernel<HOLD><<<chunks, THREADS, bytes, cuda_stream()>>>(*n, part, rows);
	CUDA_LAUNCHED();
	sum_parts(sum_to<2>{ { n->dw, n->a.rms ? NULL : n->db } }, part, chunks, n->a.c);
}

bool norm_bwd_warp(const struct norm_bwd *n)
{
	int hold = div_up(n->a.c, 32 * WIDE);

	if (hold == 1)
		norm_bwd<1>(n);
	else if (hold == 2)
		norm_bwd<2>(n);
	else if (hold == 3)
		norm_bwd<3>(n);
	else if (hold == 4)
		norm_bwd<4>(n);
	return hold <= 4;
}
