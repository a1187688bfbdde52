/* SPDX-License-Identifier: MIT */
/**
 * DOC: decode attention, keys to softmax
 *
 * What a group of lanes does with its keys: copies of rows, scores, online softmax. How
 * groups, warps and blocks are put together stands in attn_step.cu.
 */
#ifndef TENON_CUDA_ATTN_STEP_CUH
#define TENON_CUDA_ATTN_STEP_CUH

#include "attn.cuh"
#include "cluster.cuh"

enum {
	STEP_WARPS = 4,
	STEP_THREADS = STEP_WARPS * 32,
	BATCH = 4,		/* keys that a group of lanes takes at a time */
	STAGES = 3,		/* batches of a warp that are there or on their way */
	SPLIT_KEYS = 256,	/* keys of a full cache that a block should have */
};

/* struct attn_step with what only the device needs */
struct step_run {
	struct attn_step a;
	float scale, ra;
	int units, per;		/* groups of heads that share keys and values; heads of one */
	int chunks;		/* blocks that share a unit's heads */
};

/** step_split() - blocks of a cluster: of the length of a cache alone; before sm_90 one */
static inline int step_split(const struct attn_step &a)
{
	int split = 1;

	while (cuda_capability() >= 90 && split < CLUSTER_MAX && split * SPLIT_KEYS < a.t_max)
		split *= 2;
	return split;
}

/**
 * attn_step_mma() - on tensor cores, attn_step_mma.cu
 * @p: all but chunks
 *
 * Returns: false where the shape is of another kind, and nothing was started.
 */
bool attn_step_mma(const struct step_run *p);

/* One softmax: maximum, sum and outputs of HEADS heads. */
template <int HEADS, int WIDTH> struct step_part {
	float max[HEADS], sum[HEADS], o[HEADS][WIDTH];
};

/* Batches of a warp: rows of k and of v, by the lane that copies and reads them. */
typedef uint4 step_ring[STAGES][2 * BATCH][32];

/* Every block of a cluster puts its part into the first one's, maxima and sums into all. */
template <int HEADS, int WIDTH> struct step_smem {
	step_ring ring[STEP_WARPS];
	struct step_part<HEADS, WIDTH> warp[STEP_WARPS], block[CLUSTER_MAX];
	float q[];		/* [HEADS][dk8] queries times scale, then the own key [dk8] */
};

/* Eight elements at column @e of a row of @width; 0 behind its end. */
static __device__ __forceinline__ uint4 row8(const bf16 *p, int e, int width, bool inside)
{
	uint4 v = make_uint4(0, 0, 0, 0);
	uint16_t *x = (uint16_t *)&v;

#pragma unroll
	for (int n = 0; n < 8; n++)
		if (inside && e + n < width)
			x[n] = ((const uint16_t *)p)[e + n];
	return v;
}

static __device__ __forceinline__ void widen8(float (&f)[8], const uint4 &v)
{
	const uint32_t w[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
	for (int n = 0; n < 4; n++) {
		f[2 * n] = __uint_as_float(w[n] << 16);
		f[2 * n + 1] = __uint_as_float(w[n] & 0xffff0000);
	}
}

static __device__ __forceinline__ float dot8(const float (&x)[8], const float *y)
{
	float sum = 0;

#pragma unroll
	for (int n = 0; n < 8; n++)
		sum = fmaf(x[n], y[n], sum);
	return sum;
}

/* 2^((x - max) log2 e), 0 for a part without keys */
static __device__ __forceinline__ float step_fix(float x, float max)
{
	return x == -INFINITY ? 0 : exp2_fast((x - max) * LOG2E);
}

/* Where a block stands: its cluster's sequence, heads and columns of the output. */
struct step_at {
	int rank, ranks, i, unit, h0, heads, e0, pos;
	const bf16 *k, *v;
};

template <int LANES, int HEADS>
static __device__ struct step_at step_place(const struct step_run &p)
{
	const struct attn_step &a = p.a;
	struct step_at w;
	int in_unit;

	w.rank = blockIdx.x;
	w.ranks = gridDim.x;
	w.i = blockIdx.z;
	w.unit = blockIdx.y % p.units;
	in_unit = blockIdx.y / p.units % p.chunks * HEADS;
	w.h0 = w.unit * p.per + in_unit;
	w.heads = min(HEADS, p.per - in_unit);
	w.e0 = blockIdx.y / (p.units * p.chunks) * LANES * 8;
	w.pos = a.pos[w.i];
	w.k = bf16_of(a.k) + w.i * a.cache_stride + w.h0 / a.group * a.k_head;
	w.v = bf16_of(a.v) + w.i * a.cache_stride + w.h0 / a.group * a.v_head;
	return w;
}

/* Starts copying the rows of keys from @u on; rows of at most LANES * 8 elements. */
template <int LANES>
static __device__ __forceinline__ void step_fetch(uint4 (&to)[2 * BATCH][32],
						  const struct step_run &p,
						  const struct step_at &w, int u)
{
	const struct attn_step &a = p.a;
	int e = threadIdx.x % LANES * 8;

#pragma unroll
	for (int j = 0; j < BATCH; j++) {
		bool inside = u + j <= w.pos;
		long row = inside ? u + j : 0;

		copy16(&to[j][threadIdx.x % 32], w.k + row * a.k_row + (e < a.dk ? e : 0),
		       inside && e < a.dk);
		copy16(&to[BATCH + j][threadIdx.x % 32], w.v + row * a.v_row + (e < a.dv ? e : 0),
		       inside && e < a.dv);
	}
}

/* Reciprocal term of the keys from @u, this lane's columns from @e. */
template <int HEADS>
static __device__ void step_band(float (&s)[HEADS][BATCH], const struct step_run &p,
				 const struct step_at &w, const float *own, int e, int u)
{
	const struct attn_step &a = p.a;

#pragma unroll
	for (int j = 0; j < BATCH; j++) {
		const bf16 *ring = bf16_of(a.ring) + w.i * a.cache_stride +
			(long)((u + j) % (a.ra_window + 1)) * a.heads * a.dk;
		bool inside = u + j <= w.pos && u + j >= w.pos - a.ra_window;

#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			float x[8];

			widen8(x, row8(ring + (w.h0 + h) * a.dk, e, a.dk, inside && h < w.heads));
			s[h][j] += p.ra * dot8(x, own + e);
		}
	}
}

/*
 * Sums over the lanes of a group, then the score of key @lane % BATCH. Each exchange
 * halves what a lane still adds up.
 */
template <int LANES> static __device__ __forceinline__ float step_reduce(const float (&s)[BATCH])
{
	bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
	float lo = odd ? s[1] : s[0], hi = odd ? s[3] : s[2], sum;

	static_assert(BATCH == 4, "two exchanges");
	lo += __shfl_xor_sync(~0u, odd ? s[0] : s[1], 1);
	hi += __shfl_xor_sync(~0u, odd ? s[2] : s[3], 1);
	sum = high ? hi : lo;
	sum += __shfl_xor_sync(~0u, high ? lo : hi, 2);
#pragma unroll
	for (int step = BATCH; step < LANES; step *= 2)
		sum += __shfl_xor_sync(~0u, sum, step);
	return sum;
}

/* Scores of BATCH keys from @u for one group of lanes, key @lane % BATCH in each lane. */
template <int LANES, int HEADS, bool VEC>
static __device__ __forceinline__ void step_scores(float (&score)[HEADS],
						   const struct step_run &p,
						   const struct step_at &w, const float *q,
						   const uint4 (*rows)[32], int u)
{
	const struct attn_step &a = p.a;
	int dk8 = div_up(a.dk, 8) * 8;
	float s[HEADS][BATCH] = {};

	for (int e = threadIdx.x % LANES * 8; e < dk8; e += LANES * 8) {
#pragma unroll
		for (int j = 0; j < BATCH; j++) {
			uint4 row = VEC ? rows[j][threadIdx.x % 32] :
				row8(w.k + (u + j) * a.k_row, e, a.dk, u + j <= w.pos);
			float x[8];

			widen8(x, row);
#pragma unroll
			for (int h = 0; h < HEADS; h++)
				s[h][j] += dot8(x, q + h * dk8 + e);
		}
		if (p.ra != 0 && u + BATCH - 1 >= w.pos - a.ra_window)
			step_band<HEADS>(s, p, w, q + HEADS * dk8, e, u);
	}
#pragma unroll
	for (int h = 0; h < HEADS; h++) {
		score[h] = step_reduce<LANES>(s[h]);
		if (u + (int)threadIdx.x % BATCH > w.pos)
			score[h] = -INFINITY;
	}
}

/* One group's softmax of each head; sum is this lane's part. */
template <int HEADS> struct step_state {
	float o[HEADS][8], max[HEADS], sum[HEADS];
};

/* BATCH keys from @u: softmax, and their values into the output. */
template <int LANES, int HEADS, bool VEC>
static __device__ __forceinline__ void step_batch(struct step_state<HEADS> &st,
						  const struct step_run &p,
						  const struct step_at &w, const float *q,
						  const uint4 (*rows)[32], int u)
{
	const struct attn_step &a = p.a;
	int lane = threadIdx.x % LANES, e = w.e0 + lane * 8;
	float s[HEADS];

	step_scores<LANES, HEADS, VEC>(s, p, w, q, rows, u);
#pragma unroll
	for (int h = 0; h < HEADS; h++) {
		float m = fmaxf(s[h], __shfl_xor_sync(~0u, s[h], 1)), fix;

		if (a.route && !w.e0 && h < w.heads && lane < BATCH && u + lane <= w.pos)
			a.route[((long)w.i * a.heads + w.h0 + h) * a.route_stride + u + lane] = s[h];
		m = fmaxf(st.max[h], fmaxf(m, __shfl_xor_sync(~0u, m, 2)));
		fix = step_fix(st.max[h], m);
		s[h] = step_fix(s[h], m);
		st.max[h] = m;
		st.sum[h] = st.sum[h] * fix + s[h];
#pragma unroll
		for (int n = 0; n < 8; n++)
			st.o[h][n] *= fix;
	}
#pragma unroll
	for (int j = 0; j < BATCH; j++) {
		uint4 row = VEC ? rows[BATCH + j][threadIdx.x % 32] :
			row8(w.v + (u + j) * a.v_row, e, a.dv, u + j <= w.pos);
		float x[8], prob;

		widen8(x, row);
#pragma unroll
		for (int h = 0; h < HEADS; h++) {
			prob = __shfl_sync(~0u, s[h], threadIdx.x % 32 / BATCH * BATCH + j);
#pragma unroll
			for (int n = 0; n < 8; n++)
				st.o[h][n] = fmaf(prob, x[n], st.o[h][n]);
		}
	}
}

/* Turns of this warp, of all its groups: shuffles are for whole warps. */
template <int LANES> static __device__ __forceinline__ int step_turns(const struct step_at &w)
{
	constexpr int GROUPS = STEP_THREADS / LANES;
	int first = w.rank * GROUPS + threadIdx.x / 32 * (32 / LANES), last = w.pos / BATCH;

	return last < first ? 0 : (last - first) / (w.ranks * GROUPS) + 1;
}

/* First key of this group in turn @n */
template <int LANES> static __device__ __forceinline__ int step_key(const struct step_at &w, int n)
{
	constexpr int GROUPS = STEP_THREADS / LANES;

	return (n * w.ranks * GROUPS + w.rank * GROUPS + threadIdx.x / LANES) * BATCH;
}

#endif
