// SPDX-License-Identifier: MIT
/*
 * Linear recurrences with one decay for all of a key forward, on mma.sync. Four warps: each has
 * 16 positions of a chunk, and a quarter of the rows of the state.
 */
#include "scalar.cuh"

/* Shared memory of a block; W: of keys. */
template <int W> struct scalar_smem {
	bf16 q[2][TILE * W], k[2][TILE * W], v[2][TILE * VALUES], s[W * VALUES];
	struct mma_head head;
};

template <int W, bool OUT>
static __device__ __forceinline__ void scalar_load(scalar_smem<W> &m, const struct mma_run &p,
						   const struct place &x, int t, int to)
{
	const struct linattn &a = p.a;

	if (OUT)
		mma_load<W, TILE, TILE_THREADS>(m.q[to], m.head.q, a.q_row, t, x.t1, a.dk);
	mma_load<W, TILE, TILE_THREADS>(m.k[to], m.head.k, a.k_row, t, x.t1, a.dk);
	mma_load<VALUES, TILE, TILE_THREADS>(m.v[to], m.head.v + x.e0, a.v_row, t, x.t1,
					     a.dv - x.e0);
	copy_commit();
}

/* o of a chunk */
template <int W>
static __device__ __forceinline__ void outputs(float (&o)[VALUES / 8][4], const scalar_smem<W> &m,
					       int from, float2 b)
{
	float2 rows = decays_of_rows(b);
	int row = threadIdx.x / 32 * 16;
	tile_acc c = {};
	tile_left left;

#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t q[4];

		mma_left<W>(q, m.q[from], row, k);
		mma_nt<W, TILE_N>(c, q, m.k[from], 0, k);
		mma_nn<VALUES, VALUES / 8>(o, q, m.s, k, 0);
	}
	mma_rows_scale<VALUES / 8>(o, exp2_fast(rows.x), exp2_fast(rows.y));
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
		decays_scale<false>(c[n], n, b, rows, 1);
	tile_pack(left, c);
#pragma unroll
	for (int k = 0; k < TILE / 16; k++)
		mma_nn<VALUES, VALUES / 8>(o, left[k], m.v[from], k, 0);
}

/* @OUT: outputs; else what each segment but the last adds to the state */
template <int W, bool OUT>
static __global__ void __launch_bounds__(TILE_THREADS, 2) scalar_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	scalar_smem<W> &m = *(scalar_smem<W> *)mem;
	const struct linattn &a = p.a;
	const struct place x = place_of(p, blockIdx.x);
	int row = threadIdx.x / 32 * (W / 4);
	float s[W / 64][VALUES / 8][4], all = 0;
	const float *first;
	float2 next;

	let_next();
	mma_head_of(m.head, p, x.i, x.h);
	after_previous();
	scalar_load<W, OUT>(m, p, x, x.t0, 0);
	next = decays_get(m.head, a.g_row, x.t0, x.t1);
	first = mma_first(p, x.at, x.n, !OUT);
#pragma unroll
	for (int i = 0; i < W / 64; i++)
		mma_state_get<VALUES / 8>(s[i], first, row + 16 * i, x.e0, a.dk, a.dv);
	for (int t = x.t0, n = 0; t < x.t1; t += TILE, n ^= 1) {
		float2 b = decays_sum(next);

		if (OUT)
#pragma unroll
			for (int i = 0; i < W / 64; i++)
				mma_state_round<VALUES, VALUES / 8>(m.s, s[i], row + 16 * i, 0);
		copy_wait<0>();
		__syncthreads();	/* chunk and state are there */
		if (t + TILE < x.t1) {
			scalar_load<W, OUT>(m, p, x, t + TILE, n ^ 1);
			next = decays_get(m.head, a.g_row, t + TILE, x.t1);
		}
		if (OUT) {
			float o[VALUES / 8][4] = {};

			outputs<W>(o, m, n, b);
			rows_store<VALUES>(real_of(a.o) + ((long)x.i * a.t * a.heads + x.h) * a.dv,
					   (long)a.heads * a.dv, t, a.t, x.e0, a.dv, o, a.scale,
					   a.scale, true);
		}
		take_in<W, false>(s, m.k[n], m.v[n], row, 0, b, 1);
		all += __shfl_sync(~0u, b.y, 31);
		__syncthreads();	/* no one reads them any more */
	}
#pragma unroll
	for (int i = 0; !OUT && i < W / 64; i++)
		mma_state_put<VALUES / 8>(mma_state(p, x.at, x.n), s[i], row + 16 * i, x.e0, a.dk,
					  a.dv);
	if (!OUT && threadIdx.x < a.dk && !x.e0)
		mma_decay(p, x.at, x.n)[threadIdx.x] = exp2_fast(all);
}

/* States behind all segments but the last. */
template <int W> static void states(const struct mma_run &p)
{
	dim3 grid(p.segs - 1, p.a.b * p.a.heads, div_up(p.a.dv, VALUES));
	size_t bytes = sizeof(scalar_smem<W>);

	if (p.segs == 1)
		return;
	shared_room(scalar_kernel<W, false>, bytes);
	launch(scalar_kernel<W, false>, grid, TILE_THREADS, bytes, p);
	mma_scan(p);
}

template <int W> static void scalar_launch(const struct mma_run &p)
{
	dim3 grid(p.segs, p.a.b * p.a.heads, div_up(p.a.dv, VALUES));
	size_t bytes = sizeof(scalar_smem<W>);

	states<W>(p);
	shared_room(scalar_kernel<W, true>, bytes);
	launch(scalar_kernel<W, true>, grid, TILE_THREADS, bytes, p);
}

void linattn_mma_scalar_fwd(const struct linattn *a)
{
	struct mma_run p = mma_run_of(a, div_up(a->dv, VALUES), SCALAR_BLOCKS);

	if (a->dk <= 64)
		scalar_launch<64>(p);
	else
		scalar_launch<128>(p);
}

size_t mma_scalar_room(const struct linattn &a)
{
	return a.dk <= 64 ? sizeof(scalar_smem<64>) : sizeof(scalar_smem<128>);
}
