// SPDX-License-Identifier: MIT
/*
 * Selection of routing rows: attention rows are recomputed tile by tile from q, k and
 * the log-sum-exp, heads are averaged inside the tile. topk keeps a running list per
 * row; none and rms go over a row's tiles once per sum that they need.
 */
#include "route.cuh"

/*
 * A group's part of a tile by rows. Rows that a half warp writes begin 8 banks apart, and its
 * pairs of columns fill these.
 */
typedef float tile_rows[TILE][TILE + 8];

enum {
	GROUPS = 4,		/* of TILE_THREADS, which share the heads: 128 registers a thread */
	GROUPS_BAND = 3,	/* the same with a reciprocal term: 168 */
};

/* The entries of row @row of a tile, two of a lane, to its list; the groups' parts in order. */
template <int R> static __device__ __forceinline__ void
row_offer(route_key *own, const tile_rows *part, int row, int t, int u0, int topk)
{
	int lane = threadIdx.x % 32;
	route_key list[R], least = own[topk - 1], key[2];

#pragma unroll
	for (int k = 0; k < 2; k++) {
		int u = u0 + 32 * k + lane;
		float p = part[0][row][32 * k + lane];

		for (int g = 1; g < blockDim.y; g++)
			p += part[g][row][32 * k + lane];
		key[k] = u <= t ? key_of(p, u) : 0;
	}
	if (!__any_sync(~0u, key[0] > least || key[1] > least))
		return;
#pragma unroll
	for (int r = 0; r < R; r++)
		list[r] = own[32 * r + lane];
	list_offer<R>(list, key[0], topk, least);
	list_offer<R>(list, key[1], topk, least);
#pragma unroll
	for (int r = 0; r < R; r++)
		own[32 * r + lane] = list[r];
	__syncwarp();
}

/* A finished list of one row: ordered by u, normalised, the rest marked. */
static __device__ void list_finish(const struct route &r, const route_key *own, long row)
{
	int lane = threadIdx.x % 32;
	double sum = 0;
	float factor;

	for (int j = lane; j < r.topk; j += 32)
		sum += key_value(own[j]);	/* 0 where there is none */
	factor = route_factor(r.normalize, warp_sum(sum));
	for (int j = lane; j < r.topk; j += 32) {
		route_key key = own[j];
		int at = 0;

		/* larger positions have smaller low halves; those without one come last */
		for (int k = 0; k < r.topk && key; k++)
			at += own[k] && (uint32_t)own[k] > (uint32_t)key;
		at = key ? at : j;
		r.index[row * r.topk + at] = key ? key_index(key) : -1;
		r.weight[row * r.topk + at] = key ? key_value(key) * factor : 0;
	}
}

static __device__ __forceinline__ void part_store(tile_rows &part, const tile_acc &p)
{
#pragma unroll
	for (int c = 0; c < TILE / 8; c++)
#pragma unroll
		for (int k = 0; k < 4; k += 2)
			*(float2 *)&part[acc_row(k)][acc_col(c, k)] = { p[c][k], p[c][k + 1] };
}

/* Blocks with the most tiles start first: x is the sequence and row set, y the rows. */
template <int R, int G> static __global__ void __launch_bounds__(G * TILE_THREADS)
topk_kernel(struct route r, struct score_run run)
{
	extern __shared__ __align__(16) char shared[];
	struct score_smem *score = (struct score_smem *)shared;
	tile_rows *part = (tile_rows *)(score + blockDim.y);
	route_key *lists = (route_key *)(part + blockDim.y);
	int t0 = (gridDim.y - 1 - blockIdx.y) * TILE;
	int i = blockIdx.x / r.nr, set = blockIdx.x % r.nr;
	int thread = threadIdx.y * TILE_THREADS + threadIdx.x, warps = 4 * blockDim.y;
	tile_acc p;

	for (int j = thread; j < TILE * 32 * R; j += TILE_THREADS * blockDim.y)
		lists[j] = 0;
	for (int u0 = 0; u0 <= t0; u0 += TILE) {
		route_tile<G == GROUPS_BAND>(p, score[threadIdx.y], r, run, i, set, t0, u0);
		__syncthreads();	/* rows of the last tile have been read */
		part_store(part[threadIdx.y], p);
		__syncthreads();
		for (int row = thread / 32; row < TILE; row += warps)
			row_offer<R>(lists + row * 32 * R, part, row, t0 + row, u0, r.topk);
	}
	for (int row = thread / 32; row < TILE; row += warps)
		if (t0 + row < r.a.t)
			list_finish(r, lists + row * 32 * R, route_row(r, i, set, t0 + row));
}

/* As many groups as shared memory has room for. */
template <int R, int G> static void build_topk(const struct route *r)
{
	size_t lists = (size_t)TILE * 32 * R * sizeof(route_key);
	size_t each = sizeof(struct score_smem) + sizeof(tile_rows);
	int groups = r->nr == 1 ? MIN(r->a.heads, (int)G) : 1;

	while (groups > 1 && lists + groups * each > cuda_shared_max())
		groups--;
	shared_room(topk_kernel<R, G>, lists + groups * each);
	topk_kernel<R, G><<<dim3(r->a.b * r->nr, div_up(r->a.t, TILE)),
			    dim3(TILE_THREADS, groups), lists + groups * each, cuda_stream()>>>(
		*r, score_run_of(&r->a));
	CUDA_LAUNCHED();
}

template <int R> static void build_topk(const struct route *r)
{
	if (r->a.ra_scale != 0)
		build_topk<R, GROUPS_BAND>(r);
	else
		build_topk<R, GROUPS>(r);
}

/* Sums of each row's entries from its threshold on: their squares, or themselves. */
static __device__ void row_sums(double (&sum)[2], struct score_smem &mem, const struct route &r,
				const struct score_run &run, int i, int set, int t0,
				const float (&thr)[2], bool square)
{
	tile_acc p;

	sum[0] = sum[1] = 0;
	for (int u0 = 0; u0 <= t0; u0 += TILE) {
		route_tile(p, mem, r, run, i, set, t0, u0);
#pragma unroll
		for (int half = 0; half < 2; half++) {
			float part = 0;

#pragma unroll
			for (int c = 0; c < TILE / 8; c++)
#pragma unroll
				for (int k = 2 * half; k < 2 * half + 2; k++)
					if (p[c][k] >= thr[half])
						part += square ? p[c][k] * p[c][k] : p[c][k];
			sum[half] += part;
		}
	}
	for (int half = 0; half < 2; half++) {
		sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
		sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
	}
}

static __global__ void __launch_bounds__(TILE_THREADS)
threshold_kernel(struct route r, struct score_run run)
{
	__shared__ __align__(16) struct score_smem mem;
	int t0 = (gridDim.y - 1 - blockIdx.y) * TILE;
	int i = blockIdx.x / r.nr, set = blockIdx.x % r.nr;
	float thr[2] = {}, inv[2] = { 1, 1 };
	double sum[2];

	if (r.mode == ROUTE_RMS) {
		row_sums(sum, mem, r, run, i, set, t0, thr, true);
		for (int half = 0; half < 2; half++)
			thr[half] = r.tau * sqrt(sum[half] / (t0 + acc_row(2 * half) + 1));
	}
	if (r.normalize) {
		row_sums(sum, mem, r, run, i, set, t0, thr, false);
		for (int half = 0; half < 2; half++)
			inv[half] = route_factor(true, sum[half]);
	}
	for (int half = 0; half < 2; half++) {
		int t = t0 + acc_row(2 * half);

		if (t >= r.a.t || threadIdx.x % 4)
			continue;
		r.thr[route_row(r, i, set, t)] = thr[half];
		r.inv[route_row(r, i, set, t)] = inv[half];
	}
}

void k_route_build(const struct route *r, void *scratch)
{
	dim3 grid(r->a.b * r->nr, div_up(r->a.t, TILE));

	(void)scratch;
	if (r->mode != ROUTE_TOPK) {
		threshold_kernel<<<grid, TILE_THREADS, 0, cuda_stream()>>>(*r, score_run_of(&r->a));
		CUDA_LAUNCHED();
	} else if (r->topk <= 32) {
		build_topk<1>(r);
	} else if (r->topk <= 64) {
		build_topk<2>(r);
	} else if (r->topk <= 128) {
		build_topk<4>(r);
	} else if (r->topk <= TOPK_MAX) {
		build_topk<8>(r);
	} else {
		die("routing keeps %d entries a row: at most %d here; lower "
		    "CONFIG_RA_MLA_MLP_SPARSE_K", r->topk, TOPK_MAX);
	}
}
