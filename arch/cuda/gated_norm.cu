// SPDX-License-Identifier: MIT
/*
 * RMSNorm of groups of columns, and a gate: some threads hold a group in their registers.
 * Backward goes down rows with a fixed number of them, each with the same columns of every
 * group, so that what rows give to the weight adds up in registers.
 */
#include "kernels_linattn.h"
#include "rows.cuh"
#include "silu.cuh"

enum {
	HOLD = 4,		/* columns of a thread */
	HOLD_WIDE = 2,		/* pieces of WIDE columns of a thread where a group is long */
	THREADS = 128,		/* of a block, at least */
	THREADS_MAX = 512,	/* of a group */
	CHUNKS = 512,		/* blocks of backward, at most */
};

/* Threads of a group that hold @hold pieces each, a power of two; groups below each other. */
static dim3 group_block(int width, int w, int hold)
{
	int t = 1;

	while (t * hold * w < width)
		t *= 2;
	if (t > THREADS_MAX)
		die("a gated norm of %d columns: at most %d; set more groups", width,
		    THREADS_MAX * hold * w);
	return dim3(t, t < THREADS ? THREADS / t : 1);
}

/* Can a warp hold a group, a piece each? */
static bool group_short(int width, int w)
{
	return width <= 32 * w;
}

static bool norm_wide(const struct gated_norm *a, const void *p, const void *q, const void *r)
{
	return row_wide(a->x, a->width) && row_wide(a->z, a->z ? a->z_row : 0) &&
	       row_wide(a->w, a->w_group) && row_wide(p, 0) && row_wide(q, 0) && row_wide(r, 0);
}

/* Over the threads of a group, to all of them. */
static __device__ __forceinline__ float group_sum(float x)
{
	__shared__ float part[THREADS_MAX / 32];
	int warps = blockDim.x / 32;

	for (int step = min(blockDim.x, 32) / 2; step; step /= 2)
		x += __shfl_xor_sync(~0u, x, step);
	if (warps <= 1)
		return x;
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[threadIdx.y * warps + threadIdx.x / 32] = x;
	__syncthreads();
	x = 0;
	for (int i = 0; i < warps; i++)
		x += part[threadIdx.y * warps + i];
	return x;
}

/* First column of piece @k of this thread. */
static __device__ __forceinline__ int column(int k, int w)
{
	return (k * blockDim.x + threadIdx.x) * w;
}

template <int W, int H>
static __global__ void __launch_bounds__(THREADS_MAX) gated_norm_fwd_kernel(struct gated_norm a)
{
	long at = (long)blockIdx.x * blockDim.y + threadIdx.y, row = at / a.groups;
	int group = at % a.groups, own = row < a.n ? a.width : 0;
	const real *x = real_of(a.x) + at * a.width;
	const real *z = a.z ? real_of(a.z) + row * a.z_row + (long)group * a.width : NULL;
	const float *w = a.w + group * a.w_group;
	float in[H][W] = {}, gate[H][W] = {}, sum = 0, r = 1;

	let_next();
	after_previous();
#pragma unroll
	for (int k = 0; k < H; k++) {
		int j = column(k, W);

		if (j >= own)
			continue;
		row_load<W>(in[k], x + j);
		if (z)
			row_load<W>(gate[k], z + j);
#pragma unroll
		for (int e = 0; e < W; e++) {
			gate[k][e] = z ? silu(gate[k][e]) : 1;
			if (a.gate_first)
				in[k][e] *= gate[k][e];
			sum = fmaf(in[k][e], in[k][e], sum);
		}
	}
	if (a.w) {
		r = 1 / sqrtf(group_sum(sum) / a.width + (float)a.epsilon);
		if (own && !threadIdx.x)
			a.rstd[at] = r;
	}
#pragma unroll
	for (int k = 0; k < H; k++) {
		int j = column(k, W);
		float scale[W];

		if (j >= own)
			continue;
		if (a.w)
			row_load<W>(scale, w + j);
#pragma unroll
		for (int e = 0; e < W; e++)
			in[k][e] *= (a.w ? r * scale[e] : 1) * (a.gate_first ? 1 : gate[k][e]);
		row_store<W>(real_of(a.y) + at * a.width + j, in[k]);
	}
}

template <int W, int H> static void gated_norm_fwd(const struct gated_norm *a)
{
	dim3 block = group_block(a->width, W, H);

	launch(gated_norm_fwd_kernel<W, H>, div_up(a->n * a->groups, block.y), block, 0, *a);
}

void k_gated_norm_fwd(const struct gated_norm *a)
{
	if (!norm_wide(a, a->y, NULL, NULL))
		gated_norm_fwd<1, HOLD>(a);
	else if (group_short(a->width, WIDE))
		gated_norm_fwd<WIDE, 1>(a);
	else
		gated_norm_fwd<WIDE, HOLD_WIDE>(a);
}

/* ---- backward ------------------------------------------------------------------- */

/* part: [blocks][weights' groups][width] */
struct gated_bwd {
	struct gated_norm a;
	real *dx, *dz;
	const real *dy;
	float *part;
};

/* A piece of a group: input, gate's argument, gradient of y, weight. */
template <int W> struct piece {
	float x[W], z[W], d[W], w[W];
};

template <int W>
static __device__ __forceinline__ void piece_load(struct piece<W> &v, const struct gated_bwd &n,
						  const float *w, long at, long gate)
{
#pragma unroll
	for (int e = 0; e < W; e++) {
		v.z[e] = 0;
		v.w[e] = 1;
	}
	row_load<W>(v.x, real_of(n.a.x) + at);
	row_load<W>(v.d, n.dy + at);
	if (n.a.z)
		row_load<W>(v.z, real_of(n.a.z) + gate);
	if (n.a.w)
		row_load<W>(v.w, w);
}

/* What is normalised, and the gradient of what comes out of norm and weight. */
template <int W>
static __device__ __forceinline__ float2 inner(const struct piece<W> &v, const struct gated_norm &a,
					       int e)
{
	float gate = a.z ? silu(v.z[e]) : 1;

	return a.gate_first ? make_float2(v.x[e] * gate, v.d[e]) :
			      make_float2(v.x[e], v.d[e] * gate);
}

/* dx and dz of a piece; @slope: <gradient w, input> r^2 / width */
template <int W>
static __device__ __forceinline__ void piece_bwd(const struct piece<W> &v, const struct gated_bwd &n,
						 float r, float slope, long at, long gate)
{
	float dx[W], dz[W];

#pragma unroll
	for (int e = 0; e < W; e++) {
		float2 u = inner(v, n.a, e);
		float factor = r * v.w[e], g = u.y * factor - r * u.x * slope;

		dx[e] = n.a.z && n.a.gate_first ? g * silu(v.z[e]) : g;
		dz[e] = (n.a.gate_first ? g * v.x[e] : v.d[e] * u.x * factor) * silu_grad(v.z[e]);
	}
	row_store<W>(n.dx + at, dx);
	if (n.dz)
		row_store<W>(n.dz + gate, dz);
}

/*
 * blockIdx.y: the group of a row where each has a weight of its own, else groups of all rows
 * are one behind the other.
 */
template <int W, int H>
static __global__ void __launch_bounds__(THREADS_MAX) gated_norm_bwd_kernel(struct gated_bwd n)
{
	extern __shared__ float teams[];
	const struct gated_norm &a = n.a;
	bool each = a.w_group;
	long items = each ? a.n : (long)a.n * a.groups, step = (long)gridDim.x * blockDim.y;
	const float *w = a.w + blockIdx.y * a.w_group;
	float dw[H][W] = {};

	for (long i0 = (long)blockIdx.x * blockDim.y; i0 < items; i0 += step) {
		long i = i0 + threadIdx.y, at = each ? i * a.groups + blockIdx.y : i;
		long gate = at / a.groups * a.z_row + at % a.groups * a.width;
		int own = i < items ? a.width : 0;
		float r = own && a.w ? a.rstd[at] : 1, dot = 0;
		struct piece<W> v[H];

#pragma unroll
		for (int k = 0; k < H; k++) {
			int j = column(k, W);

			if (j >= own)
				continue;
			piece_load(v[k], n, w + j, at * a.width + j, gate + j);
#pragma unroll
			for (int e = 0; e < W; e++) {
				float2 u = inner(v[k], a, e);

				dw[k][e] = fmaf(u.y * u.x, r, dw[k][e]);
				dot = fmaf(u.y * v[k].w[e], u.x, dot);
			}
		}
		dot = a.w ? group_sum(dot) * r * r / a.width : 0;
#pragma unroll
		for (int k = 0; k < H; k++) {
			int j = column(k, W);

			if (j < own)
				piece_bwd(v[k], n, r, dot, at * a.width + j, gate + j);
		}
	}
	if (!a.w)
		return;
#pragma unroll
	for (int k = 0; k < H; k++)
		if (column(k, W) < a.width)
#pragma unroll
			for (int e = 0; e < W; e++)
				teams[threadIdx.y * a.width + column(k, W) + e] = dw[k][e];
	__syncthreads();
	n.part += ((long)blockIdx.x * gridDim.y + blockIdx.y) * a.width;
	for (int j = threadIdx.y * blockDim.x + threadIdx.x; j < a.width;
	     j += blockDim.x * blockDim.y) {
		float sum = 0;

		for (int team = 0; team < blockDim.y; team++)
			sum += teams[team * a.width + j];
		n.part[j] = sum;
	}
}

template <int W, int H> static void gated_norm_bwd(struct gated_bwd *n, grad_t *dw)
{
	const struct gated_norm *a = &n->a;
	dim3 block = group_block(a->width, W, H);
	int groups = a->w_group ? a->groups : 1, items = a->n * (a->groups / groups);
	int most = MAX(CHUNKS / groups, 1), chunks = MIN(div_up(items, block.y), most);
	size_t bytes = a->w ? (size_t)block.y * a->width * sizeof(float) : 0;

	if (a->w)
		n->part = (float *)workspace_part((size_t)chunks * groups * a->width *
						  sizeof(*n->part));
	shared_room(gated_norm_bwd_kernel<W, H>, bytes);
	gated_norm_bwd_kernel<W, H><<<dim3(chunks, groups), block, bytes, cuda_stream()>>>(*n);
	CUDA_LAUNCHED();
	if (a->w)
		sum_parts(sum_to<1>{ { dw } }, n->part, chunks, groups * a->width);
}

void k_gated_norm_bwd(const struct gated_norm *a, act_t *dx, act_t *dz, grad_t *dw,
		      const act_t *dy)
{
	struct gated_bwd n = { *a, real_of(dx), real_of(dz), real_of(dy) };

	if (!norm_wide(a, dx, dz, dy))
		gated_norm_bwd<1, HOLD>(&n, dw);
	else if (group_short(a->width, WIDE))
		gated_norm_bwd<WIDE, 1>(&n, dw);
	else
		gated_norm_bwd<WIDE, HOLD_WIDE>(&n, dw);
}
