// SPDX-License-Identifier: MIT
/*
 * Linear recurrences of any shape backward. One sweep forwards makes gradients of queries,
 * one backwards those of keys and decays, each sliced by columns of keys; a third, in
 * linattn_any.cu, those of values. The two are one kernel: what a query is to the state
 * before it, a key is to the gradient of the state behind it.
 */
#include "linattn_any.cuh"

/* Operands of a block. @enters: what the state takes in, with its decays. */
template <class S> struct smem {
	float d_o[ROWS][S::PITCH], v[ROWS][S::PITCH];
	float q[ROWS][SLICE], k[ROWS][SLICE], alpha[ROWS][SLICE], enters[ROWS][SLICE];
	float own[ROWS][SLICE], da[2][ROWS][ROWS], part[S::W * ROWS * SLICE];
};

/* Where a block of threads stands. */
struct place {
	int i, h, c, warp, lane;
	bool inside;
};

static __device__ __forceinline__ struct place place_of(const struct linattn &a)
{
	int lane = threadIdx.x % 32, c = blockIdx.y * SLICE + lane;

	return { (int)(blockIdx.x / a.heads), (int)(blockIdx.x % a.heads), c, (int)threadIdx.x / 32,
		 lane, c < a.dk };
}

template <class S>
static __device__ __forceinline__ void load(struct smem<S> &s, const struct any_run &p,
					    const struct place &at, int t0, int n)
{
	const struct linattn &a = p.a;
	struct any_decay d = any_decay_of(a, at.i, at.h, t0);
	const real *q = linattn_q(a, at.i, at.h) + t0 * a.q_row + at.c;
	const real *k = linattn_k(a, at.i, at.h) + t0 * a.k_row + at.c;
	const real *v = linattn_v(a, at.i, at.h) + t0 * a.v_row;
	const real *d_o = p.d_o + (((long)at.i * a.t + t0) * a.heads + at.h) * a.dv;

#pragma unroll
	for (int j = 0; j < ROWS / S::W; j++) {
		int r = at.warp + j * S::W;
		bool inside = r < n && at.inside;

		s.q[r][at.lane] = inside ? (float)a.scale * get(q + r * a.q_row) : 0;
		s.k[r][at.lane] = inside ? get(k + r * a.k_row) : 0;
		s.alpha[r][at.lane] = inside ? any_alpha(d, r, at.c) : 1;
#pragma unroll 8
		for (int e = at.lane; e < S::WIDTH; e += 32) {
			bool there = r < n && e < a.dv;

			s.v[r][e] = there ? get(v + r * a.v_row + e) : 0;
			s.d_o[r][e] = there ? get(d_o + (long)r * a.heads * a.dv + e) : 0;
		}
	}
}

/* Rows of what the state takes in, and this thread's column of the block's decay. */
template <class S, bool BACK>
static __device__ __forceinline__ float enter(struct smem<S> &s, const struct place &at)
{
	float all = 1;

#pragma unroll
	for (int x = 0; x < ROWS; x++) {
		int r = BACK ? x : ROWS - 1 - x;

		if (BACK)
			all *= s.alpha[r][at.lane];
		if (r % S::W == at.warp)
			s.enters[r][at.lane] = all * (BACK ? s.q : s.k)[r][at.lane];
		if (!BACK)
			all *= s.alpha[r][at.lane];
	}
	return all;
}

/* The gradient of row @r's query (its scale apart) or key. */
template <class S, bool BACK>
static __device__ __forceinline__ float row_grad(const struct smem<S> &s, const struct place &at,
						 int r)
{
	float sum = 0, decay = 1;

	for (int x = r; BACK ? x < ROWS : x >= 0; x += BACK ? 1 : -1) {
		float da = BACK ? s.da[0][x][r] + s.da[1][x][r] : s.da[0][r][x] + s.da[1][r][x];

		if (BACK && x > r)
			decay *= s.alpha[x][at.lane];
		sum = fmaf(da * decay, (BACK ? s.q : s.k)[x][at.lane], sum);
		if (!BACK)
			decay *= s.alpha[x][at.lane];
	}
	return fmaf(any_far<S::W>(s.part, r), decay, sum);
}

static __device__ __forceinline__ float *dg_at(const struct any_run &p, const struct place &at,
					       long row)
{
	bool vector = p.a.decay == LINATTN_VECTOR;

	return p.dg + ((long)at.i * p.a.t + row) * p.dg_row + at.h * p.dg_head +
	       (vector ? at.c : blockIdx.y);
}

/* Does this thread have a value of dg? */
static __device__ __forceinline__ bool has_dg(const struct any_run &p, const struct place &at)
{
	return p.a.decay == LINATTN_VECTOR ? at.inside : !at.lane;
}

/* q dq, or in the sweep back k dk: of this column or, with scalar decays, of the slice */
static __device__ __forceinline__ float own_of(const struct any_run &p, float x, float dx)
{
	return p.a.decay == LINATTN_VECTOR ? x * dx : warp_sum(x * dx);
}

/* Gradients of the rows of a block. Backwards q dq - k dk is left in s.own. */
template <class S, bool BACK>
static __device__ __forceinline__ void rows_grad(struct smem<S> &s, const struct any_run &p,
						 const struct place &at, int t0, int n)
{
	bool decays = p.a.decay <= LINATTN_SCALAR;

#pragma unroll
	for (int j = 0; j < ROWS / S::W; j++) {
		int r = at.warp + j * S::W;
		float dx = row_grad<S, BACK>(s, at, r), x = (BACK ? s.k : s.q)[r][at.lane];
		bool there = r < n && decays && has_dg(p, at);
		float own = own_of(p, x, dx);

		if (r < n && at.inside)
			any_put(p.out, (long)at.i * p.a.t + t0 + r, p.a.heads, at.h, at.c,
				BACK ? dx : (float)p.a.scale * dx);
		if (BACK)
			s.own[r][at.lane] = there ? *dg_at(p, at, t0 + r) - own : 0;
		else if (there)
			*dg_at(p, at, t0 + r) = own;
	}
}

/* dg_t = sum over u >= t of q_u dq_u - k_u dk_u; @behind: of all behind this block */
template <class S>
static __device__ __forceinline__ float decays_grad(const struct smem<S> &s,
						    const struct any_run &p, const struct place &at,
						    int t0, int n, float behind)
{
#pragma unroll
	for (int r = ROWS - 1; r >= 0; r--) {
		behind += s.own[r][at.lane];
		if (r % S::W == at.warp && r < n && has_dg(p, at))
			*dg_at(p, at, t0 + r) = behind;
	}
	return behind;
}

/* Of the state behind chunk @n, row e of this thread's column. */
static __device__ __forceinline__ float *kept_at(const struct any_run &p, const struct place &at,
						 int n, int e)
{
	size_t head = (size_t)at.i * p.a.heads + at.h;

	return p.kept + ((head * (p.chunks + 1) + n) * p.a.dv + e) * LINATTN_WIDTH(p.a.dk) + at.c;
}

/* <S, dS> of this column behind chunk @n, or with scalar decays of the slice. */
template <class S>
static __device__ __forceinline__ float behind_chunk(struct smem<S> &s, const struct any_run &p,
						     const struct place &at, int n,
						     const float (&state)[S::N])
{
	float sum = 0;

#pragma unroll
	for (int j = 0; j < S::N; j++) {
		int e = at.warp * S::N + j;

		if (at.inside && e < p.a.dv)
			sum = fmaf(*kept_at(p, at, n, e), state[j], sum);
	}
	s.part[at.warp * SLICE + at.lane] = sum;
	__syncthreads();
	sum = 0;
#pragma unroll
	for (int w = 0; w < S::W; w++)
		sum += s.part[w * SLICE + at.lane];
	return p.a.decay == LINATTN_VECTOR ? sum : warp_sum(sum);
}

template <class S, bool BACK>
static __global__ void __launch_bounds__(S::THREADS) keys_kernel(struct any_run p)
{
	extern __shared__ __align__(16) char mem[];
	struct smem<S> &s = *(struct smem<S> *)mem;
	const struct linattn &a = p.a;
	struct place at = place_of(a);
	struct any_pair pair = any_pair_of(threadIdx.x % (ROWS * ROWS));
	bool decays = a.decay <= LINATTN_SCALAR;
	int blocks = (a.t + ROWS - 1) / ROWS;
	float state[S::N], behind = 0;

	let_next();
	after_previous();
#pragma unroll
	for (int j = 0; j < S::N; j++) {
		int e = at.warp * S::N + j;

		state[j] = p.first && at.inside && e < a.dv ?
				   p.first[((long)blockIdx.x * a.dk + at.c) * a.dv + e] : 0;
	}
	for (int j = 0; j < blocks; j++) {
		int t0 = (BACK ? blocks - 1 - j : j) * ROWS, n = min(ROWS, a.t - t0);
		bool ends = decays && ((t0 + ROWS) % a.chunk == 0 || t0 + ROWS >= a.t);
		float end;

		if (BACK && ends)
			behind = behind_chunk<S>(s, p, at, t0 / a.chunk, state);
		load<S>(s, p, at, t0, n);
		__syncthreads();
		any_read<S::N>(s.part, BACK ? s.v[0] : s.d_o[0], S::PITCH, state);
		if (threadIdx.x < ROWS * ROWS)
			any_pair_put(s.da, pair, any_dot(s.d_o[pair.t], s.v[pair.u], S::WIDTH, pair));
		end = enter<S, BACK>(s, at);
		__syncthreads();
		rows_grad<S, BACK>(s, p, at, t0, n);
#pragma unroll
		for (int e = 0; e < S::N; e++)
			state[e] *= end;
		any_write<S::N>(state, BACK ? s.d_o[0] : s.v[0], S::PITCH, s.enters[0]);
		__syncthreads();
		if (BACK && decays)
			behind = decays_grad<S>(s, p, at, t0, n, behind);
#pragma unroll
		for (int e = 0; !BACK && ends && e < S::N; e++)
			if (at.inside && at.warp * S::N + e < a.dv)
				*kept_at(p, at, t0 / a.chunk, at.warp * S::N + e) = state[e];
	}
}

template <bool BACK> static void keys(const struct any_run &p)
{
	dim3 grid(p.a.b * p.a.heads, div_up(p.a.dk, SLICE));

	any_by_width(p.a.dv, [&](auto shape) {
		typedef decltype(shape) S;

		shared_room(keys_kernel<S, BACK>, sizeof(struct smem<S>));
		launch(keys_kernel<S, BACK>, grid, S::THREADS, sizeof(struct smem<S>), p);
	});
}

/* ---- what heads share ------------------------------------------------------------- */

enum { THREADS = 256 };

/* dst row of width @width of each of @groups = sum of its @n rows of part, one by one */
template <class T> static __global__ void __launch_bounds__(THREADS)
sum_kernel(T *dst, long row, long head, const float *part, long rows, int groups, int n, int width)
{
	long at = (long)blockIdx.x * THREADS + threadIdx.x, of = at / width;
	int c = at % width;
	float sum = 0;

	let_next();
	after_previous();
	if (of >= rows * groups)
		return;
#pragma unroll 8
	for (int j = 0; j < n; j++)
		sum += part[(of * n + j) * width + c];
	put(dst + of / groups * row + of % groups * head + c, sum);
}

template <class T>
static void sum_parts_of(T *dst, long row, long head, const float *part, const struct linattn *a,
			 int groups, int n, int width)
{
	long rows = (long)a->b * a->t;

	launch(sum_kernel<T>, (rows * groups * width + THREADS - 1) / THREADS, THREADS, 0, dst, row,
	       head, part, rows, groups, n, width);
}

/* Parts of an operand that heads share, taken from @free; NULL where they do not. */
static float *parts_of(const struct linattn *a, unsigned int operand, int width, float **free)
{
	float *part = *free;

	if (!(a->shared & operand))
		return NULL;
	*free += (size_t)a->b * a->t * a->heads * width;
	return part;
}

static void sum_operand(const struct any_out &o, const struct linattn *a)
{
	if (o.part)
		sum_parts_of(o.act, o.row, o.head, o.part, a, a->heads / a->group, a->group, o.width);
}

/*
 * Gradients of decays stand in dg itself, or in parts: where there is one for all columns,
 * @slices of each head.
 */
static void decay_parts(struct any_run *p, const struct linattn_grad *d, float *free, int slices)
{
	const struct linattn &a = p->a;
	int width = a.decay == LINATTN_VECTOR ? a.dk : slices;
	bool in_place = !(a.shared & LINATTN_G) && (a.decay == LINATTN_VECTOR || slices == 1);

	if (a.decay > LINATTN_SCALAR)
		return;
	p->dg = in_place ? d->dg : free;
	p->dg_row = in_place ? a.g_row : (long)a.heads * width;
	p->dg_head = in_place ? a.g_head : width;
}

static void sum_decays(const struct any_run *p, const struct linattn_grad *d, int slices)
{
	const struct linattn *a = &p->a;
	int group = a->shared & LINATTN_G ? a->group : 1;

	if (a->decay == LINATTN_VECTOR)
		slices = 1;
	if (a->decay <= LINATTN_SCALAR && p->dg != d->dg)
		sum_parts_of(d->dg, a->g_row, a->g_head, p->dg, a, a->heads / group, group * slices,
			     a->decay == LINATTN_SCALAR ? 1 : a->dk);
}

static void sweeps(struct any_run p, const struct any_out &dq, const struct any_out &dk,
		   const struct any_out &dv, const struct linattn_grad *d)
{
	p.out = dq;
	p.first = p.a.s0;
	keys<false>(p);
	p.out = dk;
	p.first = d->ds1;
	keys<true>(p);
	p.out = dv;
	p.last = d->ds0;
	p.last_seq = (long)p.a.heads * p.a.dk * p.a.dv;
	linattn_any_values(p);
}

void k_linattn_bwd(const struct linattn *a, const struct linattn_grad *d)
{
	size_t heads = (size_t)a->b * a->heads;
	bool mma = linattn_mma_bwd_takes(a, d);
	int slices = mma ? 1 : div_up(a->dk, SLICE);
	struct any_run p = {};
	struct any_out dq, dk, dv;
	float *free;

	p.a = *a;
	p.d_o = real_of(d->d_o);
	p.kept = d->scratch;
	p.chunks = div_up(a->t, a->chunk);
	free = p.kept + heads * LINATTN_KEPT(a->t, a->chunk) * a->dv * LINATTN_WIDTH(a->dk);
	dq = any_out_of(d->dq, a->q_row, a->q_head, parts_of(a, LINATTN_Q, a->dk, &free), a->dk);
	dk = any_out_of(d->dk, a->k_row, a->k_head, parts_of(a, LINATTN_K, a->dk, &free), a->dk);
	dv = any_out_of(d->dv, a->v_row, a->v_head, parts_of(a, LINATTN_V, a->dv, &free), a->dv);
	decay_parts(&p, d, free, slices);
	if (mma)
		linattn_mma_bwd(p, dq, dk, dv, d);
	else
		sweeps(p, dq, dk, dv, d);
	sum_operand(dq, a);
	sum_operand(dk, a);
	sum_operand(dv, a);
	sum_decays(&p, d, slices);
}
