/* SPDX-License-Identifier: MIT */
/**
 * DOC: linear recurrences whose decays are vectors, on mma.sync
 *
 * Chunks of CHUNK positions. Their scores go by halves: of a query and a key whose positions
 * first differ in bit l, decays are a product over the positions from the query's run of 2^l
 * on, times one over those behind the key in its own. Neither exceeds 1 whatever the decays,
 * so that for each l one product of rows in bf16 makes all such scores. A position is at each
 * l either a query or a key. After Yang et al. 2023, arXiv 2312.06635, whose secondary chunks
 * these replace.
 */
#ifndef TENON_CUDA_LINATTN_MMA_VECTOR_CUH
#define TENON_CUDA_LINATTN_MMA_VECTOR_CUH

#include "segments.cuh"

enum {
	CHUNK = 32,
	LEVELS = 5,			/* log2 of CHUNK */
	RUN = 4,			/* positions of a column in one thread: levels 0 and 1 */
	RUNS = CHUNK / RUN,
	SCORES = 64,			/* pitch of scores */
};

/* K, V: columns of keys and of a slice of values. */
template <int KEYS, int VALUES> struct vector_shape {
	static constexpr int K = KEYS, V = VALUES, WARPS = V > 128 ? 16 : 8, THREADS = 32 * WARPS;
	static constexpr int LOGS = K + 8;	/* pitch of floats, against conflicts */
	/* A warp's columns: of 16 rows of outputs, and of the state. */
	static constexpr int OUT_V = V / (WARPS / (CHUNK / 16)), STATE_V = V / (WARPS / (K / 16));
};

template <class S> struct vector_in {
	bf16 q[CHUNK * S::K], k[CHUNK * S::K], v[CHUNK * S::V];
	float g[CHUNK * S::K];
};

/*
 * Operands of a chunk. x: queries and keys of each level; read, write: queries with decays from
 * the chunk's beginning on, keys with those behind them; a: scores; run: sums of logarithms of
 * decays to base 2; end: decays of the whole chunk.
 */
template <class S> struct vector_tiles {
	bf16 x[LEVELS][CHUNK * S::K], read[CHUNK * S::K], write[CHUNK * S::K], a[CHUNK * SCORES];
	float run[RUNS][S::K], end[S::K];
};

/* Where a block stands: head @at, positions @t0 to @t1, columns @e0 on. */
struct place {
	int i, h, at, n, t0, t1, e0;
};

/* @from: the first segment that has a block */
template <class S>
static __device__ __forceinline__ struct place place_of(const struct mma_run &p, int from)
{
	int at = blockIdx.y, n = blockIdx.x + from;

	return { at / p.a.heads, at % p.a.heads, at, n, n * p.seg, min(p.a.t, (n + 1) * p.seg),
		 (int)blockIdx.z * S::V };
}

/* ROWS rows of K logarithms of decays from position @t on; @AHEAD: to the second cache alone */
template <int K, int PITCH, int ROWS, int THREADS, bool AHEAD>
static __device__ __forceinline__ void load_decays(float *g, const struct mma_head &head,
						   const struct linattn &a, int t, int end)
{
	constexpr int N = AHEAD ? 32 : 4;	/* of a line, or of a copy */
	constexpr int STEP = THREADS / (K / N);
	int r = threadIdx.x / (K / N), c = threadIdx.x % (K / N) * N;
	int left = c < a.dk ? MIN(end - t, ROWS) - r : 0;
	const float *src = head.g + (t + r) * a.g_row + c;

#pragma unroll
	for (int j = 0; j < ROWS; j += STEP, src += STEP * a.g_row)
		if (!AHEAD)
			copy16(g + (r + j) * PITCH + c, src, j < left);
		else if (j < left)
			asm volatile("prefetch.global.L2 [%0];" : : "l"(src));
}

static __device__ __forceinline__ float2 operator*(float2 a, float2 b)
{
	return { a.x * b.x, a.y * b.y };
}

static __device__ __forceinline__ float2 operator*(float2 a, float b)
{
	return { a.x * b, a.y * b };
}

static __device__ __forceinline__ void operator*=(float2 &a, float2 b)
{
	a = a * b;
}

static __device__ __forceinline__ float2 operator+(float2 a, float2 b)
{
	return { a.x + b.x, a.y + b.y };
}

static __device__ __forceinline__ void operator+=(float2 &a, float2 b)
{
	a = a + b;
}

static __device__ __forceinline__ float2 exp2_pair(float2 x)
{
	return { exp2_fast(x.x), exp2_fast(x.y) };
}

/* The runs of two columns that a thread has: f(run, the first column). */
template <class S, class F> static __device__ __forceinline__ void each_run(F f)
{
	mma_each<RUNS * S::K / 2, S::THREADS>([&](unsigned int j) {
		f(j / (S::K / 2), j % (S::K / 2) * 2);
	});
}

/* Two logarithms to base 2 of row @t. */
template <class S>
static __device__ __forceinline__ float2 log_at(const vector_in<S> &in, int t, int c)
{
	return *(const float2 *)&in.g[t * S::K + c] * LOG2E;
}

/* Sums over runs. */
template <class S>
static __device__ __forceinline__ void sums(vector_tiles<S> &m, const vector_in<S> &in)
{
	each_run<S>([&](int run, int c) {
		float2 all = { 0, 0 };

#pragma unroll
		for (int r = 0; r < RUN; r++)
			all += log_at<S>(in, run * RUN + r, c);
		*(float2 *)&m.run[run][c] = all;
	});
}

/*
 * Sums over the runs beside @run of two columns: all before it, all behind it, and level[b]
 * over those between it and the border of its half at level 3 + b, the last two.
 */
struct beside {
	float2 before, behind, level[LEVELS - 3];
};

template <class S>
static __device__ __forceinline__ struct beside beside_of(const vector_tiles<S> &m, int run, int c)
{
	float2 before[2] = {}, behind[2] = {};	/* of each half of the chunk */
	struct beside x;

#pragma unroll
	for (int j = 0; j < RUNS; j++) {
		float2 all = *(const float2 *)&m.run[j][c];

		if (j < run)
			before[j / (RUNS / 2)] += all;
		if (j > run)
			behind[j / (RUNS / 2)] += all;
	}
	x.level[0] = { 0, 0 };
	if ((run >> 1 & 1) == (run & 1))
		x.level[0] = *(const float2 *)&m.run[run ^ 1][c];
	x.level[1] = run < RUNS / 2 ? behind[0] : before[1];
	x.before = before[0] + before[1];
	x.behind = behind[0] + behind[1];
	return x;
}

/* Decays of the chunk. */
template <class S> static __device__ __forceinline__ void ends(vector_tiles<S> &m)
{
	for (int c = threadIdx.x; c < S::K; c += S::THREADS) {
		float all = 0;

#pragma unroll
		for (int j = 0; j < RUNS; j++)
			all += m.run[j][c];
		m.end[c] = exp2_fast(all);
	}
}

/* Decays in a run of two columns: of each position, and of those behind it. */
struct run_decays {
	float2 alpha[RUN], to[RUN];
};

/* The latter from the former. */
static __device__ __forceinline__ void run_decays_to(struct run_decays &x)
{
	x.to[RUN - 1] = { 1, 1 };
#pragma unroll
	for (int r = RUN - 1; r; r--)
		x.to[r - 1] = x.to[r] * x.alpha[r];
}

template <class S>
static __device__ __forceinline__ struct run_decays run_decays_of(const vector_in<S> &in, int run,
								  int c)
{
	struct run_decays x;

#pragma unroll
	for (int r = 0; r < RUN; r++)
		x.alpha[r] = exp2_pair(log_at<S>(in, run * RUN + r, c));
	run_decays_to(x);
	return x;
}

/* Levels 0 and 1 at element @at, of position @r of a run: its query @q, its key @k. */
template <class M>
static __device__ __forceinline__ void levels_inside(M &m, int at, int r, float2 q, float2 k,
						     const float2 (&alpha)[RUN])
{
	pair_put(m.x[0] + at, r & 1 ? q * alpha[r] : k);
	if (r == 0)
		k *= alpha[1];
	if (r >= 2)
		q *= alpha[2];
	if (r == 3)
		q *= alpha[3];
	pair_put(m.x[1] + at, r & 2 ? q : k);
}

enum { READ = 1, WRITE = 2, LEVEL = 4, LOG = 8 };	/* which operands */

/*
 * Operands @WHICH, of queries times @scale, when sums are there.
 * @log: [CHUNK][S::LOGS], logarithms' sums from the chunk's beginning to each position
 */
template <class S, int WHICH>
static __device__ __forceinline__ void operands(vector_tiles<S> &m, const vector_in<S> &in,
						float scale, float *log)
{
	each_run<S>([&](int run, int c) {
		struct beside x = beside_of<S>(m, run, c);
		struct run_decays d = run_decays_of<S>(in, run, c);
		float2 before = exp2_pair(x.before) * scale, behind = exp2_pair(x.behind);
		float2 from = { 1, 1 }, sum = x.before;
		int first = tile_at<S::K>(run * RUN, c / 8) + c % 8;

		x.level[0] = exp2_pair(x.level[0]);
		x.level[1] = exp2_pair(x.level[1]);
#pragma unroll
		for (int r = 0; r < RUN; r++) {
			/* run * RUN + r, of whose bits r has the lower two, and row r behind it */
			int at = chunk_at(first, r) + r * S::K;
			float2 q = pair_get(in.q + at), k = pair_get(in.k + at);

			sum += log_at<S>(in, run * RUN + r, c);
			from *= d.alpha[r];
			if (WHICH & LOG)
				*(float2 *)&log[(run * RUN + r) * S::LOGS + c] = sum;
			if (WHICH & READ)
				pair_put(m.read + at, q * from * before);
			if (WHICH & WRITE)
				pair_put(m.write + at, k * d.to[r] * behind);
			if (!(WHICH & LEVEL))
				continue;
			levels_inside(m, at, r, q, k, d.alpha);
			q *= from;
			k *= d.to[r];
			pair_put(m.x[2] + at, run & 1 ? q : k);
			pair_put(m.x[3] + at, (run & 2 ? q : k) * x.level[0]);
			pair_put(m.x[4] + at, (run & 4 ? q : k) * x.level[1]);
		}
	});
}

/* The part of a tile of scores that level @l has; -1: what stands on the diagonal. */
static __device__ __forceinline__ bool of_level(int l, int t, int u)
{
	return l < 0 ? t == u : t > u && (t ^ u) >> l == 1;
}

/* c += 16 rows of @q from @row on, times 16 of @k from @col on */
template <int K>
static __device__ __forceinline__ void score_product(float (&c)[2][4], const bf16 *q, const bf16 *k,
						     int row, int col)
{
#pragma unroll
	for (int n = 0; n < K / 16; n++) {
		uint32_t a[4];

		mma_left<K>(a, q, row, n);
		mma_nt<K, 2>(c, a, k, col, n);
	}
}

/*
 * Scores, a tile of 16 by 16 and a level for each warp: the two tiles on the diagonal, and
 * the one below it. Elements above the diagonal become 0.
 */
template <class S>
static __device__ __forceinline__ void scores(vector_tiles<S> &m, const vector_in<S> &in,
					      float scale)
{
	int lane = threadIdx.x % 32;

	for (int j = threadIdx.x / 32; j < 2 * LEVELS + 1; j += S::WARPS) {
		int l = j < 2 * LEVELS ? j % LEVELS - 1 : LEVELS - 1;
		int row = j < LEVELS ? 0 : 16, col = j < 2 * LEVELS ? row : 0;
		const bf16 *q = l < 0 ? in.q : m.x[l], *k = l < 0 ? in.k : m.x[l];
		float c[2][4] = {};

		score_product<S::K>(c, q, k, row, col);
#pragma unroll
		for (int n = 0; n < 2; n++)
#pragma unroll
			for (int i = 0; i < 4; i++) {
				int t = row + lane / 4 + i / 2 * 8;
				int u = col + 8 * n + lane % 4 * 2 + i % 2;
				bool above = l < 0 && u > t;

				if (above || of_level(l, t, u))
					m.a[tile_at<SCORES>(t, u / 8) + u % 8] =
						__float2bfloat16(above ? 0 : scale * c[n][i]);
			}
	}
}

/* The warp's rows and columns of a state take in a chunk: x^T y. */
template <class S>
static __device__ __forceinline__ void take_in(float (*s)[4], const vector_tiles<S> &m,
					       const bf16 *x, const bf16 *y, int row, int col)
{
	int at = row + threadIdx.x % 32 / 4;

	mma_rows_scale<S::STATE_V / 8>(s, m.end[at], m.end[at + 8]);
#pragma unroll
	for (int k = 0; k < CHUNK / 16; k++) {
		uint32_t a[4];

		mma_left_t<S::K>(a, x, row, k);
		mma_nn<S::V, S::STATE_V / 8>(s, a, y, k, col);
	}
}

template <int K, class F> static void by_values(int dv, F call)
{
	if (dv <= 64)
		call(vector_shape<K, 64>());
	else if (dv <= 128)
		call(vector_shape<K, 128>());
	else
		call(vector_shape<K, 256>());
}

/* call(the shape that takes @a) */
template <class F> static void by_shape(const struct linattn &a, F call)
{
	if (a.dk <= 64)
		by_values<64>(a.dv, call);
	else
		by_values<128>(a.dv, call);
}

#endif
