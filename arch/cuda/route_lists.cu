// SPDX-License-Identifier: MIT
/*
 * Gathering along lists of entries (topk). The transposed gather sorts the entries of
 * each sequence and row set by u first, stably, so that t ascends: a counting sort whose
 * SEGMENTS count and place their queries at the same time.
 */
#include "route_gather.cuh"

enum {
	THREADS = 128,
	SORT_THREADS = 1024,
	SEGMENTS_MAX = SORT_THREADS / 32,
	SORT_BYTES = 200 << 10,		/* of shared memory for counters */
	ENTRIES = 128,			/* of a list that are read ahead */
};

/* ---- forward ------------------------------------------------------------------- */

static __device__ __forceinline__ void in_load(float (&x)[WIDE], const struct columns &p, long at)
{
	if (p.in_wide)
		row_load<WIDE>(x, p.in_wide + at);
	else
		row_load<WIDE>(x, p.in + at);
}

static __device__ __forceinline__ void in_load(float (&x)[1], const struct columns &p, long at)
{
	x[0] = p.in_wide ? p.in_wide[at] : get(p.in + at);
}

/* out[W] at @at = sum + beta out */
template <int W> static __device__ __forceinline__ void
out_store(const struct columns &p, long at, float (&sum)[W], float beta)
{
	float old[W] = {};

	if (beta != 0 && p.out_wide)
		row_load<W>(old, p.out_wide + at);
	else if (beta != 0)
		row_load<W>(old, p.out + at);
#pragma unroll
	for (int e = 0; e < W; e++)
		sum[e] += beta * old[e];
	if (p.out_wide)
		row_store<W>(p.out_wide + at, sum);
	else
		row_store<W>(p.out + at, sum);
}

/* sum += the rows index[n] of the part, times weight[n]; the addresses run ahead. */
template <int W> static __device__ __forceinline__ void
rows_sum(float (&sum)[W], const struct columns &p, long base, const int *index,
	 const float *weight, int n)
{
#pragma unroll 4
	for (int k = 0; k < n; k++) {
		float x[W];

		in_load(x, p, base + index[k] * p.ldi);
#pragma unroll
		for (int e = 0; e < W; e++)
			sum[e] += weight[k] * x[e];
	}
}

/*
 * One row of the result: entries of its list to shared memory, ENTRIES at a time, then
 * their rows summed in that order. list(k, index, weight) gives entry k.
 */
template <int W, class F> static __device__ __forceinline__ void
row_gather(const struct gather &g, int i, int pos, int set, int n, F list)
{
	__shared__ int index[ENTRIES];
	__shared__ float weight[ENTRIES];
	const struct columns &p = g.part;
	long base = (long)i * g.r.a.t * p.ldi + (long)set * p.width;
	long to = ((long)i * g.r.a.t + pos) * p.ldo + (long)set * p.width;

	for (int c0 = 0; c0 < p.width; c0 += blockDim.x * W) {
		int c = c0 + threadIdx.x * W;
		float sum[W] = {};

		for (int k0 = 0; k0 < n; k0 += ENTRIES) {
			int some = min(n - k0, (int)ENTRIES);

			__syncthreads();
			for (int k = threadIdx.x; k < some; k += blockDim.x) {
				list(k0 + k, index[k], weight[k]);
				weight[k] *= g.alpha;
			}
			__syncthreads();
			if (c < p.width)
				rows_sum<W>(sum, p, base + c, index, weight, some);
		}
		if (c < p.width)
			out_store<W>(p, to + c, sum, g.beta);
	}
}

template <int W> static __global__ void __launch_bounds__(THREADS) lists_kernel(struct gather g)
{
	const struct route &r = g.r;
	int t = blockIdx.x, set = blockIdx.y % r.nr, i = blockIdx.y / r.nr;
	int n = min(t + 1, r.topk);	/* fewer are visible: all of them */
	const int32_t *index = r.index + route_row(r, i, set, t) * r.topk;
	const float *weight = r.weight + route_row(r, i, set, t) * r.topk;

	row_gather<W>(g, i, t, set, n, [&](int k, int &at, float &w) {
		at = index[k];
		w = weight[k];
	});
}

/* Threads for a row: a warp for narrow row sets. */
static int threads_of(const struct gather &g, int w)
{
	int need = div_up(div_up(g.part.width, w), 32) * 32;

	return MIN(need, (int)THREADS);
}

/* Can both ends be taken WIDE columns at a time? */
static bool both_wide(const struct gather &g)
{
	const struct columns &p = g.part;

	return p.width % WIDE == 0 && row_wide(p.in, p.ldi) && row_wide(p.in_wide, p.ldi) &&
	       row_wide(p.out, p.ldo) && row_wide(p.out_wide, p.ldo);
}

void gather_lists(const struct gather &g)
{
	dim3 grid(g.r.a.t, g.r.a.b * g.r.nr);

	if (both_wide(g))
		lists_kernel<WIDE><<<grid, threads_of(g, WIDE), 0, cuda_stream()>>>(g);
	else
		lists_kernel<1><<<grid, threads_of(g, 1), 0, cuda_stream()>>>(g);
	CUDA_LAUNCHED();
}

/* ---- sorting ------------------------------------------------------------------- */

/* int32 of a sorted list: where each u starts, then t * topk + slot of each entry. */
static __host__ __device__ size_t list_size(int t, int topk)
{
	return (size_t)t + 1 + (size_t)t * topk;
}

size_t k_route_scratch(int b, int t, int nr, int topk)
{
	return topk ? b * nr * list_size(t, topk) * sizeof(int32_t) : 0;
}

/* f(u, t, slot) for the entries of queries [from, to), query after query, by a warp. */
template <class F> static __device__ __forceinline__ void
each_entry(const struct route &r, int i, int set, int from, int to, F f)
{
	for (int t = from; t < to; t++) {
		const int32_t *index = r.index + route_row(r, i, set, t) * r.topk;

		for (int slot = threadIdx.x % 32; slot < r.topk; slot += 32)
			if (index[slot] >= 0)
				f(index[slot], t, slot);
		__syncwarp();
	}
}

/* start[u] = entries before those of u, from the counters of all segments */
static __device__ void starts(int32_t *start, uint16_t *count, int segments, int t)
{
	__shared__ int part[SORT_THREADS];
	int each = div_up(t, SORT_THREADS), from = min((int)threadIdx.x * each, t);
	int to = min(from + each, t), sum = 0, before = 0;

	/* counters become what earlier segments hold of u; start holds the totals */
	for (int u = from; u < to; u++) {
		int all = 0;

		for (int s = 0; s < segments; s++) {
			int one = count[s * t + u];

			count[s * t + u] = all;
			all += one;
		}
		start[u] = all;
		sum += all;
	}
	part[threadIdx.x] = sum;
	__syncthreads();
	for (int step = 1; step < SORT_THREADS; step *= 2) {
		int add = threadIdx.x >= step ? part[threadIdx.x - step] : 0;

		__syncthreads();
		part[threadIdx.x] += add;
		__syncthreads();
	}
	before = part[threadIdx.x] - sum;
	for (int u = from; u < to; u++) {
		int all = start[u];

		start[u] = before;
		before += all;
	}
	if (threadIdx.x == SORT_THREADS - 1)
		start[t] = part[threadIdx.x];
}

/* A block sorts one sequence and row set. Entries of one query have different u. */
static __global__ void __launch_bounds__(SORT_THREADS)
sort_kernel(struct route r, int32_t *lists, int segments)
{
	extern __shared__ uint16_t count[];	/* [segments][t] */
	int t = r.a.t, i = blockIdx.x / r.nr, set = blockIdx.x % r.nr, s = threadIdx.x / 32;
	int len = div_up(t, segments), from = min(s * len, t), to = min(from + len, t);
	int32_t *start = lists + blockIdx.x * list_size(t, r.topk), *entry = start + t + 1;
	uint16_t *own = count + (long)s * t;

	for (int k = threadIdx.x; k < segments * t; k += SORT_THREADS)
		count[k] = 0;
	__syncthreads();
	if (s < segments)
		each_entry(r, i, set, from, to, [&](int u, int, int) { own[u]++; });
	__syncthreads();
	starts(start, count, segments, t);
	__syncthreads();
	if (s < segments)
		each_entry(r, i, set, from, to, [&](int u, int at, int slot) {
			entry[start[u] + own[u]++] = at * r.topk + slot;
		});
}

void lists_sort(const struct route *r, int32_t *lists)
{
	int segments = SEGMENTS_MAX, t = r->a.t;
	size_t bytes;

	while (segments > 1 && (size_t)segments * t * sizeof(uint16_t) > SORT_BYTES)
		segments /= 2;
	bytes = (size_t)segments * t * sizeof(uint16_t);
	if (bytes > SORT_BYTES || t > UINT16_MAX)
		die("routing over %d positions: at most %zu here; lower CONFIG_BLOCK_SIZE", t,
		    MIN((size_t)SORT_BYTES / sizeof(uint16_t), (size_t)UINT16_MAX));
	shared_room(sort_kernel, SORT_BYTES);
	sort_kernel<<<r->a.b * r->nr, SORT_THREADS, bytes, cuda_stream()>>>(*r, lists, segments);
	CUDA_LAUNCHED();
}

/* ---- transposed ---------------------------------------------------------------- */

template <int W> static __global__ void __launch_bounds__(THREADS)
lists_back_kernel(struct gather g, const int32_t *lists)
{
	const struct route &r = g.r;
	int t = r.a.t, u = blockIdx.x, set = blockIdx.y % r.nr, i = blockIdx.y / r.nr;
	const int32_t *start = lists + blockIdx.y * list_size(t, r.topk), *entry = start + t + 1;
	int from = start[u];

	row_gather<W>(g, i, u, set, start[u + 1] - from, [&](int k, int &at, float &w) {
		int e = entry[from + k];

		at = e / r.topk;
		w = r.weight[route_row(r, i, set, at) * r.topk + e % r.topk];
	});
}

void gather_lists_back(const struct gather &g, const int32_t *lists)
{
	dim3 grid(g.r.a.t, g.r.a.b * g.r.nr);

	if (both_wide(g))
		lists_back_kernel<WIDE><<<grid, threads_of(g, WIDE), 0, cuda_stream()>>>(g, lists);
	else
		lists_back_kernel<1><<<grid, threads_of(g, 1), 0, cuda_stream()>>>(g, lists);
	CUDA_LAUNCHED();
}
