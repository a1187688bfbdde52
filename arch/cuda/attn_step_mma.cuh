/* SPDX-License-Identifier: MIT */
/**
 * DOC: decode attention on tensor cores, keys to softmax
 *
 * What a warp does with its keys: copies of rows, scores, online softmax. How warps and blocks
 * are put together stands in attn_step_mma.cu.
 *
 * Latents are keys and values at once: where v stands in the rows of k it is copied once. Rows
 * stand in shared memory as blocks of 64 columns, swizzled as wgmma.cuh has them; from sm_90 on
 * the copy engine fills them.
 */
#ifndef TENON_CUDA_ATTN_STEP_MMA_CUH
#define TENON_CUDA_ATTN_STEP_MMA_CUH

#include "attn_mma.cuh"
#include "attn_step.cuh"
#include "wgmma.cuh"

enum {
	HEADS = 16,		/* rows of a product; what is behind a unit's last head is 0 */
	VALUES_MAX = 256,	/* columns of a block: more are blocks of their own */
};

/* struct step_run with maps of what is cached, where the copy engine is used. */
struct mma_run {
	struct step_run s;
	struct head_map k, v;
};

/* A part of a softmax: of a warp. */
template <int COLS> struct mma_part {
	float max[HEADS], sum[HEADS], o[HEADS][COLS + 4];	/* + 4: banks */
};

/* What follows the rings, in their place. */
template <int DV, int WARPS> struct mma_merge {
	struct mma_part<DV> warp[WARPS];
	float max[CLUSTER_MAX][HEADS], sum[CLUSTER_MAX][HEADS];
	float o[HEADS * DV];	/* [rank][heads][columns of the share] */
};

/*
 * How a block works: widths of keys and values, multiples of 64; warps, stages of the ring
 * of each, keys of a stage. SAME: values are the first columns of keys. HELD: registers have
 * the queries. ENGINE: copies are the copy engine's.
 */
template <int DK_, int DV_, int WARPS_, int STAGES_, int KEYS_, bool SAME_> struct mma_way {
	static constexpr int DK = DK_, DV = DV_, WARPS = WARPS_, STAGES = STAGES_, KEYS = KEYS_;
	static constexpr int THREADS = 32 * WARPS, STAGE = KEYS * (DK + (SAME_ ? 0 : DV));
	static constexpr bool SAME = SAME_, HELD = DK <= 256;
#ifdef __CUDA_ARCH__
	static constexpr bool ENGINE = __CUDA_ARCH__ >= 900;
#endif

	struct smem {
		union {
			bf16 ring[WARPS][STAGES][STAGE];
			struct mma_merge<DV, WARPS> merge;
		};
		bf16 q[HEADS * DK];
		uint64_t full[WARPS][STAGES];
	};
};

/* Of the tile [ROWS][columns] in blocks: chunk @c of row @r. */
template <int ROWS> static __device__ __forceinline__ int block_at(int r, int c)
{
	return c / 8 * ROWS * BLOCK_COLS + tile_at<BLOCK_COLS>(r, c % 8);
}

/* Rows from @u on to shared memory, 0 behind @pos and behind column @width. */
template <int KEYS, int W>
static __device__ __forceinline__ void rows_fetch(bf16 *to, const bf16 *from, long row, int width,
						  int u, int pos)
{
#pragma unroll
	for (int n = threadIdx.x % 32; n < KEYS * W / 8; n += 32) {
		int r = n / (W / 8), c = n % (W / 8);
		bool inside = u + r <= pos && c * 8 < width;

		copy16(to + block_at<KEYS>(r, c), inside ? from + (u + r) * row + c * 8 : from,
		       inside);
	}
}

/* Starts copying the keys from @u on. */
template <class WAY>
static __device__ __forceinline__ void stage_fetch(bf16 *to, uint64_t *full,
						   const struct mma_run &p, const struct step_at &w,
						   int u)
{
	constexpr int KEYS = WAY::KEYS, DK = WAY::DK, DV = WAY::DV;
	const struct attn_step &a = p.s.a;

	if constexpr (WAY::ENGINE) {
		if (threadIdx.x % 32)
			return;
		mbar_expect(full, WAY::STAGE * sizeof(bf16));
		tile_fetch<DK, KEYS>(to, &p.k, full, u, a.k_head ? w.unit : 0, w.i);
		if (!WAY::SAME)
			tile_fetch<DV, KEYS>(to + KEYS * DK, &p.v, full, u, a.v_head ? w.unit : 0,
					     w.i, w.e0);
	} else {
		rows_fetch<KEYS, DK>(to, w.k, a.k_row, a.dk, u, w.pos);
		if (!WAY::SAME)
			rows_fetch<KEYS, DV>(to + KEYS * DK, w.v + w.e0, a.v_row, a.dv - w.e0, u,
					     w.pos);
	}
}

/* The copy engine brings what stands behind the last key, too: its values become 0. */
template <class WAY>
static __device__ __forceinline__ void values_end(bf16 *v, int u, int pos)
{
	for (int n = threadIdx.x % 32; n < WAY::KEYS * WAY::DV / 8; n += 32) {
		int r = n / (WAY::DV / 8), c = n % (WAY::DV / 8);

		if (u + r > pos)
			*(uint4 *)(v + block_at<WAY::KEYS>(r, c)) = uint4{};
	}
	__syncwarp();
}

/* Queries of the unit's heads, 0 behind the last head and column. */
template <class WAY>
static __device__ __forceinline__ void queries_put(bf16 *to, const struct mma_run &p,
						   const struct step_at &w)
{
	const struct attn_step &a = p.s.a;

#pragma unroll
	for (int n = threadIdx.x; n < HEADS * WAY::DK / 8; n += WAY::THREADS) {
		int h = n / (WAY::DK / 8), c = n % (WAY::DK / 8);
		const bf16 *q = bf16_of(a.q) + w.i * a.q_row + (w.h0 + h) * a.dk + c * 8;

		*(uint4 *)(to + block_at<HEADS>(h, c)) =
			h < w.heads && c * 8 < a.dk ? *(const uint4 *)q : uint4{};
	}
}

/* Of 16 rows of queries, columns 16 @e... */
static __device__ __forceinline__ void query_get(uint32_t (&a)[4], const bf16 *q, int e)
{
	int lane = threadIdx.x % 32;

	ldmatrix(a, q + block_at<HEADS>(lane % 16, 2 * e + lane / 16));
}

/* A warp's softmax; queries, where registers hold them. */
template <class WAY> struct mma_state {
	float o[WAY::DV / 8][4], max[2], sum[2];
	uint32_t q[WAY::HELD ? WAY::DK / 16 : 1][4];
};

/* Scores of KEYS keys; of 16, two sums of each so that products need not wait. */
template <class WAY>
static __device__ __forceinline__ void mma_scores(float (&s)[WAY::KEYS / 8][4],
						  const struct mma_state<WAY> &st, const bf16 *q,
						  const bf16 *k)
{
	constexpr int SUMS = WAY::KEYS == 16 ? 2 : 1;
	int lane = threadIdx.x % 32;
	float t[SUMS][WAY::KEYS / 8][4] = {};

#pragma unroll
	for (int e = 0; e < WAY::DK / 16; e++) {
		uint32_t a[4], b[4];

		if (!WAY::HELD)
			query_get(a, q, e);
#pragma unroll
		for (int i = 0; WAY::HELD && i < 4; i++)
			a[i] = st.q[WAY::HELD ? e : 0][i];
#pragma unroll
		for (int n = 0; n < WAY::KEYS / 8; n += 2) {
			ldmatrix(b, k + block_at<WAY::KEYS>(8 * n + lane % 8 + lane / 16 * 8,
							    2 * e + lane / 8 % 2));
			mma(t[e % SUMS][n], a, b[0], b[1]);
			mma(t[e % SUMS][n + 1], a, b[2], b[3]);
		}
	}
#pragma unroll
	for (int n = 0; n < WAY::KEYS / 8; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] = SUMS > 1 ? t[0][n][i] + t[SUMS - 1][n][i] : t[0][n][i];
}

/* Exponentials relative to a maximum that may lag, as tile_softmax(). */
template <class WAY>
static __device__ __forceinline__ void mma_softmax(struct mma_state<WAY> &st,
						   float (&s)[WAY::KEYS / 8][4], float scale)
{
	float m[2], low[2];

#pragma unroll
	for (int r = 0; r < 2; r++) {
		m[r] = st.max[r];
#pragma unroll
		for (int n = 0; n < WAY::KEYS / 8; n++)
			m[r] = fmaxf(m[r], fmaxf(s[n][2 * r], s[n][2 * r + 1]));
		m[r] = row_max(m[r]);
	}
	if (__any_sync(~0u, (m[0] - st.max[0]) * scale > MAX_LAG ||
			    (m[1] - st.max[1]) * scale > MAX_LAG)) {
#pragma unroll
		for (int r = 0; r < 2; r++) {
			float fix = exp2_fast((st.max[r] - m[r]) * scale);

			st.max[r] = m[r];
			st.sum[r] *= fix;
#pragma unroll
			for (int n = 0; n < WAY::DV / 8; n++) {
				st.o[n][2 * r] *= fix;
				st.o[n][2 * r + 1] *= fix;
			}
		}
	}
	low[0] = st.max[0] * scale;
	low[1] = st.max[1] * scale;
#pragma unroll
	for (int n = 0; n < WAY::KEYS / 8; n++)
#pragma unroll
		for (int i = 0; i < 4; i++) {
			s[n][i] = exp2_fast(fmaf(s[n][i], scale, -low[i / 2]));
			st.sum[i / 2] += s[n][i];
		}
}

/* KEYS keys from @u. */
template <class WAY>
static __device__ __forceinline__ void mma_keys(struct mma_state<WAY> &st, const bf16 *q,
						const bf16 *k, const bf16 *v, float scale, int u,
						int pos)
{
	int lane = threadIdx.x % 32;
	float s[WAY::KEYS / 8][4];

	mma_scores<WAY>(s, st, q, k);
	if (u + WAY::KEYS - 1 > pos)
#pragma unroll
		for (int n = 0; n < WAY::KEYS / 8; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				if (u + acc_col(n, i) > pos)
					s[n][i] = -INFINITY;
	mma_softmax<WAY>(st, s, scale);
#pragma unroll
	for (int n = 0; n < WAY::KEYS / 8; n += 2) {
		uint32_t prob[4], b[4];

		acc_pack(prob, s[n], s[n + 1]);
#pragma unroll
		for (int e = 0; e < WAY::DV / 8; e += 2) {
			ldmatrix_t(b, v + block_at<WAY::KEYS>(8 * n + lane % 16, e + lane / 16));
			mma(st.o[e], prob, b[0], b[1]);
			mma(st.o[e + 1], prob, b[2], b[3]);
		}
	}
}

#endif
