// SPDX-License-Identifier: MIT
/*
 * Attention backward on mma.sync (sm_80 and later), widths up to W, no reciprocal term:
 * the two kernels of attn_wgmma_bwd.cu with other products. A block is four warps and
 * TILE rows; while it computes one tile the next is copied.
 */
#include "attn.cuh"
#include "attn_mma.cuh"

/* ---- dq ------------------------------------------------------------------- */

template <int W> struct mma_dq_smem {
	bf16 q[TILE * W], d_o[TILE * W], k[2][TILE * W], v[2][TILE * W];
};

template <int W>
static __global__ void __launch_bounds__(TILE_THREADS, W == 64 ? 3 : 1)
mma_dq_kernel(struct attn_run p)
{
	extern __shared__ __align__(16) char mem[];
	auto *m = (struct mma_dq_smem<W> *)mem;
	const struct attn &a = p.a;
	int i = attn_sequence(p), h = blockIdx.x, last = div_up(a.t, TILE) - 1 - attn_rank(p);
	const struct head_view q = { bf16_of(a.q) + attn_q(a, i, h), a.q_row };
	const struct head_view k = { bf16_of(a.k) + attn_k(a, i, h), a.k_row };
	const struct head_view v = { bf16_of(a.v) + attn_v(a, i, h), a.v_row };
	const struct head_view d_o = { p.d_o + attn_o(a, i, h), a.o_row };
	struct row_stats rows;
	float dq[W / 8][4] = {};
	tile_left ds;

	if (i >= a.b)
		return;
	tile_load<W>(m->q, q, last * TILE, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->d_o, d_o, last * TILE, a.t, 0, a.dv, p.vec);
	tile_load<W>(m->k[0], k, 0, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->v[0], v, 0, a.t, 0, a.dv, p.vec);
	copy_commit();
#pragma unroll
	for (int r = 0; r < 2; r++)
		row_stats_get(rows, r, p, i, last * TILE + acc_row(2 * r), h);
	for (int n = 0; n <= last; n++) {
		tile_acc s = {}, dp = {};

		copy_wait<0>();
		__syncthreads();	/* tile n is there, and no one reads tile n - 1 */
		if (n < last) {
			tile_load<W>(m->k[(n + 1) % 2], k, (n + 1) * TILE, a.t, 0, a.dk, p.vec);
			tile_load<W>(m->v[(n + 1) % 2], v, (n + 1) * TILE, a.t, 0, a.dv, p.vec);
			copy_commit();
		}
		mul_nt<W>(s, m->q, m->k[n % 2]);
		mul_nt<W>(dp, m->d_o, m->v[n % 2]);
		tile_ds(ds, s, dp, rows, p.scale * LOG2E, n == last);
		mul_nn<W>(dq, ds, m->k[n % 2]);
	}
	rows_store<W>(p.dq + attn_q(a, i, h), a.q_row, last * TILE, a.t, 0, a.dk, dq, p.scale,
		      p.scale, p.vec);
}

/* ---- dk, dv --------------------------------------------------------------- */

template <int W> struct mma_dkv_smem {
	bf16 k[TILE * W], v[TILE * W], q[2][TILE * W], d_o[2][TILE * W];
	struct col_stats stats[2];
};

/* Tile of queries @pos of head @h to stage @n; copy_commit() follows. */
template <int W>
static __device__ void mma_dkv_load(struct mma_dkv_smem<W> *m, const struct attn_run &p, int n,
				    int i, int h, int pos)
{
	const struct attn &a = p.a;
	const struct head_view q = { bf16_of(a.q) + attn_q(a, i, h), a.q_row };
	const struct head_view d_o = { p.d_o + attn_o(a, i, h), a.o_row };
	struct col_stats *s = &m->stats[n];
	int own = threadIdx.x % TILE;
	long at = attn_stat(a, i, pos + own, h);
	bool inside = pos + own < a.t;

	tile_load<W>(m->q[n], q, pos, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->d_o[n], d_o, pos, a.t, 0, a.dv, p.vec);
	if (threadIdx.x < TILE) {
		s->lse[own] = inside ? a.lse[at] : 0;
		s->gamma[own] = inside && a.gamma ? a.gamma[at] : 1;
	} else {
		s->delta[own] = inside ? p.delta[at] : 0;
	}
}

template <int W>
static __global__ void __launch_bounds__(TILE_THREADS, W == 64 ? 3 : 1)
mma_dkv_kernel(struct attn_run p)
{
	extern __shared__ __align__(16) char mem[];
	auto *m = (struct mma_dkv_smem<W> *)mem;
	const struct attn &a = p.a;
	int i = attn_sequence(p), h0 = blockIdx.x * p.q_per;
	int x = attn_rank(p), each = div_up(a.t, TILE) - x;
	const struct head_view k = { bf16_of(a.k) + attn_k(a, i, h0), a.k_row };
	const struct head_view v = { bf16_of(a.v) + attn_v(a, i, h0), a.v_row };
	float dk[W / 8][4] = {}, dv[W / 8][4] = {};
	tile_left prob, ds;

	if (i >= a.b)
		return;
	tile_load<W>(m->k, k, x * TILE, a.t, 0, a.dk, p.vec);
	tile_load<W>(m->v, v, x * TILE, a.t, 0, a.dv, p.vec);
	mma_dkv_load<W>(m, p, 0, i, h0, x * TILE);
	copy_commit();
	for (int n = 0; n < each * p.q_per; n++) {
		const struct col_stats *stats = &m->stats[n % 2];
		int next = n + 1;
		tile_acc s = {}, dp = {};

		copy_wait<0>();
		__syncthreads();	/* tile n is there, and no one reads tile n - 1 */
		if (next < each * p.q_per) {
			mma_dkv_load<W>(m, p, next % 2, i, h0 + next / each,
					(x + next % each) * TILE);
			copy_commit();
		}
		mul_nt<W>(s, m->k, m->q[n % 2]);
		mul_nt<W>(dp, m->v, m->d_o[n % 2]);
		if (n % each)
			tile_bwd_t<true, false>(prob, ds, s, dp, stats, p.scale * LOG2E);
		else
			tile_bwd_t<true, true>(prob, ds, s, dp, stats, p.scale * LOG2E);
		mul_nn<W>(dv, prob, m->d_o[n % 2]);
		mul_nn<W>(dk, ds, m->q[n % 2]);
	}
	rows_store<W>(p.dk + attn_k(a, i, h0), a.k_row, x * TILE, a.t, 0, a.dk, dk, p.scale, p.scale,
		      p.vec);
	rows_store<W>(p.dv + attn_v(a, i, h0), a.v_row, x * TILE, a.t, 0, a.dv, dv, 1, 1, p.vec);
}

template <int W> static void bwd_launch(struct attn_run p)
{
	int blocks = div_up(p.a.t, TILE);
	dim3 grid;
	int dq = sizeof(struct mma_dq_smem<W>), dkv = sizeof(struct mma_dkv_smem<W>);

	shared_room(mma_dq_kernel<W>, dq);
	shared_room(mma_dkv_kernel<W>, dkv);
	grid = attn_grid(&p, blocks, p.a.heads);
	mma_dq_kernel<W><<<grid, TILE_THREADS, dq, cuda_stream()>>>(p);
	CUDA_LAUNCHED();
	grid = attn_grid(&p, blocks, p.a.heads / p.q_per);
	mma_dkv_kernel<W><<<grid, TILE_THREADS, dkv, cuda_stream()>>>(p);
	CUDA_LAUNCHED();
}

void attn_mma_bwd(const struct attn_run &args)
{
	struct attn_run p = args;

	p.q_per = p.a.heads / attn_k_heads(p.a);
	if (MAX(p.a.dk, p.a.dv) <= 64)
		bwd_launch<64>(p);
	else
		bwd_launch<128>(p);
}
