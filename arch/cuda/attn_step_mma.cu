// SPDX-License-Identifier: MIT
/*
 * Decode attention on tensor cores, where many query heads share keys and values: latent
 * attention, grouped heads. A unit's heads are the 16 rows of mma.sync, so that the cache is
 * read once for all of them. A warp takes KEYS keys at a time from a ring of its own in
 * shared memory and keeps an online softmax of its own: no barrier before the end. Warps,
 * then blocks of the cluster, are put together in one order; each block makes the sums of
 * its share of the columns. Which warp takes a key depends on the key and on t_max alone.
 *
 * Latents are keys and values at once: where v stands in the rows of k it is copied once.
 */
#include "attn_mma.cuh"
#include "attn_step.cuh"

enum {
	HEADS = 16,		/* rows of a product; what is behind a unit's last head is 0 */
	KEYS = 16,
	CHUNK = 8,		/* elements of 16 bytes */
	TURN = 32 / CHUNK,	/* rows that a warp copies at a time, 8 lanes each */
	VALUES_MAX = 256,	/* columns of a block: more are blocks of their own */
};

/* struct step_run with the layout in shared memory, in elements. */
struct mma_run {
	struct step_run s;
	int k_pitch, v_pitch;	/* rows of keys, of values: odd in pieces of 16 bytes */
	int ring;		/* a warp's */
	int v_at;		/* of the values of a stage; 0: those of the keys */
};

/* A part of a softmax: of a warp, then of a block's share of columns. */
template <int COLS> struct mma_part {
	float max[HEADS], sum[HEADS], o[HEADS][COLS + 4];	/* + 4: banks */
};

/* What follows the rings, in their place. */
template <int DV> struct mma_merge {
	struct mma_part<DV> warp[STEP_WARPS];
	float max[CLUSTER_MAX][HEADS], sum[CLUSTER_MAX][HEADS];
	float o[HEADS * DV];	/* [rank][heads][columns of the share] */
};

/* Rows from @u on to shared memory: @width elements, rounded up to 16 and 0 there. */
template <int W>
static __device__ __forceinline__ void rows_fetch(bf16 *to, int pitch, const bf16 *from, long row,
						  int width, int u, int pos)
{
	int lane = threadIdx.x % 32, r0 = lane / CHUNK, c0 = lane % CHUNK * CHUNK;

#pragma unroll
	for (int r = r0; r < KEYS; r += TURN) {
		bool inside = u + r <= pos;
		const bf16 *src = from + (inside ? (u + r) * row : 0);

#pragma unroll
		for (int c = c0; c < W; c += 64)
			if (c < ROUND_UP(width, 16))
				copy16(to + r * pitch + c, src + (c < width ? c : 0),
				       inside && c < width);
	}
}

template <int DK, int DV, bool SAME>
static __device__ __forceinline__ void stage_fetch(bf16 *to, const struct mma_run &p,
						   const struct step_at &w, int turn)
{
	const struct attn_step &a = p.s.a;
	int u = ((turn * w.ranks + w.rank) * STEP_WARPS + threadIdx.x / 32) * KEYS;

	rows_fetch<DK>(to, p.k_pitch, w.k, a.k_row, a.dk, u, w.pos);
	if (!SAME)
		rows_fetch<DV>(to + p.v_at, p.v_pitch, w.v + w.e0, a.v_row, min(a.dv - w.e0, DV), u,
			       w.pos);
}

/* Queries of the unit's heads: [HEADS][pitch], 0 behind the last head and column. */
static __device__ __forceinline__ void queries_put(bf16 *to, const struct mma_run &p,
						   const struct step_at &w)
{
	const struct attn_step &a = p.s.a;
	int pieces = p.k_pitch / CHUNK;

	for (int n = threadIdx.x; n < HEADS * pieces; n += STEP_THREADS) {
		int h = n / pieces, e = n % pieces * CHUNK;
		const bf16 *q = bf16_of(a.q) + w.i * a.q_row + (w.h0 + h) * a.dk + e;

		*(uint4 *)(to + h * p.k_pitch + e) =
			h < w.heads && e < a.dk ? *(const uint4 *)q : uint4{};
	}
}

/* A warp's softmax. */
template <int DV> struct mma_state {
	float o[DV / 8][4], max[2], sum[2];
};

/* Scores of KEYS keys, two sums of each so that products need not wait for each other. */
template <int DK>
static __device__ __forceinline__ void mma_scores(float (&s)[2][4], const bf16 *q, const bf16 *k,
						  int pitch, int width)
{
	int lane = threadIdx.x % 32;
	float t[2][4] = {};

#pragma unroll
	for (int e = 0; e < DK; e += 16) {
		uint32_t a[4], b[4];

		if (e >= width)
			break;
		ldmatrix(a, q + lane % 16 * pitch + e + lane / 16 * 8);
		ldmatrix(b, k + (lane % 8 + lane / 16 * 8) * pitch + e + lane / 8 % 2 * 8);
		mma(e / 16 % 2 ? t[0] : s[0], a, b[0], b[1]);
		mma(e / 16 % 2 ? t[1] : s[1], a, b[2], b[3]);
	}
#pragma unroll
	for (int n = 0; n < 2; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			s[n][i] += t[n][i];
}

/* Exponentials relative to a maximum that may lag, as tile_softmax(). */
template <int DV>
static __device__ __forceinline__ void mma_softmax(struct mma_state<DV> &st, uint32_t (&prob)[4],
						   float (&s)[2][4], float scale)
{
	float m[2];

#pragma unroll
	for (int r = 0; r < 2; r++) {
		m[r] = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
		m[r] = fmaxf(st.max[r], row_max(m[r]));
	}
	if (__any_sync(~0u, (m[0] - st.max[0]) * scale > MAX_LAG ||
			    (m[1] - st.max[1]) * scale > MAX_LAG)) {
#pragma unroll
		for (int r = 0; r < 2; r++) {
			float fix = exp2_fast((st.max[r] - m[r]) * scale);

			st.max[r] = m[r];
			st.sum[r] *= fix;
#pragma unroll
			for (int n = 0; n < DV / 8; n++) {
				st.o[n][2 * r] *= fix;
				st.o[n][2 * r + 1] *= fix;
			}
		}
	}
#pragma unroll
	for (int n = 0; n < 2; n++)
#pragma unroll
		for (int i = 0; i < 4; i++) {
			s[n][i] = exp2_fast((s[n][i] - st.max[i / 2]) * scale);
			st.sum[i / 2] += s[n][i];
		}
	acc_pack(prob, s[0], s[1]);
}

/* KEYS keys from @u. */
template <int DK, int DV>
static __device__ __forceinline__ void mma_keys(struct mma_state<DV> &st, const struct mma_run &p,
						const struct step_at &w, const bf16 *q,
						const bf16 *k, const bf16 *v, int pitch, int u)
{
	int lane = threadIdx.x % 32, width = min(p.s.a.dv - w.e0, DV);
	float s[2][4] = {};
	uint32_t prob[4];

	mma_scores<DK>(s, q, k, p.k_pitch, p.s.a.dk);
	if (u + KEYS - 1 > w.pos)
#pragma unroll
		for (int n = 0; n < 2; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				if (u + acc_col(n, i) > w.pos)
					s[n][i] = -INFINITY;
	mma_softmax<DV>(st, prob, s, p.s.scale * LOG2E);
#pragma unroll
	for (int e = 0; e < DV; e += 16) {
		uint32_t b[4];

		if (e >= width)
			break;
		ldmatrix_t(b, v + lane % 16 * pitch + e + lane / 16 * 8);
		mma(st.o[e / 8], prob, b[0], b[1]);
		mma(st.o[e / 8 + 1], prob, b[2], b[3]);
	}
}

/* 2^((x - max) scale), 0 for a part without keys */
static __device__ __forceinline__ float mma_fix(float x, float max, float scale)
{
	return x == -INFINITY ? 0 : exp2_fast((x - max) * scale);
}

template <int DV>
static __device__ __forceinline__ void part_put(struct mma_part<DV> *part, struct mma_state<DV> &st)
{
	int row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;

#pragma unroll
	for (int r = 0; r < 2; r++) {
		st.sum[r] = row_sum(st.sum[r]);
		if (!col) {
			part->max[row + 8 * r] = st.max[r];
			part->sum[row + 8 * r] = st.sum[r];
		}
#pragma unroll
		for (int n = 0; n < DV / 8; n++)
			*(float2 *)&part->o[row + 8 * r][8 * n + col] =
				make_float2(st.o[n][2 * r], st.o[n][2 * r + 1]);
	}
}

/* The block's warps in order; each column to the block that has it in its share. */
template <int DV>
static __device__ __forceinline__ void merge_warps(struct mma_merge<DV> *m, const struct step_at &w,
						   float scale)
{
	int share = DV / w.ranks;

	for (int n = threadIdx.x; n < HEADS * DV; n += STEP_THREADS) {
		int h = n / DV, e = n % DV;
		float max = -INFINITY, sum = 0, o = 0;

#pragma unroll
		for (int k = 0; k < STEP_WARPS; k++)
			max = fmaxf(max, m->warp[k].max[h]);
#pragma unroll
		for (int k = 0; k < STEP_WARPS; k++) {
			float fix = mma_fix(m->warp[k].max[h], max, scale);

			o += m->warp[k].o[h][e] * fix;
			sum += m->warp[k].sum[h] * fix;
		}
		*cluster_peer(&m->o[(w.rank * HEADS + h) * share + e % share], e / share) = o;
		if (e < w.ranks) {
			*cluster_peer(&m->max[w.rank][h], e) = max;
			*cluster_peer(&m->sum[w.rank][h], e) = sum;
		}
	}
}

/* The blocks in order: this one's share of the columns. */
template <int DV>
static __device__ __forceinline__ void merge_blocks(const struct mma_merge<DV> *m,
						    const struct attn_step &a,
						    const struct step_at &w, float scale)
{
	int share = DV / w.ranks;

	for (int n = threadIdx.x; n < w.heads * share; n += STEP_THREADS) {
		int h = n / share, e = w.e0 + w.rank * share + n % share;
		long row = (long)w.i * a.heads + w.h0 + h;
		float max = -INFINITY, sum = 0, o = 0;

		for (int k = 0; k < w.ranks; k++)
			max = fmaxf(max, m->max[k][h]);
		for (int k = 0; k < w.ranks; k++) {
			float fix = mma_fix(m->max[k][h], max, scale);

			o += m->o[(k * HEADS + h) * share + n % share] * fix;
			sum += m->sum[k][h] * fix;
		}
		if (e < a.dv)
			put(bf16_of(a.o) + row * a.dv + e, o * (a.gamma ? a.gamma[row] : 1) / sum);
	}
}

/* Where a block stands, as step_place(). */
template <int DV> static __device__ struct step_at mma_place(const struct step_run &p)
{
	const struct attn_step &a = p.a;
	struct step_at w;
	int in_unit = blockIdx.y / p.units % p.chunks * HEADS;

	w.rank = blockIdx.x;
	w.ranks = gridDim.x;
	w.i = blockIdx.z;
	w.unit = blockIdx.y % p.units;
	w.h0 = w.unit * p.per + in_unit;
	w.heads = min(HEADS, p.per - in_unit);
	w.e0 = blockIdx.y / (p.units * p.chunks) * DV;
	w.pos = a.pos[w.i];
	w.k = bf16_of(a.k) + w.i * a.cache_stride + w.h0 / a.group * a.k_head;
	w.v = bf16_of(a.v) + w.i * a.cache_stride + w.h0 / a.group * a.v_head;
	return w;
}

template <int DK, int DV, int STAGES_, bool SAME>
static __global__ void __launch_bounds__(STEP_THREADS, 2) step_mma_kernel(struct mma_run p)
{
	extern __shared__ __align__(128) char mem[];
	bf16 *q = (bf16 *)mem, *ring = q + HEADS * p.k_pitch + threadIdx.x / 32 * p.ring;
	auto *m = (struct mma_merge<DV> *)(q + HEADS * p.k_pitch);
	int stage = p.ring / STAGES_, tiles, turns, first = blockIdx.x * STEP_WARPS + threadIdx.x / 32;
	float scale = p.s.scale * LOG2E;
	struct mma_state<DV> st = {};
	struct step_at w;

	let_next();
	after_previous();
	w = mma_place<DV>(p.s);
	tiles = w.pos / KEYS + 1;
	turns = first < tiles ? (tiles - 1 - first) / (w.ranks * STEP_WARPS) + 1 : 0;
	for (int n = 0; n < STAGES_ - 1; n++) {
		if (n < turns)
			stage_fetch<DK, DV, SAME>(ring + n * stage, p, w, n);
		copy_commit();
	}
	queries_put(q, p, w);
	st.max[0] = st.max[1] = -INFINITY;
	__syncthreads();
	for (int n = 0; n < turns; n++) {
		const bf16 *k = ring + n % STAGES_ * stage;
		int ahead = n + STAGES_ - 1;

		__syncwarp();	/* no lane reads the stage that is filled again */
		if (ahead < turns)
			stage_fetch<DK, DV, SAME>(ring + ahead % STAGES_ * stage, p, w, ahead);
		copy_commit();
		copy_wait<STAGES_ - 1>();
		__syncwarp();	/* the stage is there for all lanes */
		mma_keys<DK, DV>(st, p, w, q, k, SAME ? k + w.e0 : k + p.v_at,
				 SAME ? p.k_pitch : p.v_pitch,
				 ((n * w.ranks + w.rank) * STEP_WARPS + (int)threadIdx.x / 32) * KEYS);
	}
	cluster_arrive();
	cluster_wait();	/* the rings of all blocks may be written over */
	part_put<DV>(&m->warp[threadIdx.x / 32], st);
	__syncthreads();
	merge_warps<DV>(m, w, scale);
	cluster_arrive();
	cluster_wait();
	merge_blocks<DV>(m, p.s.a, w, scale);
}

/* ---- which kernel takes a shape ------------------------------------------------------ */

/* Bytes of a block with so many stages. */
template <int DV> static int mma_bytes(const struct mma_run &p, int stages)
{
	int rows = HEADS * p.k_pitch + STEP_WARPS * stages * KEYS * (p.k_pitch + p.v_pitch);

	return MAX(rows * (int)sizeof(bf16),
		   HEADS * p.k_pitch * (int)sizeof(bf16) + (int)sizeof(struct mma_merge<DV>));
}

template <int DK, int DV, int STAGES_, bool SAME> static void mma_launch(struct mma_run p)
{
	const struct attn_step &a = p.s.a;
	auto *kernel = step_mma_kernel<DK, DV, STAGES_, SAME>;
	int bytes = mma_bytes<DV>(p, STAGES_);
	const dim3 grid(step_split(a), p.s.units * p.s.chunks * div_up(a.dv, DV), a.b);

	p.ring = STAGES_ * KEYS * (p.k_pitch + p.v_pitch);
	shared_room(kernel, bytes);
	launch_clusters(kernel, grid, STEP_THREADS, bytes, p);
}

/* Three stages where two blocks then fit a multiprocessor. */
template <int DK, int DV, bool SAME> static void mma_stages(const struct mma_run &p)
{
	if (2 * (mma_bytes<DV>(p, 3) + (1 << 10)) <= (int)cuda_shared_max())
		mma_launch<DK, DV, 3, SAME>(p);
	else
		mma_launch<DK, DV, 2, SAME>(p);
}

template <int DK, int DV> static void mma_widths(struct mma_run p)
{
	const struct attn_step &a = p.s.a;
	bool same = a.v == a.k && a.v_row == a.k_row && a.dv <= a.dk;

	p.k_pitch = (div_up(a.dk, 16) * 2 | 1) * CHUNK;
	p.v_pitch = same ? 0 : (div_up(MIN(a.dv, DV), 16) * 2 | 1) * CHUNK;
	p.v_at = KEYS * p.k_pitch;
	if (same)
		mma_stages<DK, DV, true>(p);
	else
		mma_stages<DK, DV, false>(p);
}

bool attn_step_mma(const struct step_run *s)
{
	const struct attn_step &a = s->a;
	uintptr_t at = (uintptr_t)a.k | (uintptr_t)a.v | (uintptr_t)a.q;
	long strides = a.k_row | a.k_head | a.v_row | a.v_head | a.cache_stride | a.q_row | a.dk | a.dv;
	struct mma_run p = { *s };
	int dv = MIN(a.dv, VALUES_MAX);

	if (s->per < 4 || s->ra != 0 || a.route || s->scale <= 0 || at % 16 || strides % 8)
		return false;
	p.s.chunks = div_up(s->per, HEADS);
	if (a.dk <= 128 && dv <= 64)
		mma_widths<128, 64>(p);
	else if (a.dk <= 192 && dv <= 128)
		mma_widths<192, 128>(p);
	else if (a.dk <= 320)
		mma_widths<320, 256>(p);
	else if (a.dk <= 640)
		mma_widths<640, 256>(p);
	else
		return false;
	return true;
}
