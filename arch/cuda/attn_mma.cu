// SPDX-License-Identifier: MIT
/*
 * Attention forward on mma.sync (sm_80 and later), widths up to W, no reciprocal term.
 * A block is four warps and TILE queries; while it computes one tile of keys and values
 * the next is copied. After Dao 2023 (FlashAttention-2, arXiv 2307.08691).
 */
#include "attn.cuh"
#include "attn_mma.cuh"

/* Shared memory of a block. */
template <int W> struct mma_fwd_smem {
	bf16 q[TILE * W], k[2][TILE * W], v[2][TILE * W];
};

template <int W>
static __global__ void __launch_bounds__(TILE_THREADS, W == 64 ? 3 : 2)
mma_fwd_kernel(struct attn_run p)
{
	extern __shared__ __align__(16) char mem[];
	auto *m = (struct mma_fwd_smem<W> *)mem;
	const struct attn &a = p.a;
	int i = attn_sequence(p), h = blockIdx.x, last = div_up(a.t, TILE) - 1 - attn_rank(p);
	const struct head_view q = { bf16_of(a.q) + attn_q(a, i, h), a.q_row };
	const struct head_view k = { bf16_of(a.k) + attn_k(a, i, h), a.k_row };
	const struct head_view v = { bf16_of(a.v) + attn_v(a, i, h), a.v_row };
	float max[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, o[W / 8][4] = {};
	tile_left prob;

	if (i >= a.b)
		return;
	tile_load<W>(m->q, q, last * TILE, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->k[0], k, 0, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->v[0], v, 0, a.t, 0, a.dv, p.vec);
	copy_commit();
	for (int n = 0; n <= last; n++) {
		tile_acc s = {};

		copy_wait<0>();
		__syncthreads();	/* tile n is there, and no one reads tile n - 1 */
		if (n < last) {
			tile_load<W>(m->k[(n + 1) % 2], k, (n + 1) * TILE, a.t, 0, a.dk, p.vec);
			tile_load<W>(m->v[(n + 1) % 2], v, (n + 1) * TILE, a.t, 0, a.dv, p.vec);
			copy_commit();
		}
		mul_nt<W>(s, m->q, m->k[n % 2]);
		if (n == last)
			tile_mask(s);
		tile_softmax<W>(s, prob, o, max, sum, p.scale * LOG2E);
		mul_nn<W>(o, prob, m->v[n % 2]);
	}
#pragma unroll
	for (int r = 0; r < 2; r++) {
		int pos = last * TILE + acc_row(2 * r);
		long at = attn_stat(a, i, pos, h);
		float gamma = 1;

		sum[r] = row_sum(sum[r]);
		if (pos < a.t) {
			if (threadIdx.x % 4 == 0)
				a.lse[at] = max[r] * p.scale + logf(sum[r]);
			if (a.gamma)
				gamma = a.gamma[at];
		}
		sum[r] = gamma / sum[r];
	}
	rows_store<W>(bf16_of(a.o) + attn_o(a, i, h), a.o_row, last * TILE, a.t, 0, a.dv, o, sum[0],
		      sum[1], p.vec);
}

bool attn_mma_takes(const struct attn_run &p)
{
	return p.ra == 0 && p.scale > 0 && MAX(p.a.dk, p.a.dv) <= 128;
}

template <int W> static void fwd_launch(struct attn_run p)
{
	const dim3 grid = attn_grid(&p, div_up(p.a.t, TILE), p.a.heads);
	int bytes = sizeof(struct mma_fwd_smem<W>);

	shared_room(mma_fwd_kernel<W>, bytes);
	mma_fwd_kernel<W><<<grid, TILE_THREADS, bytes, cuda_stream()>>>(p);
	CUDA_LAUNCHED();
}

void attn_mma_fwd(const struct attn_run &p)
{
	if (MAX(p.a.dk, p.a.dv) <= 64)
		fwd_launch<64>(p);
	else
		fwd_launch<128>(p);
}
