// SPDX-License-Identifier: MIT
/*
 * Linear recurrences whose decays are vectors backward, on mma.sync. A block goes through a
 * segment forwards with the state and makes gradients of queries, another backwards with the
 * gradient of the state and makes those of keys, values and decays. What a query and a key of
 * one chunk have from each other is the same number in q dq and in k dk, and does not stay
 * behind in gradients of decays.
 */
#include "linattn_mma_vector_bwd.cuh"

/* Gradients of decays of element @c of a key in the row of position @t. */
template <class S>
static __device__ __forceinline__ float *dg_at(const vector_smem<S> &m, const struct mma_run &p,
					       int t, int c)
{
	return m.head.dg + t * p.dg_row + c;
}

/* own(the element, its place in dg or NULL, its row and column), of two columns each */
template <class S, class F>
static __device__ __forceinline__ void each_own(float (&own)[part<S>::K / 8][4],
						const vector_smem<S> &m, const struct mma_run &p,
						const struct place &x, const struct part<S> &w, int t0,
						F f)
{
	mma_pairs<part<S>::K / 8>(w.row, w.key, [&](int n, int r, int t, int c) {
		bool inside = t0 + t < x.t1 && c < p.a.dk;
		float2 *dg = inside ? (float2 *)dg_at<S>(m, p, t0 + t, c) : NULL;

		f(*(float2 *)&own[n][r], dg, t, c);
	});
}

/* own = x dx, of gradients of queries or keys that came from the state */
template <class S>
static __device__ __forceinline__ void own_of_state(float (&own)[part<S>::K / 8][4],
						    const float (&dx)[part<S>::K / 8][4],
						    const bf16 *x, const struct part<S> &w)
{
	mma_pairs<part<S>::K / 8>(w.row, w.key, [&](int n, int r, int t, int c) {
		float2 v = pair_get(pair_at<S>(x, t, c));

		own[n][r] = v.x * dx[n][r];
		own[n][r + 1] = v.y * dx[n][r + 1];
	});
}

/*
 * Gradients of a chunk's queries or keys, of which dx has what came from the state. <q, dq> to
 * where gradients of decays will be; or what that has less <k, dk> to m.own.
 */
template <class S, bool BACK>
static __device__ __forceinline__ void inside(float (&dx)[part<S>::K / 8][4], vector_smem<S> &m,
					      const struct mma_run &p, const struct place &x,
					      const struct part<S> &w, int t0)
{
	float own[part<S>::K / 8][4];

	own_of_state<S>(own, dx, BACK ? m.in.k : m.in.q, w);
#pragma unroll
	for (int l = -1; l < LEVELS; l++)
		add_level<S, BACK>(dx, own, m, w, l, p.a.scale);
	each_own<S>(own, m, p, x, w, t0, [&](float2 own, float2 *dg, int t, int c) {
		if (!BACK && dg)
			*dg = own;
		if (BACK)
			*(float2 *)&m.own[t][c] = dg ? make_float2(dg->x - own.x, dg->y - own.y) :
						       make_float2(0, 0);
	});
	mma_rows_put<part<S>::K / 8>(BACK ? m.head.dk : m.head.dq, t0 + w.row, x.t1, w.key, dx);
}

/* Gradients of a chunk's decays; @behind: what lies behind it in column threadIdx.x. */
template <class S>
static __device__ __forceinline__ void decays(const vector_smem<S> &m, const struct mma_run &p,
					      const struct place &x, int t, float &behind)
{
	if (threadIdx.x >= p.a.dk)
		return;
#pragma unroll 8
	for (int r = CHUNK - 1; r >= 0; r--) {
		behind += m.own[r][threadIdx.x];
		if (t + r < x.t1)
			*dg_at<S>(m, p, t + r, threadIdx.x) = behind;
	}
}

/* <state, gradient> behind a segment, of each row; @part: [columns of warps][K] */
template <class S>
static __device__ __forceinline__ void behind_put(float *part, const struct mma_run &p,
						  const struct place &x, const float (*s)[4], int row,
						  int col)
{
	float d[S::STATE_V / 8][4], sum[2] = { 0, 0 }, all = 0;

	mma_state_get<S::STATE_V / 8>(d, mma_last_grad(p, x.at, x.n, false), row, col, p.a.dk,
				      p.a.dv);
#pragma unroll
	for (int n = 0; n < S::STATE_V / 8; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			sum[i / 2] = fmaf(s[n][i], d[n][i], sum[i / 2]);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		sum[i] = row_sum(sum[i]);
		if (threadIdx.x % 4 == 0)
			part[col / S::STATE_V * S::K + row + threadIdx.x % 32 / 4 + 8 * i] = sum[i];
	}
	__syncthreads();
	if (threadIdx.x >= p.a.dk)
		return;
	for (int n = 0; n < S::V / S::STATE_V; n++)
		all += part[n * S::K + threadIdx.x];
	mma_behind(p, x.at, x.n, p.a.dk)[threadIdx.x] = all;
}

template <class S, enum sweep MODE>
static __global__ void __launch_bounds__(S::THREADS, 1) vector_bwd_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	vector_smem<S> &m = *(vector_smem<S> *)mem;
	constexpr bool BACK = MODE != QUERIES;
	const struct linattn &a = p.a;
	const struct place x = place_of<S>(p, MODE == ADD);
	const struct part<S> w = part_of<S>();
	int chunks = div_up(x.t1 - x.t0, CHUNK);
	float s[S::STATE_V / 8][4], behind = 0;

	let_next();
	mma_head_of(m.head, p, x.i, x.h);
	after_previous();
	load_parts<S, needs<MODE>::ALL, false>(m, p, x, x.t0 + (BACK ? chunks - 1 : 0) * CHUNK);
	mma_state_get<S::STATE_V / 8>(s, BACK ? mma_last_grad(p, x.at, x.n, MODE == ADD) :
						mma_first(p, x.at, x.n, false),
				      w.s_row, w.s_col, a.dk, a.dv);
	if (MODE == KEYS && threadIdx.x < a.dk)
		behind = mma_behind(p, x.at, x.n, a.dk)[threadIdx.x];
	if (threadIdx.x < S::K)
		m.log[0][threadIdx.x] = 0;
	for (int n = 0; n < chunks; n++) {
		int t = x.t0 + (BACK ? chunks - 1 - n : n) * CHUNK;
		int after = BACK ? t - CHUNK : t + CHUNK;
		bool more = n + 1 < chunks;

		copy_commit();
		copy_wait<0>();
		__syncthreads();	/* the chunk is there, and no one reads m.own */
		if (more)
			load_parts<S, needs<MODE>::LATE, true>(m, p, x, after);
		if (MODE != ADD)
			mma_state_round<S::V, S::STATE_V / 8>(m.s, s, w.s_row, w.s_col);
		sums<S>(m.tiles, m.in);
		__syncthreads();	/* state and sums are there */
		ends<S>(m.tiles);
		operands<S, MODE == ADD ? READ : (MODE == KEYS ? READ : 0) | WRITE | LEVEL | LOG>
			(m.tiles, m.in, a.scale, m.log[1]);
		__syncthreads();	/* operands are there, and no one reads decays */
		if (more)
			load_parts<S, DECAYS, false>(m, p, x, after);
		if (MODE != ADD) {
			float dx[part<S>::K / 8][4] = {}, dv[S::OUT_V / 8][4] = {};

			if (MODE == KEYS)
				scores<S>(m.tiles, m.in, a.scale);
			score_grads<S>(m);
			if (w.key < S::K)
				from_state<S, BACK>(dx, m, w, BACK ? 1 : a.scale);
			if (MODE == KEYS)
				values<S>(dv, m, w);
			__syncthreads();	/* scores and D are there, and no one reads the state */
			if (more)
				load_parts<S, needs<MODE>::EARLY, false>(m, p, x, after);
			if (MODE == KEYS) {
				values_scores<S>(dv, m, w);
				mma_rows_put<S::OUT_V / 8>(m.head.dv, t + w.row, x.t1, w.value, dv);
			}
			if (w.key < S::K)
				inside<S, BACK>(dx, m, p, x, w, t);
		}
		take_in<S>(s, m.tiles, BACK ? m.tiles.read : m.tiles.write, BACK ? m.d_o : m.in.v,
			   w.s_row, w.s_col);
		__syncthreads();	/* no one reads the chunk any more; m.own is there */
		if (more)
			load_parts<S, needs<MODE>::LATE, false>(m, p, x, after);
		if (MODE == KEYS)
			decays<S>(m, p, x, t, behind);
	}
	if (MODE == QUERIES)
		behind_put<S>(m.tiles.run[0], p, x, s, w.s_row, w.s_col);
	if (MODE == ADD || (MODE == KEYS && !x.n))
		mma_state_put<S::STATE_V / 8>(mma_first_grad(p, x.at, x.n), s, w.s_row, w.s_col, a.dk,
					      a.dv);
}

template <class S, enum sweep MODE> static void vector_launch(const struct mma_run &p)
{
	dim3 grid(MODE == ADD ? p.segs - 1 : p.segs, p.a.b * p.a.heads);
	size_t bytes = sizeof(vector_smem<S>);

	shared_room(vector_bwd_kernel<S, MODE>, bytes);
	launch(vector_bwd_kernel<S, MODE>, grid, S::THREADS, bytes, p);
}

void mma_vector_bwd(const struct mma_run &p)
{
	mma_vector_states(p);
	by_shape(p.a, [&](auto shape) {
		typedef decltype(shape) S;

		if (p.segs > 1) {
			vector_launch<S, ADD>(p);
			mma_scan(p, true);
		}
		vector_launch<S, QUERIES>(p);
		vector_launch<S, KEYS>(p);
	});
}

size_t mma_vector_bwd_room(const struct linattn &a)
{
	size_t bytes = 0;

	by_shape(a, [&](auto shape) { bytes = sizeof(vector_smem<decltype(shape)>); });
	return bytes;
}
