// SPDX-License-Identifier: MIT
/*
 * Linear recurrences whose decays are vectors backward, on mma.sync. States and their gradients
 * being kept for every chunk, a block for each chunk makes all gradients of it. With S the state
 * before a chunk, dS the gradient of the one behind it, and e its decays, what lies behind it adds
 *
 *     <S', dS> = e <S, dS> + sum of k dk, of what keys have from dS,
 *
 * to gradients of decays, S' being the state behind it: no sums of other chunks are taken.
 */
#include "rest.cuh"
#include "vector_grads.cuh"

/* A chunk's place: head @at, number @n, positions @t0 to @t1. */
struct chunk_place {
	int at, n, t0, t1;
};

/* Slice @j of the state before a chunk, and of the gradient of the one behind it, if there is one. */
template <class S>
static __device__ __forceinline__ void load_states(bwd_smem<S> &m, const struct mma_run &p,
						   const struct chunk_place &x, int j)
{
	bf16 (*to)[S::K * VALUES] = j % 2 ? m.other : m.state;

#pragma unroll
	for (int back = 0; j < S::V / VALUES && back < 2; back++)
		mma_load<VALUES, S::K, BWD_THREADS>(to[back], mma_kept(p, back, x.at, x.n) + j * VALUES,
						   p.a.dv, 0, p.a.dk, p.a.dv - j * VALUES);
	copy_commit();
}

/* What sweeps left out of a slice, of which m.from has it, is added to what this thread copied. */
template <class S>
static __device__ __forceinline__ void add_rest(bf16 (*s)[S::K * VALUES], const bwd_smem<S> &m,
						const struct mma_run &p, const struct chunk_place &x,
						int j)
{
	constexpr int ROWS = BWD_THREADS / (VALUES / 8), N = S::K / ROWS;
	int r = threadIdx.x / (VALUES / 8), c = threadIdx.x % (VALUES / 8);
	uint4 rest[2][N] = {};
	float by[2][N] = {};

#pragma unroll
	for (int back = 0; back < 2; back++) {
		const float *decay = mma_kept_decay(p, back, x.at, back ? x.n + 1 : x.n - 1) + r;
		const bf16 *from = mma_kept(p, back, x.at, m.from[back]) + r * p.a.dv + j * VALUES + 8 * c;

#pragma unroll
		for (int i = 0; i < N; i++)
			if (m.from[back] >= 0 && r + i * ROWS < p.a.dk && j * VALUES + 8 * c < p.a.dv) {
				rest[back][i] = *(const uint4 *)(from + i * ROWS * p.a.dv);
				by[back][i] = decay[i * ROWS];
			}
	}
	copy_wait<0>();
#pragma unroll
	for (int back = 0; back < 2; back++)
#pragma unroll
		for (int i = 0; m.from[back] >= 0 && i < N; i++)
			mma_rest_add(s[back] + tile_at<VALUES>(r, c) + i * ROWS * VALUES, rest[back][i],
				 by[back][i]);
}

/* All of a chunk, in the order in which it is needed: three groups of copies. */
template <class S>
static __device__ __forceinline__ void load(bwd_smem<S> &m, const struct mma_run &p,
					    const struct chunk_place &x)
{
	const struct linattn &a = p.a;

	load_decays<S::K, S::LOGS, TILE, BWD_THREADS, false>(m.log[1], m.head, a, x.t0, x.t1);
	mma_load<S::K, TILE, BWD_THREADS>(m.q, m.head.q, a.q_row, x.t0, x.t1, a.dk);
	mma_load<S::K, TILE, BWD_THREADS>(m.k, m.head.k, a.k_row, x.t0, x.t1, a.dk);
	copy_commit();
#pragma unroll
	for (int j = 0; j < S::V / VALUES; j++) {
		int e = j * VALUES;

		mma_load<VALUES, TILE, BWD_THREADS>(m.v[j], m.head.v + e, a.v_row, x.t0, x.t1, a.dv - e);
		mma_load<VALUES, TILE, BWD_THREADS>(m.d_o[j], m.head.d_o + e, a.heads * a.dv, x.t0,
						    x.t1, a.dv - e);
	}
	copy_commit();
	after_previous();	/* which made the states, and began when inputs were there */
	load_states<S>(m, p, x, 0);
}

/* Scores, and what queries and keys of the chunk have from each other. */
template <class S>
static __device__ __forceinline__ void inside(struct grads<S> &g, bwd_smem<S> &m,
					      const struct part<S> &w, float scale)
{
	float d[2][4] = {};

	score_grads<S>(d, m);
	operands_near<S>(m);
	score_grads_put<S>(m, d, scale);
	__syncthreads();	/* D and operands are there */
	score_tiles<S, false>(m, scale);
	add_diagonal<S>(g, m, w);
	add_level<S, 0>(g, m, w);
	add_level<S, 1>(g, m, w);
	add_level<S, 2>(g, m, w);
	__syncthreads();	/* no one reads operands any more, nor keys */
	operands_far<S>(m);
	__syncthreads();	/* operands are there */
	score_tiles<S, true>(m, scale);
	add_level<S, 3>(g, m, w);
	add_level<S, 4>(g, m, w);
	add_level<S, 5>(g, m, w);
}

/*
 * What a chunk has from the states: gradients of values, and of queries and keys before their
 * decays; m.both.
 */
template <class S>
static __device__ __forceinline__ void outside(float (&dq)[part<S>::N][4],
					       float (&dk)[part<S>::N][4], bwd_smem<S> &m,
					       const struct mma_run &p, const struct chunk_place &x,
					       const struct part<S> &w)
{
	constexpr int SLICES = S::V / VALUES;
	float both[4] = {};

#pragma unroll 1
	for (int j = 0; j < SLICES; j++) {
		bf16 (*s)[S::K * VALUES] = j % 2 ? m.other : m.state;
		float dv[VALUES / 32][4] = {};

		if (m.from[0] >= 0 || m.from[1] >= 0)
			add_rest<S>(s, m, p, x, j);
		copy_wait<0>();
		wgmma_publish();
		__syncthreads();	/* the slice is there, and no one reads the one before */
		load_states<S>(m, p, x, j + 1);
		values_near<S>(dv, m, w, j);
		far<S>(dq, dk, dv, m, s, w, j);
		add_both<S>(both, s[0], s[1]);
		far_wait<S>(dq, dk, dv);
		mma_rows_put<VALUES / 32>(m.head.dv, x.t0 + w.row, x.t1, j * VALUES + w.value, dv);
	}
	both_put<S>(m, both);
}

/*
 * Decays of what came from the states, which is added to g; to m.keys, of columns, sums over the
 * warp's rows.
 */
template <class S>
static __device__ __forceinline__ void add_outside(struct grads<S> &g, bwd_smem<S> &m,
						   const float (&dq)[part<S>::N][4],
						   const float (&dk)[part<S>::N][4],
						   const struct part<S> &w, float scale)
{
	float2 sum[part<S>::N] = {};

	mma_pairs<part<S>::N>(w.row, w.key, [&](int n, int r, int t, int c) {
		float2 from_q = decay_between<S>(m, 0, 1 + t, c) * scale;
		float2 from_k = decay_between<S>(m, 1 + t, TILE, c);
		float2 x = float2{ dq[n][r], dq[n][r + 1] } * from_q, y = { dk[n][r], dk[n][r + 1] };
		float2 own = pair_of<S>(m.q, w, n, r) * x;
		float2 lost = pair_of<S>(m.k, w, n, r) * y;

		*(float2 *)&g.dq[n][r] += x;
		*(float2 *)&g.dk[n][r] += from_k * y;
		*(float2 *)&g.own[n][r] += own + lost * -1;
		sum[n] += lost;
	});
#pragma unroll
	for (int n = 0; n < part<S>::N; n++) {
#pragma unroll
		for (int step = 4; step < 32; step *= 2)
			sum[n] += float2{ __shfl_xor_sync(~0u, sum[n].x, step),
					  __shfl_xor_sync(~0u, sum[n].y, step) };
		if (threadIdx.x % 32 < 4)
			*(float2 *)&m.keys[w.row / 16][w.key + 8 * n + threadIdx.x % 4 * 2] = sum[n];
	}
}

/* Gradients of decays, of a column and a run of positions in each thread. */
template <class S>
static __device__ __forceinline__ void decays(bwd_smem<S> &m, const struct mma_run &p,
					      const struct chunk_place &x)
{
	constexpr int SEGS = bwd_smem<S>::SEGS, ROWS = TILE / SEGS;
	int c = threadIdx.x % S::K, seg = threadIdx.x / S::K;
	float own[ROWS], all = 0, behind = 0;

#pragma unroll
	for (int r = 0; r < ROWS; r++)
		all += own[r] = m.own[seg * ROWS + r][c];
	m.rest[seg][c] = all;
	__syncthreads();	/* sums are there */
#pragma unroll
	for (int j = 0; j < bwd_smem<S>::PARTS; j++)
		behind += m.both[j][c];
	behind *= exp2_fast(m.log[TILE][c]);
#pragma unroll
	for (int j = 0; j < TILE / 16; j++)
		behind += m.keys[j][c];
#pragma unroll
	for (int j = SEGS - 1; j > 0; j--)
		if (j > seg)
			behind += m.rest[j][c];
#pragma unroll
	for (int r = ROWS - 1; r >= 0; r--) {
		int t = x.t0 + seg * ROWS + r;

		behind += own[r];
		if (t < x.t1 && c < p.a.dk)
			m.head.dg[t * p.dg_row + c] = behind;
	}
}

template <class S>
static __global__ void __launch_bounds__(BWD_THREADS, 1) vector_bwd_kernel(struct mma_run p)
{
	extern __shared__ __align__(1024) char mem[];	/* as wgmma wants slices */
	bwd_smem<S> &m = *(bwd_smem<S> *)mem;
	const struct part<S> w = part_of<S>();
	int at = blockIdx.y, n = blockIdx.x;
	const struct chunk_place x = { at, n, n * TILE, min(p.a.t, (n + 1) * TILE) };
	float dq[part<S>::N][4] = {}, dk[part<S>::N][4] = {};
	float scale = p.a.scale;
	struct grads<S> g;

	let_next();
	if (threadIdx.x < 2)
		m.from[threadIdx.x] = mma_rest_from(p, threadIdx.x, n);
	mma_head_of(m.head, p, at / p.a.heads, at % p.a.heads);
	load<S>(m, p, x);
	copy_wait<2>();
	__syncthreads();	/* queries, keys and decays are there */
	run_sums<S>(m);
	__syncthreads();	/* sums of runs are there */
	log_sums<S>(m);
	copy_wait<1>();
	wgmma_publish();
	__syncthreads();	/* logarithms, values and gradients of outputs are there */
	inside<S>(g, m, w, scale);
	outside<S>(dq, dk, m, p, x, w);
	__syncthreads();	/* no one reads a slice or D any more */
	add_outside<S>(g, m, dq, dk, w, scale);
	mma_pairs<part<S>::N>(w.row, w.key, [&](int n, int r, int t, int c) {
		*(float2 *)&m.own[t][c] = *(float2 *)&g.own[n][r];
	});
	mma_rows_put<part<S>::N>(m.head.dq, x.t0 + w.row, x.t1, w.key, g.dq);
	mma_rows_put<part<S>::N>(m.head.dk, x.t0 + w.row, x.t1, w.key, g.dk);
	__syncthreads();	/* q dq - k dk is there */
	decays<S>(m, p, x);
}

void mma_vector_bwd(const struct mma_run &p)
{
	mma_vector_keep(p);
	by_shape(p.a, [&](auto shape) {
		typedef decltype(shape) S;
		dim3 grid(div_up(p.a.t, TILE), p.a.b * p.a.heads);

		shared_room(vector_bwd_kernel<S>, sizeof(bwd_smem<S>));
		launch(vector_bwd_kernel<S>, grid, BWD_THREADS, sizeof(bwd_smem<S>), p);
	});
}

size_t mma_vector_bwd_room(const struct linattn &a)
{
	size_t bytes = 0;

	by_shape(a, [&](auto shape) { bytes = sizeof(bwd_smem<decltype(shape)>); });
	return bytes;
}
