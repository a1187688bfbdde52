// SPDX-License-Identifier: MIT
/*
 * Backward of a norm in one pass over the rows. A row belongs to a team of warps, WIDE
 * columns to a thread, which has the same columns of every row: what rows give to scale and
 * shift adds up in registers. The next row comes through shared memory while a row is in hand;
 * a thread reads what it copied itself.
 */
#include "norm.cuh"

enum {
	WARPS = 24,		/* of a block: 80 registers a thread */
	THREADS = 32 * WARPS,
	TEAM_WARPS_MAX = 8,
	STAGES = 2,		/* rows of a team in shared memory: more are slower */
	CHUNKS = 128,		/* parts of the sums, at most: a block a multiprocessor */
};

/* A row of each team: each thread's place of the three that are read. */
struct stage {
	uint4 x[THREADS], g[THREADS], res[THREADS];
};

/* What a thread needs of a row beside its columns. */
struct row_stats {
	float mean, r;
};

/* Asked for a row ahead: nothing is computed here that would wait for it. */
static __device__ __forceinline__ struct row_stats stats_of(const struct norm &a, long i)
{
	return { a.rms || i >= a.n ? 0 : a.mean[i], i < a.n ? a.rstd[i] : 0 };
}

static __device__ __forceinline__ void widen(float (&f)[WIDE], const uint4 &x)
{
	row_load<WIDE>(f, (const bf16 *)&x);
}

/* Starts copying columns [j, j + WIDE) of row @i, if it is there; a group of copies either way. */
static __device__ __forceinline__ void fetch(struct stage &to, const struct norm_bwd &n, long i,
					     int j, int me)
{
	long at = i * n.a.c + j;

	if (i < n.a.n && j < n.a.c) {
		copy16(&to.x[me], bf16_of(n.a.x) + at);
		copy16(&to.g[me], n.dxn + at);
		if (n.dres)
			copy16(&to.res[me], n.dres + at);
	}
	copy_commit();
}

/* Two sums over the team, to all of it; @part: [WARPS], not that of the row before */
static __device__ __forceinline__ float2 team_sums(float x, float y, float2 *part)
{
	int warps = blockDim.x / 32;
	float2 sum = { warp_sum(x), warp_sum(y) };

	if (warps == 1)
		return sum;
	part += threadIdx.y * warps;
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = sum;
	asm volatile("bar.sync %0, %1;" :: "r"(threadIdx.y + 1), "r"(blockDim.x) : "memory");
	sum = { 0, 0 };
	for (int i = 0; i < warps; i++) {
		sum.x += part[i].x;
		sum.y += part[i].y;
	}
	return sum;
}

/* dx of row @i, and what it adds to dw and db */
static __device__ __forceinline__ void row_bwd(float (&dw)[WIDE], float (&db)[WIDE],
					       const float (&w)[WIDE], const struct stage &in,
					       const struct row_stats &row, const struct norm_bwd &n,
					       long i, int j, int me, float2 *part)
{
	float x[WIDE], g[WIDE], res[WIDE] = {}, sum = 0, dot = 0, slope, level;
	float shift = -row.mean * row.r;	/* xhat = r x + shift */
	float2 sums;

	widen(x, in.x[me]);
	widen(g, in.g[me]);
#pragma unroll
	for (int e = 0; e < WIDE; e++) {
		float xhat = fmaf(x[e], row.r, shift);

		db[e] += g[e];
		dw[e] = fmaf(g[e], xhat, dw[e]);
		g[e] *= w[e];
		sum += g[e];
		dot = fmaf(g[e], xhat, dot);
	}
	sums = team_sums(sum, dot, part);
	if (j >= n.a.c)
		return;
	/* r (g - sum - xhat dot), in x */
	sum = n.a.rms ? 0 : sums.x / n.a.c;
	dot = sums.y / n.a.c;
	slope = -row.r * row.r * dot;
	level = -row.r * (sum + shift * dot);
	if (n.dres)
		widen(res, in.res[me]);
#pragma unroll
	for (int e = 0; e < WIDE; e++)
		res[e] += fmaf(g[e], row.r, fmaf(x[e], slope, level));
	row_store<WIDE>(n.dx + i * n.a.c + j, res);
}

/* part[c] = the teams' sums, one below the other in @all [teams][c] */
static __device__ __forceinline__ void put_sums(float *part, float *all, const float (&own)[WIDE],
						int c, int j, int me)
{
	__syncthreads();
	if (j < c)
		row_store<WIDE>(all + threadIdx.y * c + j, own);
	__syncthreads();
	for (int k = me; k < c; k += blockDim.x * blockDim.y) {
		float sum = all[k];

		for (int team = 1; team < blockDim.y; team++)
			sum += all[team * c + k];
		part[k] = sum;
	}
}

/*
 * blockDim: (threads of a row, teams). Rows go round the teams of all blocks: what is under way
 * lies side by side. A thread without columns has zeros.
 */
static __global__ void __launch_bounds__(THREADS, 1) norm_bwd_kernel(struct norm_bwd n, float *part)
{
	extern __shared__ __align__(16) char mem[];
	struct stage *in = (struct stage *)mem;
	__shared__ float2 sums[2][WARPS];
	int c = n.a.c, j = threadIdx.x * WIDE, me = threadIdx.y * blockDim.x + threadIdx.x, turn = 0;
	long step = gridDim.x * blockDim.y, i = blockIdx.x + threadIdx.y * gridDim.x;
	float w[WIDE] = {}, dw[WIDE] = {}, db[WIDE] = {};
	struct row_stats row = stats_of(n.a, i);

	let_next();
	if (j < c)
		row_load<WIDE>(w, n.a.w + j);
	else
		for (int s = 0; s < STAGES; s++)
			in[s].x[me] = in[s].g[me] = make_uint4(0, 0, 0, 0);
	fetch(in[0], n, i, j, me);
	for (; i < n.a.n; i += step, turn ^= 1) {
		struct row_stats next = stats_of(n.a, i + step);

		fetch(in[turn ^ 1], n, i + step, j, me);
		copy_wait<1>();
		row_bwd(dw, db, w, in[turn], row, n, i, j, me, sums[turn]);
		row = next;
	}
	copy_wait<0>();
	part += 2l * blockIdx.x * c;
	put_sums(part, (float *)mem, dw, c, j, me);
	put_sums(part + c, (float *)mem, db, c, j, me);
}

bool norm_bwd_team(const struct norm_bwd *n)
{
	int warps = div_up(n->a.c, 32 * WIDE), teams = WARPS / MAX(warps, 2);
	int chunks = MIN(div_up(n->a.n, teams), (int)CHUNKS), bytes = STAGES * sizeof(struct stage);
	float *part;

	if (warps > TEAM_WARPS_MAX)
		return false;
	part = (float *)workspace_part((size_t)chunks * 2 * n->a.c * sizeof(*part));
	shared_room(norm_bwd_kernel, bytes);
	norm_bwd_kernel<<<chunks, dim3(32 * warps, teams), bytes, cuda_stream()>>>(*n, part);
	CUDA_LAUNCHED();
	sum_parts(sum_to<2>{ { n->dw, n->a.rms ? NULL : n->db } }, part, chunks, n->a.c);
	return true;
}
