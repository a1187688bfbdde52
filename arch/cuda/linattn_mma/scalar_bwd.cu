// SPDX-License-Identifier: MIT
/*
 * Linear recurrences with one decay for all of a key backward, on mma.sync: the states before
 * all chunks and the gradients of those behind them, rounded as products read them, but for what
 * rest.cuh has. A block goes through a segment forwards with the state or backwards
 * with its gradient. The gradients of each chunk: scalar_chunk.cu.
 */
#include "scalar.cuh"

enum {
	STAGES = 2,
	BLOCKS = 3,		/* of a multiprocessor */
};

/*
 * Shared memory of a block. x: keys, or backwards queries; y: values, or gradients of outputs;
 * s: the state or its gradient.
 */
template <int W> struct sweep_smem {
	bf16 x[STAGES][TILE * W], y[STAGES][TILE * VALUES], s[W * VALUES];
};

/* The chunk at @t, or where not @there none. */
template <int W, bool BACK>
static __device__ __forceinline__ void load(sweep_smem<W> &m, const struct linattn &a,
					    const struct mma_head &x, int t, int end, int to,
					    bool there)
{
	int xs = BACK ? a.q_row : a.k_row, ys = BACK ? a.heads * a.dv : a.v_row;

	if (there) {
		mma_load<W, TILE, THREADS>(m.x[to], BACK ? x.q : x.k, xs, t, end, a.dk);
		mma_load<VALUES, TILE, THREADS>(m.y[to], BACK ? x.d_o : x.v, ys, t, end, a.dv);
	}
	copy_commit();
}

/* The rounded state to where the chunk at @t reads it. */
template <int W, bool BACK>
static __device__ __forceinline__ void keep(const sweep_smem<W> &m, const struct mma_run &p, int at,
					    int t)
{
	bf16 *to = mma_kept(p, BACK, at, t / TILE);

	mma_each<W * VALUES / 8, THREADS>([&](unsigned int n) {
		int r = n / (VALUES / 8), c = n % (VALUES / 8);

		if (r < p.a.dk && 8 * c < p.a.dv)
			*(uint4 *)(to + r * p.a.dv + 8 * c) =
				*(const uint4 *)(m.s + tile_at<VALUES>(r, c));
	});
}

template <int W, bool BACK>
static __device__ __forceinline__ void sweep(sweep_smem<W> &m, const struct mma_run &p)
{
	constexpr int N = W / 16;		/* of a warp's 16 rows of the state */
	const struct linattn &a = p.a;
	const struct place x = place_of(p, blockIdx.x / 2);
	const struct mma_head head = mma_head_at(p, x.i, x.h);
	int row = threadIdx.x / 32 % (W / 16) * 16, col = threadIdx.x / 32 / (W / 16) * 8 * N;
	int chunks = div_up(x.t1 - x.t0, TILE), step = BACK ? -TILE : TILE;
	float *added = mma_added(p, BACK, x.at, x.n);	/* wanted: then the last chunk is, too */
	int t = x.t0 + (BACK ? (chunks - 1) * TILE : 0), taken = chunks - !added;
	const float *first = mma_begin(p, BACK, x.at, x.n);
	float s[1][N][4], decay = 0;
	float2 next = decays_get(head, a.g_row, t, x.t1);

#pragma unroll
	for (int n = 0; n < STAGES - 1; n++)
		load<W, BACK>(m, a, head, t + n * step, x.t1, n, n < taken);
	mma_state_get<N>(s[0], first, row, col, a.dk, a.dv);
	for (int n = 0; n < chunks; n++, t += step) {
		bool kept = n || first;
		int ahead = n + STAGES - 1;
		float2 b = decays_sum(next);

		if (kept)
			mma_state_round<VALUES, N>(m.s, s[0], row, col);
		copy_wait<STAGES - 2>();
		__syncthreads();	/* chunk and state are there */
		load<W, BACK>(m, a, head, t + (STAGES - 1) * step, x.t1, ahead % STAGES,
			      ahead < taken);
		if (n + 1 < taken)
			next = decays_get(head, a.g_row, t + step, x.t1);
		if (kept)
			keep<W, BACK>(m, p, x.at, t);
		if (n < taken)
			take_in<W, BACK>(s, m.x[n % STAGES], m.y[n % STAGES], row, col, b,
					 BACK ? a.scale : 1);
		decay += __shfl_sync(~0u, b.y, 31);
		if (p.segs > 1 && !threadIdx.x)
			*mma_kept_decay(p, BACK, x.at, t / TILE) = exp2_fast(decay);
		__syncthreads();	/* no one reads them any more */
	}
	mma_state_put<N>(added, s[0], row, col, a.dk, a.dv);
}

template <int W>
static __global__ void __launch_bounds__(THREADS, BLOCKS) sweep_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	sweep_smem<W> &m = *(sweep_smem<W> *)mem;

	let_next();
	after_previous();
	if (blockIdx.x % 2)
		sweep<W, true>(m, p);
	else
		sweep<W, false>(m, p);
}

template <int W> static void sweeps(const struct mma_run &p)
{
	dim3 grid(2 * p.segs, p.a.b * p.a.heads);
	size_t bytes = sizeof(sweep_smem<W>);

	shared_room(sweep_kernel<W>, bytes);
	launch(sweep_kernel<W>, grid, THREADS, bytes, p);
}

void mma_scalar_bwd(const struct mma_run &p)
{
	if (p.a.dk <= 64)
		sweeps<64>(p);
	else
		sweeps<128>(p);
	mma_scan_kept(p);
	mma_scalar_chunks(p);
}

size_t mma_scalar_bwd_room(const struct linattn &a)
{
	return MAX(a.dk <= 64 ? sizeof(sweep_smem<64>) : sizeof(sweep_smem<128>),
		   mma_scalar_chunk_room(a));
}
