// SPDX-License-Identifier: MIT
/*
 * Linear recurrences on mma.sync: which shapes these take, how a sequence is cut into segments,
 * and the states behind them.
 */
#include "segments.cuh"

enum {
	T_MIN = 64,			/* positions and elements of a key or value that pay */
	WIDTH_MIN = 32,
	SCALAR_VALUES = 64,		/* most of a value backward where there is one decay */
	SEG_MIN = 256,			/* positions worth a state of their own */
	SCAN_THREADS = 256,
	SCAN_DEEP = 8,			/* loads of a thread under way */
};

/* Has the device as much shared memory for a block? */
static bool has_room(size_t bytes)
{
	int device, most;

	CUDA(cudaGetDevice(&device));
	CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
	return bytes <= (size_t)most;
}

bool linattn_mma_takes(const struct linattn *a)
{
	bool vector = a->decay == LINATTN_VECTOR;
	bool narrow = !vector ||
		      ((uintptr_t)a->g % 16 == 0 && a->g_row % 4 == 0 && a->g_head % 4 == 0);

	return narrow && a->t >= T_MIN && a->dk >= WIDTH_MIN && a->dk <= 128 && a->dk % 8 == 0 &&
	       a->dv >= WIDTH_MIN && a->dv % 8 == 0 && row_wide(a->q, a->q_row) &&
	       a->q_head % 8 == 0 && row_wide(a->k, a->k_row) && a->k_head % 8 == 0 &&
	       row_wide(a->v, a->v_row) && a->v_head % 8 == 0 && row_wide(a->o, 0) &&
	       has_room(vector ? mma_vector_room(*a) : mma_scalar_room(*a));
}

bool linattn_mma_bwd_takes(const struct linattn *a, const struct linattn_grad *d)
{
	bool vector = a->decay == LINATTN_VECTOR;

	return linattn_mma_takes(a) && a->dv <= (vector ? 256 : SCALAR_VALUES) &&
	       row_wide(d->d_o, 0) && row_wide(d->dq, 0) && row_wide(d->dk, 0) &&
	       row_wide(d->dv, 0) && (uintptr_t)d->dg % 16 == 0 &&
	       has_room(vector ? mma_vector_bwd_room(*a) : mma_scalar_bwd_room(*a));
}

/* Segments of @p, as many as there are blocks wanted and there is room for. */
static void cut(struct mma_run *p, int slices, int blocks, size_t room)
{
	const struct linattn *a = &p->a;
	int heads = a->b * a->heads * slices, most = MIN(room, (size_t)div_up(a->t, SEG_MIN));
	int segs = blocks / heads, twice = 2 * blocks / heads;

	if (segs > 1 && 9 * twice > 20 * segs)	/* two rounds leave less of the device idle */
		segs = twice;
	segs = MAX(MIN(segs, most), 1);
	p->seg = ROUND_UP(div_up(a->t, segs), TILE);
	p->segs = div_up(a->t, p->seg);
}

struct mma_run mma_run_of(const struct linattn *a, int slices, int blocks)
{
	size_t heads = (size_t)a->b * a->heads, one = heads * a->dk * (a->dv + 1);
	struct mma_run p = {};

	p.a = *a;
	cut(&p, slices, blocks, PART_BYTES / (one * sizeof(float)) + 1);
	if (p.segs == 1)
		return p;
	p.state = (float *)workspace_part((p.segs - 1) * one * sizeof(float));
	p.decay = p.state + (p.segs - 1) * heads * a->dk * a->dv;
	return p;
}

/* The same backward, but for outputs and segments. */
static struct mma_run run_bwd(const struct any_run &r)
{
	struct mma_run p = {};

	p.a = r.a;
	p.d_o = r.d_o;
	p.dg = r.dg;
	p.dg_row = r.dg_row;
	p.dg_head = r.dg_head;
	return p;
}

/* A thread's place in a head's state: four elements in a row, or there is nothing for it. */
static __device__ __forceinline__ int scan_place(const struct mma_run &p)
{
	int e = (blockIdx.x * SCAN_THREADS + threadIdx.x) * 4;

	return e < p.a.dk * p.a.dv ? e : -1;
}

static __device__ __forceinline__ float4 scan_step(float decay, float4 x, float4 add)
{
	return { fmaf(decay, x.x, add.x), fmaf(decay, x.y, add.y), fmaf(decay, x.z, add.z),
		 fmaf(decay, x.w, add.w) };
}

static __global__ void __launch_bounds__(SCAN_THREADS) scan_kernel(struct mma_run p)
{
	int e = scan_place(p);
	float4 x = {};

	let_next();
	after_previous();
	if (e < 0)
		return;
	for (int n0 = 0; n0 < p.segs - 1; n0 += SCAN_DEEP) {
		float4 add[SCAN_DEEP];
		float d[SCAN_DEEP];

#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			int n = min(n0 + j, p.segs - 2);

			add[j] = *(const float4 *)(mma_state(p, blockIdx.y, n) + e);
			d[j] = mma_decay(p, blockIdx.y, n)[e / p.a.dv];
		}
#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			x = scan_step(d[j], x, add[j]);
			if (n0 + j < p.segs - 1)
				*(float4 *)(mma_state(p, blockIdx.y, n0 + j) + e) = x;
		}
	}
}

static __global__ void __launch_bounds__(SCAN_THREADS) scan_kept_kernel(struct mma_run p)
{
	int e = scan_place(p), at = blockIdx.y, row = p.a.decay == LINATTN_VECTOR ? e / p.a.dv : 0;
	bool back = blockIdx.z;
	int per = p.seg / TILE, last = p.segs - 1, steps = back && p.ds0 ? p.segs : last;
	float4 x = {};

	after_previous();
	let_next();	/* may count on inputs */
	if (e < 0)
		return;
	for (int i0 = 0; i0 < steps; i0 += SCAN_DEEP) {
		float4 add[SCAN_DEEP];
		float d[SCAN_DEEP];

#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			int i = min(i0 + j, steps - 1), n = back ? last - i : i;

			add[j] = *(const float4 *)(mma_added(p, back, at, n) + e);
			d[j] = mma_kept_decay(p, back, at, back ? n * per : (n + 1) * per - 1)[row];
		}
#pragma unroll
		for (int j = 0; j < SCAN_DEEP; j++) {
			int i = i0 + j, to = back ? (last - i) * per - 1 : (i + 1) * per;

			x = scan_step(d[j], x, add[j]);
			if (i < last)
				*(uint2 *)(mma_kept(p, back, at, to) + e) =
					make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
			else if (i < steps)
				*(float4 *)(p.ds0 + (size_t)at * p.a.dk * p.a.dv + e) = x;
		}
	}
}

static dim3 scan_grid(const struct linattn &a, int ways)
{
	return dim3(div_up(a.dk * a.dv, 4 * SCAN_THREADS), a.b * a.heads, ways);
}

void mma_scan(const struct mma_run &p)
{
	if (p.segs > 2)
		launch(scan_kernel, scan_grid(p.a, 1), SCAN_THREADS, 0, p);
}

void mma_scan_kept(const struct mma_run &p)
{
	if (p.segs > 1)
		launch(scan_kept_kernel, scan_grid(p.a, 2), SCAN_THREADS, 0, p);
}

/* What segments add, and decays of chunks, in the workspace; scratch is full of states kept. */
static void segments(struct mma_run *p, const struct any_run &r)
{
	bool vector = r.a.decay == LINATTN_VECTOR;
	size_t heads = (size_t)p->a.b * p->a.heads, one = heads * p->a.dk * p->a.dv;
	size_t decays = 2 * heads * div_up(p->a.t, TILE) * (vector ? p->a.dk : 1);
	size_t room = PART_BYTES / sizeof(float);
	int blocks = vector ? VECTOR_KEEP_BLOCKS : SCALAR_KEEP_BLOCKS;

	if (vector && p->a.dv > 128)
		blocks = VECTOR_BLOCKS;		/* a block has all of a state */
	cut(p, 2, blocks, (room - MIN(room, decays)) / (2 * one) + 1);
	p->kept = (bf16 *)r.kept;
	if (p->segs == 1)
		return;
	one *= p->segs - 1;
	p->state = (float *)workspace_part((2 * one + decays) * sizeof(float));
	p->dstate = p->state + one;
	p->decay = p->dstate + one;
}

void linattn_mma_bwd(const struct any_run &r, const struct any_out &dq, const struct any_out &dk,
		     const struct any_out &dv, const struct linattn_grad *d)
{
	struct mma_run p = run_bwd(r);

	p.dq = dq;
	p.dk = dk;
	p.dv = dv;
	p.ds1 = d->ds1;
	p.ds0 = d->ds0;
	segments(&p, r);
	if (p.a.decay == LINATTN_VECTOR)
		mma_vector_bwd(p);
	else
		mma_scalar_bwd(p);
}
