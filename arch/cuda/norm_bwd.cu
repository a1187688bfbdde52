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

static_assert(THREADS * WIDE * 2 * sizeof(float) <= STAGES * sizeof(struct stage),
	      "the sums of all teams take the place of the rows");

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

/* Starts copying columns [j, j + WIDE) of row @i, zeros where it has none; a group of copies. */
static __device__ __forceinline__ void fetch(struct stage &to, const struct norm_bwd &n, long i,
					     int j, int me)
{
	bool inside = i < n.a.n && j < n.a.c;
	long at = inside ? i * n.a.c + j : 0;

	copy16(&to.x[me], bf16_of(n.a.x) + at, inside);
	copy16(&to.g[me], n.dxn + at, inside);
	if (n.dres)
		copy16(&to.res[me], n.dres + at, inside);
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
	if (i >= n.a.n || j >= n.a.c)
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

/* part[2][c] = the teams' sums, one below the other in @all [teams][2][c] */
static __device__ __forceinline__ void put_sums(float *part, float *all, const float (&dw)[WIDE],
						const float (&db)[WIDE], int c, int j, int me)
{
	float *own = all + threadIdx.y * 2 * c + j;

	__syncthreads();
	if (j < c) {
		row_store<WIDE>(own, dw);
		row_store<WIDE>(own + c, db);
	}
	__syncthreads();
	for (int k = 4 * me; k < 2 * c; k += 4 * blockDim.x * blockDim.y) {
		float sum[4], more[4];

		row_load<4>(sum, all + k);
		for (int team = 1; team < blockDim.y; team++) {
			row_load<4>(more, all + team * 2 * c + k);
#pragma unroll
			for (int e = 0; e < 4; e++)
				sum[e] += more[e];
		}
		row_store<4>(part + k, sum);
	}
}

/*
 * blockDim: (threads of a row, teams). Rows go round the teams of all blocks: what is under way
 * lies side by side. A thread without columns has zeros, and so has a team without a row where
 * others of its block have their last: all pass the same barriers.
 */
static __global__ void __launch_bounds__(THREADS, 1) norm_bwd_kernel(struct norm_bwd n, float *part)
{
	extern __shared__ __align__(16) char mem[];
	struct stage *in = (struct stage *)mem;
	__shared__ float2 sums[2][WARPS];
	int c = n.a.c, j = threadIdx.x * WIDE, me = threadIdx.y * blockDim.x + threadIdx.x, turn = 0;
	long step = gridDim.x * blockDim.y, first = blockIdx.x, i = first + threadIdx.y * gridDim.x;
	float w[WIDE] = {}, dw[WIDE] = {}, db[WIDE] = {};
	struct row_stats row;

	let_next();
	after_previous();
	fetch(in[0], n, i, j, me);
	row = stats_of(n.a, i);
	if (j < c)
		row_load<WIDE>(w, n.a.w + j);
	for (; first < n.a.n; first += step, i += step, turn ^= 1) {
		struct row_stats next = stats_of(n.a, i + step);

		fetch(in[turn ^ 1], n, i + step, j, me);
		copy_wait<1>();
		row_bwd(dw, db, w, in[turn], row, n, i, j, me, sums[turn]);
		row = next;
	}
	copy_wait<0>();
	put_sums(part + 2l * blockIdx.x * c, (float *)mem, dw, db, c, j, me);
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
	launch(norm_bwd_kernel, chunks, dim3(32 * warps, teams), bytes, *n, part);
	sum_parts(sum_to<2>{ { n->dw, n->a.rms ? NULL : n->db } }, part, chunks, n->a.c);
	return true;
}
