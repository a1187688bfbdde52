// SPDX-License-Identifier: MIT
/*
 * Attention forward on wgmma (sm_90a). A block has WGS warpgroups of 64 queries each,
 * which run over tiles of 64 keys; one thread keeps the copy engine STAGES tiles ahead.
 * Blocks are small so that two share a multiprocessor: while one warpgroup computes
 * exponentials the tensor cores work for the three others, and the start and end of
 * short causal rows hide behind the other block. Inside a warpgroup the product with v
 * and the next scores are started together.
 * After Shah et al. 2024 (FlashAttention-3, arXiv 2407.08608), which instead keeps one
 * block with three warpgroups and overlaps two tiles of scores inside each.
 */
#include <cudaTypedefs.h>

#include "attn_wgmma.cuh"

/* Shared memory of a block; blocks of 1024-byte alignment first. */
template <int DK, int DV, int STAGES, int WGS> struct fwd_smem {
	bf16 q[WGS][TILE * DK];
	bf16 k[STAGES][TILE * DK];
	bf16 v[STAGES][TILE * DV];
	uint64_t q_full, full[STAGES], empty[STAGES];
};

template <int DK, int DV, int STAGES, int WGS>
static __device__ __forceinline__ void fwd_fetch(struct fwd_smem<DK, DV, STAGES, WGS> *m,
						 const struct attn_maps &maps, int tile, int kh,
						 int vh, int i)
{
	int stage = tile % STAGES;

	mbar_expect(&m->full[stage], (DK + DV) * TILE * 2);
	tile_fetch<DK>(m->k[stage], &maps.k, &m->full[stage], tile * TILE, kh, i);
	tile_fetch<DV>(m->v[stage], &maps.v, &m->full[stage], tile * TILE, vh, i);
}

/* A warpgroup's sums. */
template <int DV> struct fwd_acc {
	tile_acc s, o[DV / BLOCK_COLS];
	float max[2], sum[2];
};

/*
 * Tile @n: softmax, then o += P v together with the scores of tile @n + 1. @LAST: there
 * is none; the tile is masked where @diagonal.
 */
template <int DK, int DV, int STAGES, int WGS, bool LAST>
static __device__ __forceinline__ void fwd_tile(struct fwd_acc<DV> &w,
						struct fwd_smem<DK, DV, STAGES, WGS> *m, int wg, int n,
						float scale, bool diagonal)
{
	int stage = n % STAGES, next = (n + 1) % STAGES;
	tile_left prob;

	if (LAST && diagonal)
		tile_mask(w.s);
	tile_softmax<DV>(w.s, prob, w.o[0], w.max, w.sum, scale);
	if (!LAST)
		mbar_wait(&m->full[next], (n + 1) / STAGES % 2);
	wgmma_fence();
	tile_nn<DV>(w.o, prob, m->v[stage]);
	if (!LAST)
		tile_nt<DK>(w.s, m->q[wg], m->k[next]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
#pragma unroll
	for (int c = 0; c < DV / BLOCK_COLS; c++)
		acc_pin(w.o[c]);
	if (threadIdx.x % 32 == 0)
		mbar_arrive(&m->empty[stage]);
}

/* o and lse of a warpgroup's rows, from @x0. */
template <int DV>
static __device__ __forceinline__ void fwd_store(struct fwd_acc<DV> &w, const struct attn_run &p,
						 int i, int h, int x0)
{
	const struct attn &a = p.a;

#pragma unroll
	for (int r = 0; r < 2; r++) {
		int pos = x0 + acc_row(2 * r);
		long at = attn_stat(a, i, pos, h);
		float gamma = 1;

		w.sum[r] = row_sum(w.sum[r]);
		if (pos < a.t) {
			if (threadIdx.x % 4 == 0)
				a.lse[at] = w.max[r] * p.scale + logf(w.sum[r]);
			if (a.gamma)
				gamma = a.gamma[at];
		}
		w.sum[r] = gamma / w.sum[r];
	}
	rows_store<DV>(bf16_of(a.o) + attn_o(a, i, h), a.o_row, x0, a.t, 0, DV, w.o[0], w.sum[0],
		       w.sum[1], true);
}

template <int DK, int DV, int STAGES, int WGS, int BLOCKS>
static __global__ void __launch_bounds__(WGS * WG_THREADS, BLOCKS)
wgmma_fwd_kernel(const __grid_constant__ struct attn_run p,
		 const __grid_constant__ struct attn_maps maps)
{
#if WGMMA_BODY
	extern __shared__ __align__(1024) char mem[];
	auto *m = (struct fwd_smem<DK, DV, STAGES, WGS> *)mem;
	const struct attn &a = p.a;
	int i = attn_sequence(p), h = blockIdx.x, wg = wg_index();
	int kv = attn_kv_head(a, h), kh = a.k_head ? kv : 0, vh = a.v_head ? kv : 0;
	int first = (div_up(a.t, WGS * TILE) - 1 - attn_rank(p)) * WGS, own = first + wg;
	int all = min(first + WGS, div_up(a.t, TILE)), last = min(own, all - 1);
	/* the warpgroup with the most tiles feeds all */
	bool feeds = threadIdx.x == (WGS - 1) * WG_THREADS;
	struct fwd_acc<DV> w = { .max = { -INFINITY, -INFINITY } };
	float scale = p.scale * LOG2E;

	if (i >= a.b)
		return;
	if (feeds) {
		mbar_init(&m->q_full, 1);
		for (int n = 0; n < STAGES; n++) {
			mbar_init(&m->full[n], 1);
			mbar_init(&m->empty[n], WGS * 4);
		}
		mbar_init_fence();
		mbar_expect(&m->q_full, WGS * DK * TILE * 2);
		for (int n = 0; n < WGS; n++)
			tile_fetch<DK>(m->q[n], &maps.q, &m->q_full, (first + n) * TILE, h, i);
		for (int n = 0; n < min(STAGES, all); n++)
			fwd_fetch<DK, DV, STAGES, WGS>(m, maps, n, kh, vh, i);
	}
	__syncthreads();
	mbar_wait(&m->q_full, 0);
	mbar_wait(&m->full[0], 0);
	wgmma_fence();
	tile_nt<DK>(w.s, m->q[wg], m->k[0]);
	wgmma_commit();
	wgmma_wait<0>();
	acc_pin(w.s);
	for (int n = 0; n < last; n++) {
		/* refilled: with a stage to spare the one before, so that no one waits */
		int done = n - (STAGES > 2);

		fwd_tile<DK, DV, STAGES, WGS, false>(w, m, wg, n, scale, false);
		if (feeds && done >= 0 && done + STAGES < all) {
			mbar_wait(&m->empty[done % STAGES], done / STAGES % 2);
			fwd_fetch<DK, DV, STAGES, WGS>(m, maps, done + STAGES, kh, vh, i);
		}
		__syncwarp();
	}
	fwd_tile<DK, DV, STAGES, WGS, true>(w, m, wg, last, scale, last == own);
	fwd_store<DV>(w, p, i, h, own * TILE);
#endif
}

head_map head_map_of(const bf16 *p, long row, long head, long seq, int width, int t, int heads,
		     int b, int rows)
{
	static PFN_cuTensorMapEncodeTiled_v12000 encode;
	const cuuint64_t dims[4] = { (cuuint64_t)width, (cuuint64_t)t, (cuuint64_t)heads,
				     (cuuint64_t)b };
	/* a tensor with one head has no head stride: any that is allowed does */
	const cuuint64_t strides[3] = { row * 2ul, (heads > 1 ? head : row) * 2ul, seq * 2ul };
	const cuuint32_t box[4] = { BLOCK_COLS, (cuuint32_t)rows, 1, 1 }, step[4] = { 1, 1, 1, 1 };
	cudaDriverEntryPointQueryResult found;
	struct head_map m;
	CUresult err;

	if (!encode) {
		CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode,
						      12000, cudaEnableDefault, &found));
		if (!encode)
			die("the driver has no cuTensorMapEncodeTiled: install a driver for CUDA 12 or later");
	}
	err = encode(&m.map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)p, dims, strides, box,
		     step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
		     CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
	if (err != CUDA_SUCCESS)
		die_bug("cuTensorMapEncodeTiled: error %d for row %ld, head %ld, width %d, t %d",
			(int)err, row, head, width, t);
	return m;
}

struct attn_maps attn_maps_of(const struct attn_run &p)
{
	const struct attn &a = p.a;
	struct attn_maps m = {};

	m.q = head_map_of(bf16_of(a.q), a.q_row, a.q_head, a.t * a.q_row, a.dk, a.t, a.heads, a.b);
	m.k = head_map_of(bf16_of(a.k), a.k_row, a.k_head, a.t * a.k_row, a.dk, a.t,
			  attn_k_heads(a), a.b);
	m.v = head_map_of(bf16_of(a.v), a.v_row, a.v_head, a.t * a.v_row, a.dv, a.t,
			  attn_v_heads(a), a.b);
	if (p.d_o)
		m.d_o = head_map_of(p.d_o, a.o_row, a.o_head, a.t * a.o_row, a.dv, a.t, a.heads,
				    a.b);
	return m;
}

bool attn_wgmma_takes(const struct attn_run &p)
{
	const struct attn &a = p.a;

	return cuda_capability() == 90 && p.vec && a.dk == a.dv && (a.dk == 64 || a.dk == 128) &&
		p.ra == 0 && p.scale > 0 && attn_k_heads(a) == attn_v_heads(a);
}

template <int DK, int DV, int STAGES, int WGS, int BLOCKS> static void fwd_launch(struct attn_run p)
{
	const dim3 grid = attn_grid(&p, div_up(p.a.t, WGS * TILE), p.a.heads);
	int bytes = sizeof(struct fwd_smem<DK, DV, STAGES, WGS>);
	auto *kernel = wgmma_fwd_kernel<DK, DV, STAGES, WGS, BLOCKS>;

	shared_room(kernel, bytes);
	kernel<<<grid, WGS * WG_THREADS, bytes, cuda_stream()>>>(p, attn_maps_of(p));
	CUDA_LAUNCHED();
}

/* Stages, warpgroups of a block and blocks of a multiprocessor: as measured on an H200. */
void attn_wgmma_fwd(const struct attn_run &p)
{
	if (p.a.dk == 64)
		fwd_launch<64, 64, 4, 2, 2>(p);
	else
		fwd_launch<128, 128, 3, 1, 2>(p);
}
