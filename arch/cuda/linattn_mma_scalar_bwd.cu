// SPDX-License-Identifier: MIT
/*
 * Linear recurrences with one decay for all of a key backward, on mma.sync: the states before
 * all chunks and the gradients of those behind them, rounded as products read them. A block goes
 * through a segment forwards with the state or backwards with its gradient, as if there were
 * none before. What there is goes from segment to segment, and is kept where there would be 0,
 * for the segment's first chunk or backwards its last: other chunks add that with their decay.
 * The gradients of each chunk: linattn_mma_scalar_chunk.cu.
 */
#include "linattn_mma_scalar.cuh"

enum {
	STAGES = 2,
	BLOCKS = 3,		/* of a multiprocessor */
	SCAN_DEEP = 8,		/* loads of a thread under way */
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

/* Where what segment @n adds to the state goes, or with @back what to its gradient. */
static __device__ __forceinline__ float *added(const struct mma_run &p, bool back, int at, int n)
{
	return back ? mma_first_grad(p, at, n) : mma_state(p, at, n);
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
	bool all = BACK ? x.n || p.ds0 : x.n < p.segs - 1;	/* is the last chunk wanted too? */
	int t = x.t0 + (BACK ? (chunks - 1) * TILE : 0), taken = chunks - 1 + all;
	const float *first = BACK ? mma_last_grad(p, x.at, x.n, true) :
				    mma_first(p, x.at, x.n, true);
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
			*kept_decay(p, BACK, x.at, t / TILE) = exp2_fast(decay);
		__syncthreads();	/* no one reads them any more */
	}
	if (all)
		mma_state_put<N>(added(p, BACK, x.at, x.n), s[0], row, col, a.dk, a.dv);
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

/*
 * Four elements of a head's state from segment to segment, forwards or backwards: what is there
 * before a segment is kept for its first chunk. Backwards the one before all goes to ds0.
 */
static __global__ void __launch_bounds__(THREADS) scan_kernel(struct mma_run p)
{
	int e = (blockIdx.x * THREADS + threadIdx.x) * 4, at = blockIdx.y;
	bool back = blockIdx.z;
	int per = p.seg / TILE, last = p.segs - 1, steps = back && p.ds0 ? p.segs : last;
	float4 x = {};

	let_next();
	after_previous();
	if (e >= p.a.dk * p.a.dv)
		return;
	for (int i0 = 0; i0 < steps; i0 += SCAN_DEEP) {
		float4 add[SCAN_DEEP];
		float d[SCAN_DEEP];

#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			int i = min(i0 + j, steps - 1), n = back ? last - i : i;

			add[j] = *(const float4 *)(added(p, back, at, n) + e);
			d[j] = *kept_decay(p, back, at, back ? n * per : (n + 1) * per - 1);
		}
#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			int i = i0 + j, to = back ? (last - i) * per - 1 : (i + 1) * per;

			x = { fmaf(d[j], x.x, add[j].x), fmaf(d[j], x.y, add[j].y),
			      fmaf(d[j], x.z, add[j].z), fmaf(d[j], x.w, add[j].w) };
			if (i < last)
				*(uint2 *)(mma_kept(p, back, at, to) + e) =
					make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
			else if (i < steps)
				*(float4 *)(p.ds0 + (size_t)at * p.a.dk * p.a.dv + e) = x;
		}
	}
}

static void scan(const struct mma_run &p)
{
	dim3 grid(div_up(p.a.dk * p.a.dv, 4 * THREADS), p.a.b * p.a.heads, 2);

	if (p.segs > 1)
		launch(scan_kernel, grid, THREADS, 0, p);
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
	scan(p);
	mma_scalar_chunks(p);
}

size_t mma_scalar_bwd_room(const struct linattn &a)
{
	return MAX(a.dk <= 64 ? sizeof(sweep_smem<64>) : sizeof(sweep_smem<128>),
		   mma_scalar_chunk_room(a));
}
