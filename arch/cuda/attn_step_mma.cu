// SPDX-License-Identifier: MIT
/*
 * Decode attention on tensor cores, where many query heads share keys and values: latent
 * attention, grouped heads. A unit's heads are the 16 rows of mma.sync, so that the cache is
 * read once for all of them. A warp takes KEYS keys at a time from a ring of its own in
 * shared memory and keeps an online softmax of its own: no barrier before the end. Warps,
 * then blocks of the cluster, are put together in one order; each block makes the sums of
 * its share of the columns. Which warp takes a key depends on the key and on t_max alone.
 */
#include "attn_step_mma.cuh"

/* 2^((x - max) scale), 0 for a part without keys */
static __device__ __forceinline__ float mma_fix(float x, float max, float scale)
{
	return x == -INFINITY ? 0 : exp2_fast((x - max) * scale);
}

template <class WAY>
static __device__ __forceinline__ void part_put(struct mma_part<WAY::DV> *part,
						struct mma_state<WAY> &st)
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
		for (int n = 0; n < WAY::DV / 8; n++)
			*(float2 *)&part->o[row + 8 * r][8 * n + col] =
				make_float2(st.o[n][2 * r], st.o[n][2 * r + 1]);
	}
}

static __device__ __forceinline__ void add_scaled(float4 &sum, const float *x, float f)
{
	const float4 v = *(const float4 *)x;

	sum.x = fmaf(v.x, f, sum.x);
	sum.y = fmaf(v.y, f, sum.y);
	sum.z = fmaf(v.z, f, sum.z);
	sum.w = fmaf(v.w, f, sum.w);
}

/* The block's warps in order; each column to the block that has it in its share. */
template <class WAY>
static __device__ __forceinline__ void merge_warps(struct mma_merge<WAY::DV, WAY::WARPS> *m,
						   const struct step_at &w, float scale)
{
	constexpr int DV4 = WAY::DV / 4;
	int share = WAY::DV / w.ranks;

	for (int n = threadIdx.x; n < HEADS * DV4; n += WAY::THREADS) {
		int h = n / DV4, e = n % DV4 * 4;
		float max = -INFINITY, sum = 0;
		float4 o = {};

#pragma unroll
		for (int k = 0; k < WAY::WARPS; k++)
			max = fmaxf(max, m->warp[k].max[h]);
#pragma unroll
		for (int k = 0; k < WAY::WARPS; k++) {
			float fix = mma_fix(m->warp[k].max[h], max, scale);

			add_scaled(o, &m->warp[k].o[h][e], fix);
			sum += m->warp[k].sum[h] * fix;
		}
		*cluster_peer((float4 *)&m->o[(w.rank * HEADS + h) * share + e % share],
			      e / share) = o;
		if (e / 4 < w.ranks) {
			*cluster_peer(&m->max[w.rank][h], e / 4) = max;
			*cluster_peer(&m->sum[w.rank][h], e / 4) = sum;
		}
	}
}

/* The blocks in order: this one's share of the columns. */
template <class WAY>
static __device__ __forceinline__ void merge_blocks(const struct mma_merge<WAY::DV, WAY::WARPS> *m,
						    const struct attn_step &a,
						    const struct step_at &w, float scale)
{
	int share = WAY::DV / w.ranks, share4 = share / 4;

	for (int n = threadIdx.x; n < w.heads * share4; n += WAY::THREADS) {
		int h = n / share4, e = n % share4 * 4, col = w.e0 + w.rank * share + e;
		long row = (long)w.i * a.heads + w.h0 + h;
		float max = -INFINITY, sum = 0, f;
		float4 o = {};

#pragma unroll
		for (int k = 0; k < CLUSTER_MAX; k++)
			if (k < w.ranks)
				max = fmaxf(max, m->max[k][h]);
#pragma unroll
		for (int k = 0; k < CLUSTER_MAX; k++)
			if (k < w.ranks) {
				float fix = mma_fix(m->max[k][h], max, scale);

				add_scaled(o, &m->o[(k * HEADS + h) * share + e], fix);
				sum += m->sum[k][h] * fix;
			}
		f = (a.gamma ? a.gamma[row] : 1) / sum;
		if (col < a.dv)
			*(uint2 *)(bf16_of(a.o) + row * a.dv + col) = {
				pack_bf16(o.x * f, o.y * f), pack_bf16(o.z * f, o.w * f) };
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

/* Until stage @n of this warp is there for all its lanes. */
template <class WAY> static __device__ __forceinline__ void stage_wait(uint64_t *full, int n)
{
	if constexpr (WAY::ENGINE)
		mbar_wait(full + n % WAY::STAGES, n / WAY::STAGES % 2);
	else
		copy_wait<WAY::STAGES - 1>();
	__syncwarp();
}

template <class WAY, int BLOCKS> static __global__ void
__launch_bounds__(WAY::THREADS, BLOCKS) step_mma_kernel(const __grid_constant__ struct mma_run p)
{
	constexpr int STAGES_ = WAY::STAGES, KEYS = WAY::KEYS;
	extern __shared__ __align__(1024) char mem[];
	auto *m = (typename WAY::smem *)mem;
	int warp = threadIdx.x / 32, first = blockIdx.x * WAY::WARPS + warp;
	int hop = gridDim.x * WAY::WARPS, tiles, turns;
	bf16 (*ring)[WAY::STAGE] = m->ring[warp];
	uint64_t *full = m->full[warp];
	float scale = p.s.scale * LOG2E;
	struct mma_state<WAY> st = {};
	struct step_at w;

	let_next();
	if constexpr (WAY::ENGINE) {
		if (threadIdx.x % 32 == 0) {
			for (int n = 0; n < STAGES_; n++)
				mbar_init(full + n, 1);
			mbar_init_fence();
		}
		__syncwarp();
	}
	after_previous();
	w = mma_place<WAY::DV>(p.s);
	tiles = w.pos / KEYS + 1;
	turns = first < tiles ? (tiles - 1 - first) / hop + 1 : 0;
	for (int n = 0; n < STAGES_ - 1; n++) {
		if (n < turns)
			stage_fetch<WAY>(ring[n], full + n, p, w, (first + n * hop) * KEYS);
		copy_commit();
	}
	queries_put<WAY>(m->q, p, w);
	st.max[0] = st.max[1] = -INFINITY;
	__syncthreads();
#pragma unroll
	for (int e = 0; WAY::HELD && e < WAY::DK / 16; e++)
		query_get(st.q[WAY::HELD ? e : 0], m->q, e);
	for (int n = 0; n < turns; n++) {
		bf16 *k = ring[n % STAGES_], *v = WAY::SAME ? k + KEYS * w.e0 : k + KEYS * WAY::DK;
		int ahead = n + STAGES_ - 1, u = (first + n * hop) * KEYS;

		__syncwarp();	/* no lane reads the stage that is filled again */
		if (ahead < turns)
			stage_fetch<WAY>(ring[ahead % STAGES_], full + ahead % STAGES_, p, w,
					 (first + ahead * hop) * KEYS);
		copy_commit();
		stage_wait<WAY>(full, n);
		if (WAY::ENGINE && u + KEYS - 1 > w.pos)
			values_end<WAY>(v, u, w.pos);
		mma_keys<WAY>(st, m->q, k, v, scale, u, w.pos);
	}
	cluster_arrive();
	cluster_wait();	/* the rings of all blocks may be written over */
	part_put<WAY>(&m->merge.warp[warp], st);
	__syncthreads();
	merge_warps<WAY>(&m->merge, w, scale);
	cluster_arrive();
	cluster_wait();
	merge_blocks<WAY>(&m->merge, p.s.a, w, scale);
}

/* ---- which kernel takes a shape ------------------------------------------------------ */

enum { WARPS_MOST = 8 };	/* of a multiprocessor: registers hold queries and sums */

/* Blocks of a cluster: of the length of a cache, and no more than run at once. */
static int mma_split(const struct attn_step &a, int others, int warps)
{
	int split = step_split(a), room = cuda_multiprocessors() * (WARPS_MOST / warps);

	while (split > 1 && split * others > room)
		split /= 2;
	return split;
}

template <class WAY> static bool mma_launch(struct mma_run p)
{
	constexpr int BLOCKS = WAY::DK > VALUES_MAX ? 1 : WARPS_MOST / WAY::WARPS;
	const struct attn_step &a = p.s.a;
	auto *kernel = step_mma_kernel<WAY, BLOCKS>;
	int units = p.s.units, bytes = sizeof(typename WAY::smem);
	int side = units * p.s.chunks * div_up(a.dv, WAY::DV);
	const dim3 grid(mma_split(a, side * a.b, WAY::WARPS), side, a.b);

	if (bytes > (int)cuda_shared_max())
		return false;
	if (cuda_capability() >= 90) {
		p.k = head_map_of(bf16_of(a.k), a.k_row, a.k_head, a.cache_stride, a.dk, a.t_max,
				  a.k_head ? units : 1, a.b, WAY::KEYS);
		p.v = head_map_of(bf16_of(a.v), a.v_row, a.v_head, a.cache_stride, a.dv, a.t_max,
				  a.v_head ? units : 1, a.b, WAY::KEYS);
	}
	shared_room(kernel, bytes);
	launch_clusters(kernel, grid, WAY::THREADS, bytes, p);
	return true;
}

/* Where keys of all the multiprocessor's warps and as many stages do not fit, fewer. */
template <int DK, int DV> static bool mma_widths(const struct mma_run &p)
{
	constexpr bool ROOM = DK <= 256, ROOM_APART = DK + DV <= 256;
	const struct attn_step &a = p.s.a;

	if (a.v == a.k && a.v_row == a.k_row && a.v_head == a.k_head && a.dv <= a.dk)
		return mma_launch<mma_way<DK, DV, ROOM ? WARPS_MOST : 4, ROOM ? 3 : 2, 16, true>>(p);
	return mma_launch<mma_way<DK, DV, ROOM_APART ? WARPS_MOST : 4, ROOM_APART ? 3 : 2, 16,
				  false>>(p);
}

bool attn_step_mma(const struct step_run *s)
{
	const struct attn_step &a = s->a;
	uintptr_t at = (uintptr_t)a.k | (uintptr_t)a.v | (uintptr_t)a.q | (uintptr_t)a.o;
	long strides = a.k_row | a.k_head | a.v_row | a.v_head | a.cache_stride | a.q_row | a.dk |
		a.dv;
	struct mma_run p = { *s };
	int dv = MIN(a.dv, VALUES_MAX);

	if (s->per < 4 || s->ra != 0 || a.route || s->scale <= 0 || at % 16 || strides % 8)
		return false;
	p.s.chunks = div_up(s->per, HEADS);
	if (a.dk <= 64 && dv <= 64)
		return mma_widths<64, 64>(p);
	if (a.dk <= 128 && dv <= 128)
		return mma_widths<128, 128>(p);
	if (a.dk <= 256)
		return mma_widths<256, 256>(p);
	return a.dk <= 576 && mma_widths<576, 256>(p);
}
