// SPDX-License-Identifier: MIT
/*
 * Linear recurrences whose decays are vectors forward, on mma.sync. While a block computes
 * one chunk the next is copied.
 */
#include "vector.cuh"

template <class S> struct vector_smem {
	bf16 s[S::K * S::V];
	vector_tiles<S> tiles;
	vector_in<S> in[2];
	struct mma_head head;
};

/* @QUERIES: these too */
template <class S, bool QUERIES>
static __device__ __forceinline__ void load(vector_in<S> &in, const struct mma_head &head,
					    const struct linattn &a, const struct place &x, int t)
{
	if (QUERIES)
		mma_load<S::K, CHUNK, S::THREADS>(in.q, head.q, a.q_row, t, x.t1, a.dk);
	mma_load<S::K, CHUNK, S::THREADS>(in.k, head.k, a.k_row, t, x.t1, a.dk);
	mma_load<S::V, CHUNK, S::THREADS>(in.v, head.v + x.e0, a.v_row, t, x.t1, a.dv - x.e0);
	load_decays<S::K, S::K, CHUNK, S::THREADS, false>(in.g, head, a, t, x.t1);
	copy_commit();
}

/* 16 rows of o, of which @o is the first, @n of them inside. */
template <class S>
static __device__ __forceinline__ void outputs_put(real *o, long row, int n, int e, int dv,
						   const float (*c)[4], float scale)
{
	int lane = threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < 4; i += 2)
#pragma unroll
		for (int x = 0; x < S::OUT_V / 8; x++) {
			int r = lane / 4 + i * 4, at = e + 8 * x + lane % 4 * 2;

			if (r < n && at < dv)
				*(uint32_t *)(o + r * row + at) =
					pack_bf16(c[x][i] * scale, c[x][i + 1] * scale);
		}
}

/* @OUT: outputs; else what each segment but the last adds to the state */
template <class S, bool OUT>
static __global__ void __launch_bounds__(S::THREADS, 1) vector_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	vector_smem<S> &m = *(vector_smem<S> *)mem;
	vector_tiles<S> &tiles = m.tiles;
	const struct linattn &a = p.a;
	const struct place x = place_of<S>(p, 0);
	int warp = threadIdx.x / 32, row = warp % (CHUNK / 16) * 16;
	int col = warp / (CHUNK / 16) * S::OUT_V;
	int s_row = warp % (S::K / 16) * 16, s_col = warp / (S::K / 16) * S::STATE_V;
	float s[S::STATE_V / 8][4], all = 1;

	let_next();
	mma_head_of(m.head, p, x.i, x.h);
	after_previous();
	load<S, OUT>(m.in[0], m.head, a, x, x.t0);
	mma_state_get<S::STATE_V / 8>(s, mma_first(p, x.at, x.n, !OUT), s_row, x.e0 + s_col, a.dk,
				      a.dv);
	for (int t = x.t0, n = 0; t < x.t1; t += CHUNK, n ^= 1) {
		float o[S::OUT_V / 8][4] = {};

		if (OUT)
			mma_state_round<S::V, S::STATE_V / 8>(m.s, s, s_row, s_col);
		copy_wait<0>();
		__syncthreads();	/* chunk and state are there, the one before is done with */
		if (t + CHUNK < x.t1)
			load<S, OUT>(m.in[n ^ 1], m.head, a, x, t + CHUNK);
		sums<S>(tiles, m.in[n]);
		__syncthreads();	/* sums are there */
		ends<S>(tiles);
		operands<S, OUT ? READ | WRITE | LEVEL : WRITE>(tiles, m.in[n], 1, NULL);
		__syncthreads();	/* operands are there */
		if (OUT) {
			long at = ((long)x.i * a.t + t + row) * a.heads + x.h;

			scores<S>(tiles, m.in[n], 1);
#pragma unroll
			for (int k = 0; k < S::K / 16; k++) {
				uint32_t q[4];

				mma_left<S::K>(q, tiles.read, row, k);
				mma_nn<S::V, S::OUT_V / 8>(o, q, m.s, k, col);
			}
			__syncthreads();	/* scores are there, and no one reads the state */
#pragma unroll
			for (int k = 0; k < CHUNK / 16; k++) {
				uint32_t left[4];

				if (16 * k > row)
					break;
				mma_left<SCORES>(left, tiles.a, row, k);
				mma_nn<S::V, S::OUT_V / 8>(o, left, m.in[n].v, k, col);
			}
			outputs_put<S>(real_of(a.o) + at * a.dv, (long)a.heads * a.dv, x.t1 - t - row,
				       x.e0 + col, a.dv, o, a.scale);
		}
		take_in<S>(s, tiles, tiles.write, m.in[n].v, s_row, s_col);
		if (!OUT && threadIdx.x < a.dk)
			all *= tiles.end[threadIdx.x];
	}
	if (OUT)
		return;
	mma_state_put<S::STATE_V / 8>(mma_state(p, x.at, x.n), s, s_row, x.e0 + s_col, a.dk, a.dv);
	if (threadIdx.x < a.dk && !x.e0)
		mma_decay(p, x.at, x.n)[threadIdx.x] = all;
}

/* @OUT: outputs; else states behind all segments but the last */
template <class S, bool OUT> static void vector_launch(const struct mma_run &p)
{
	dim3 grid(OUT ? p.segs : p.segs - 1, p.a.b * p.a.heads, div_up(p.a.dv, S::V));
	size_t bytes = sizeof(vector_smem<S>);

	shared_room(vector_kernel<S, OUT>, bytes);
	launch(vector_kernel<S, OUT>, grid, S::THREADS, bytes, p);
}

void mma_vector_states(const struct mma_run &p)
{
	if (p.segs == 1)
		return;
	by_shape(p.a, [&](auto shape) { vector_launch<decltype(shape), false>(p); });
	mma_scan(p);
}

void linattn_mma_vector_fwd(const struct linattn *a)
{
	by_shape(*a, [&](auto shape) {
		typedef decltype(shape) S;
		struct mma_run p = mma_run_of(a, div_up(a->dv, S::V), VECTOR_BLOCKS);

		mma_vector_states(p);
		vector_launch<S, true>(p);
	});
}

size_t mma_vector_room(const struct linattn &a)
{
	size_t bytes = 0;

	by_shape(a, [&](auto shape) { bytes = sizeof(vector_smem<decltype(shape)>); });
	return bytes;
}
