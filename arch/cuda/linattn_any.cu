// SPDX-License-Identifier: MIT
/*
 * Linear recurrences of any shape, sliced by columns of values: outputs, states, and
 * gradients of values, which are the outputs of a recurrence that runs backwards with keys
 * and queries, and values and gradients of outputs, exchanged.
 *
 * Inside a block scores go by halves: of a query and a key whose positions first differ in
 * bit l, decays are a product over the positions from the query's run of 2^l on, times one
 * over those behind the key in its own. So all scores are plain products of rows.
 */
#include "linattn_any.cuh"

enum {
	LEVELS = 4,		/* log2 of ROWS */
	COLUMNS_MAX = 128,	/* of queries and keys that stand in shared memory at a time */
};

enum mode { OUTPUTS, VALUES, STATES };

template <class S> struct columns {
	static constexpr int ALL = S::WIDTH < COLUMNS_MAX ? S::WIDTH : (int)COLUMNS_MAX;
	static constexpr int PITCH = ALL + 4;
};

/* Of one block. @query, @key: [LEVELS][8] with decays of a level, then [ROWS] as they are. */
template <class S> struct smem {
	float query[LEVELS * ROWS / 2 + ROWS][columns<S>::PITCH];
	float key[LEVELS * ROWS / 2 + ROWS][columns<S>::PITCH];
	float read[ROWS][S::PITCH], write[ROWS][S::PITCH], end[S::PITCH];
	float right[ROWS][SLICE], a[2][ROWS][ROWS], part[S::W * ROWS * SLICE];
};

/* Row of position @t at level @l among those that stand there. */
static __host__ __device__ constexpr int level_row(int l, int t)
{
	return l * ROWS / 2 + (t >> (l + 1) << l | (t & ((1 << l) - 1)));
}

/*
 * A column of queries (@Q) or keys: rows of each level to @to, @pitch apart. @g: alphas, then
 * products from the first position to each, or of those behind each.
 */
template <bool Q>
static __device__ __forceinline__ void levels(float *to, int pitch, const float (&x)[ROWS],
					      float (&g)[ROWS])
{
	float behind[ROWS];

#pragma unroll
	for (int t = 0; t < ROWS; t++) {
		to[(LEVELS * ROWS / 2 + t) * pitch] = x[t];
		behind[t] = 1;
	}
#pragma unroll
	for (int l = 0; l < LEVELS; l++) {
#pragma unroll
		for (int t = 0; t < ROWS; t++) {
			if ((t >> l & 1) != Q)
				continue;
			to[level_row(l, t) * pitch] = x[t] * (Q ? g[t] : behind[t]);
			if (!Q)
				behind[t] *= g[(((t >> l) + 2) << l) - 1];
		}
#pragma unroll
		for (int t = 0; t < ROWS; t++)
			if (t >> l & 1)
				g[t] *= g[(t >> l << l) - 1];
	}
#pragma unroll
	for (int t = 0; !Q && t < ROWS; t++)
		g[t] = behind[t];
}

/* Column @c of a block of @n rows, @x: its queries or keys; at @local in the levels. */
template <class S, bool Q>
static __device__ __forceinline__ void column(struct smem<S> &s, float (*weights)[S::PITCH],
					      const struct linattn &a, const struct any_decay &d,
					      const real *row, int n, int c, int local)
{
	long ld = Q ? a.q_row : a.k_row;
	float scale = Q ? a.scale : 1, x[ROWS], g[ROWS];

#pragma unroll
	for (int t = 0; t < ROWS; t++) {
		bool inside = t < n && c < a.dk;

		x[t] = inside ? scale * get(row + t * ld + c) : 0;
		g[t] = inside ? any_alpha(d, t, c) : 1;
	}
	levels<Q>(&(Q ? s.query : s.key)[0][local], columns<S>::PITCH, x, g);
#pragma unroll
	for (int t = 0; t < ROWS; t++)
		weights[t][c] = x[t] * g[t];
	if (Q)
		s.end[c] = g[ROWS - 1];
}

/* Operands and scores of the block at @t0. */
template <class S>
static __device__ void load_scores(struct smem<S> &s, const struct linattn &a, int i, int h, int t0,
				   int n, bool back)
{
	constexpr int HALF = S::THREADS / 2, ALL = columns<S>::ALL;
	const real *q = linattn_q(a, i, h) + t0 * a.q_row, *k = linattn_k(a, i, h) + t0 * a.k_row;
	struct any_decay d = any_decay_of(a, i, h, t0);
	struct any_pair p = any_pair_of(threadIdx.x % (ROWS * ROWS));
	int l = p.whole ? 0 : 31 - __clz(p.t ^ p.u);
	int x = p.whole ? LEVELS * ROWS / 2 + p.t : level_row(l, p.t);
	int y = p.whole ? LEVELS * ROWS / 2 + p.u : level_row(l, p.u);
	float sum = 0;

	for (int c0 = 0; c0 < S::WIDTH; c0 += ALL) {
		if (c0)
			__syncthreads();
		for (int c = threadIdx.x % HALF; c < ALL; c += HALF)
			if (threadIdx.x < HALF)
				column<S, true>(s, back ? s.write : s.read, a, d, q, n, c0 + c, c);
			else
				column<S, false>(s, back ? s.read : s.write, a, d, k, n, c0 + c, c);
		__syncthreads();
		if (threadIdx.x < ROWS * ROWS)
			sum += any_dot(s.query[x], s.key[y], ALL, p);
	}
	if (threadIdx.x < ROWS * ROWS)
		any_pair_put(s.a, p, sum);
}

/* Keys alone, for a state. */
template <class S>
static __device__ void load_keys(struct smem<S> &s, const struct linattn &a, int i, int h, int t0,
				 int n)
{
	const real *k = linattn_k(a, i, h) + t0 * a.k_row;
	struct any_decay d = any_decay_of(a, i, h, t0);

	for (int c = threadIdx.x; c < S::WIDTH; c += S::THREADS) {
		float to = 1;

#pragma unroll
		for (int t = ROWS - 1; t >= 0; t--) {
			bool inside = t < n && c < a.dk;

			s.write[t][c] = inside ? to * get(k + t * a.k_row + c) : 0;
			to *= inside ? any_alpha(d, t, c) : 1;
		}
		s.end[c] = to;
	}
}

/* Rows of the block at @t0 out of s.part and the scores. */
template <class S>
static __device__ void store_rows(const struct smem<S> &s, const struct any_run &p, int i, int h,
				  int t0, int n, bool back)
{
	int warp = threadIdx.x / 32, lane = threadIdx.x % 32, e = blockIdx.y * SLICE + lane;

	for (int t = warp; t < n; t += S::W) {
		float sum = any_far<S::W>(s.part, t);

		for (int u = back ? t : 0; u < (back ? ROWS : t + 1); u++) {
			int x = back ? u : t, y = back ? t : u;

			sum = fmaf(s.a[0][x][y] + s.a[1][x][y], s.right[u][lane], sum);
		}
		if (e < p.a.dv)
			any_put(p.out, (long)i * p.a.t + t0 + t, p.a.heads, h, e, sum);
	}
}

template <class S, enum mode MODE>
static __global__ void __launch_bounds__(S::THREADS) values_kernel(struct any_run p)
{
	extern __shared__ __align__(16) char mem[];
	struct smem<S> &s = *(struct smem<S> *)mem;
	const struct linattn &a = p.a;
	int i = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
	int warp = threadIdx.x / 32, e = blockIdx.y * SLICE + threadIdx.x % 32;
	constexpr bool back = MODE == VALUES;
	long head = (long)h * a.dk * a.dv, seq = (long)a.heads * a.dk * a.dv;
	const real *right = back ? p.d_o + ((long)i * a.t * a.heads + h) * a.dv : linattn_v(a, i, h);
	long right_row = back ? (long)a.heads * a.dv : a.v_row;
	int t = MODE == STATES ? p.len[i] : a.t, blocks = (t + ROWS - 1) / ROWS;
	float state[S::N];

	let_next();
	after_previous();
#pragma unroll
	for (int j = 0; j < S::N; j++) {
		int c = warp * S::N + j;

		state[j] = p.first && c < a.dk && e < a.dv ?
				   p.first[i * seq + head + (long)c * a.dv + e] : 0;
	}
	for (int j = 0; j < blocks; j++) {
		int t0 = (back ? blocks - 1 - j : j) * ROWS, n = min(ROWS, t - t0);

		for (int r = warp; r < ROWS; r += S::W)
			s.right[r][threadIdx.x % 32] =
				r < n && e < a.dv ? get(right + (t0 + r) * right_row + e) : 0;
		if (MODE == STATES)
			load_keys<S>(s, a, i, h, t0, n);
		else
			load_scores<S>(s, a, i, h, t0, n, back);
		if (MODE != STATES)
			any_read<S::N>(s.part, s.read[0], S::PITCH, state);
		__syncthreads();
		if (MODE != STATES)
			store_rows<S>(s, p, i, h, t0, n, back);
#pragma unroll
		for (int c = 0; c < S::N; c++)
			state[c] *= s.end[warp * S::N + c];
		any_write<S::N>(state, s.write[0], S::PITCH, s.right[0]);
		__syncthreads();
	}
#pragma unroll
	for (int j = 0; p.last && j < S::N; j++) {
		int c = warp * S::N + j;

		if (c < a.dk && e < a.dv)
			p.last[i * p.last_seq + head + (long)c * a.dv + e] = state[j];
	}
}

template <enum mode MODE> static void values(const struct any_run &p)
{
	dim3 grid(p.a.b * p.a.heads, div_up(p.a.dv, SLICE));

	any_by_width(p.a.dk, [&](auto shape) {
		typedef decltype(shape) S;

		shared_room(values_kernel<S, MODE>, sizeof(struct smem<S>));
		launch(values_kernel<S, MODE>, grid, S::THREADS, sizeof(struct smem<S>), p);
	});
}

void linattn_any_fwd(const struct linattn *a)
{
	struct any_run p = {};

	p.a = *a;
	p.out = any_out_of(a->o, (long)a->heads * a->dv, a->dv, NULL, a->dv);
	p.first = a->s0;
	values<OUTPUTS>(p);
}

void linattn_any_values(const struct any_run &p)
{
	values<VALUES>(p);
}

void k_linattn_state(const struct linattn *a, acc_t *state, long seq, const int32_t *len)
{
	struct any_run p = {};

	p.a = *a;
	p.first = a->s0;
	p.last = state;
	p.last_seq = seq;
	p.len = len;
	values<STATES>(p);
}
