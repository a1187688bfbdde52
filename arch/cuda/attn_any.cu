// SPDX-License-Identifier: MIT
/*
 * Attention of any shape, in bf16 or float: widths in chunks of W columns (an odd width is
 * padded with zeros in shared memory), reciprocal term, every way of sharing keys and
 * values. A block owns TILE rows x and one chunk of their columns, and runs over tiles
 * y of the other side. With roles given by the caller one product serves all:
 *
 *     rows t, columns u:  s = scale q_x k_y + ra_scale k_x q_y,  dP = d_o_x v_y
 *     rows u, columns t:  s = scale k_x q_y + ra_scale q_x k_y,  dP = v_x d_o_y
 *
 * Backward is two kernels of one form: dq sums over keys, and in the band of the
 * reciprocal term over later queries; dk and dv sum over queries, of all heads that
 * share them one after the other, and dk in the band over earlier keys. Each output
 * has one block and one order: no atomics.
 */
#include "attn.cuh"
#include "tile.cuh"

enum { W = 64 };

/* Two tiles of operands. */
struct any_smem {
	real x[TILE * W], y[TILE * W];
};

/* Head @h of sequence @i. */
struct any_views {
	struct head_view q, k, v, d_o;
};

static __device__ struct any_views any_at(const struct attn_run &p, int i, int h)
{
	const struct attn &a = p.a;
	struct any_views v;

	v.q = { real_of(a.q) + attn_q(a, i, h), a.q_row };
	v.k = { real_of(a.k) + attn_k(a, i, h), a.k_row };
	v.v = { real_of(a.v) + attn_v(a, i, h), a.v_row };
	v.d_o = { p.d_o ? p.d_o + attn_o(a, i, h) : NULL, a.o_row };
	return v;
}

static __device__ void acc_zero(tile_acc &c)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
		for (int i = 0; i < 4; i++)
			c[n][i] = 0;
}

/* One tile of operands, there when this returns. */
static __device__ void any_load(const struct attn_run &p, real *s, const struct head_view &v,
				int pos, int e0, int width)
{
	__syncthreads();
	tile_load<W>(s, v, pos, p.a.t, e0, width, p.vec);
	copy_commit();
	copy_wait<0>();
	__syncthreads();
}

/* c = x[x0..][width] y[y0..][width]^T */
static __device__ void any_product(tile_acc &c, struct any_smem &s, const struct attn_run &p,
				   const struct head_view &x, int x0, const struct head_view &y,
				   int y0, int width)
{
	acc_zero(c);
	for (int e0 = 0; e0 < width; e0 += W) {
		__syncthreads();
		tile_load<W>(s.x, x, x0, p.a.t, e0, width, p.vec);
		any_load(p, s.y, y, y0, e0, width);
		mul_nt<W>(c, s.x, s.y);
	}
}

/* c += s y, s rounded */
static __device__ void any_sum(tile_acc &c, const tile_acc &s, const real *y)
{
	tile_operand left;

	operand_of(left, s);
	mul_nn<W>(c, left, y);
}

/* Does the reciprocal term touch keys u0.. for queries t0..? */
static __device__ bool any_in_band(const struct attn_run &p, int t0, int u0)
{
	return p.ra != 0 && t0 - (u0 + TILE - 1) <= p.a.ra_window;
}

/* Scores of tile x, y; @cols: its columns are queries. Entries u > t are minus infinity. */
static __device__ void any_scores(tile_acc &s, struct any_smem &mem, const struct attn_run &p,
				  const struct any_views &v, int x0, int y0, bool cols)
{
	bool band = cols ? any_in_band(p, y0, x0) : any_in_band(p, x0, y0);
	tile_acc e;

	any_product(s, mem, p, cols ? v.k : v.q, x0, cols ? v.q : v.k, y0, p.a.dk);
	if (band)
		any_product(e, mem, p, cols ? v.q : v.k, x0, cols ? v.k : v.q, y0, p.a.dk);
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			int d = x0 + acc_row(i) - y0 - acc_col(n, i);	/* t - u */

			d = cols ? -d : d;
			s[n][i] *= p.scale;
			if (band && d <= p.a.ra_window)
				s[n][i] += p.ra * e[n][i];
			if (d < 0)
				s[n][i] = -INFINITY;
		}
	}
}

/* Online softmax of one tile: s becomes exponentials; max and sum follow, o is rescaled. */
static __device__ void any_softmax(tile_acc &s, tile_acc &o, float (&max)[2], float (&sum)[2])
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float m = -INFINITY, l = 0, fix;

#pragma unroll
		for (int n = 0; n < TILE_N; n++)
			m = fmaxf(m, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
		m = fmaxf(max[half], row_max(m));
		fix = exp2f((max[half] - m) * LOG2E);
		max[half] = m;
#pragma unroll
		for (int n = 0; n < TILE_N; n++) {
			for (int i = 2 * half; i < 2 * half + 2; i++) {
				s[n][i] = exp2f((s[n][i] - m) * LOG2E);
				l += s[n][i];
				o[n][i] *= fix;
			}
		}
		sum[half] = sum[half] * fix + row_sum(l);
	}
}

static __global__ void __launch_bounds__(TILE_THREADS) any_fwd_kernel(struct attn_run p)
{
	__shared__ __align__(16) struct any_smem mem;
	const struct attn &a = p.a;
	int x0 = (gridDim.x - 1 - blockIdx.x) * TILE, e0 = blockIdx.z * W;
	int i = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
	float max[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, f[2];
	struct any_views v = any_at(p, i, h);
	tile_acc s, o;

	acc_zero(o);
	for (int y0 = 0; y0 <= x0; y0 += TILE) {
		any_scores(s, mem, p, v, x0, y0, false);
		any_softmax(s, o, max, sum);
		any_load(p, mem.y, v.v, y0, e0, a.dv);
		any_sum(o, s, mem.y);
	}
	for (int half = 0; half < 2; half++) {
		int pos = x0 + acc_row(2 * half);
		long at = attn_stat(a, i, pos, h);

		f[half] = 1 / sum[half];
		if (pos >= a.t)
			continue;
		if (a.gamma)
			f[half] *= a.gamma[at];
		if (!blockIdx.z && threadIdx.x % 4 == 0)
			a.lse[at] = max[half] + logf(sum[half]);
	}
	rows_store<W>(real_of(a.o) + attn_o(a, i, h), a.o_row, x0, a.t, e0, a.dv, o, f[0], f[1],
		      p.vec);
}

/*
 * Tile x, y of backward: s = gamma P, ds = P (gamma dP - delta), 0 where u > t or
 * behind the end.
 */
static __device__ void any_ds(tile_acc &s, tile_acc &ds, struct any_smem &mem,
			      const struct attn_run &p, const struct any_views &v, int i, int h,
			      int x0, int y0, bool cols)
{
	const struct attn &a = p.a;

	any_scores(s, mem, p, v, x0, y0, cols);
	any_product(ds, mem, p, cols ? v.v : v.d_o, x0, cols ? v.d_o : v.v, y0, a.dv);
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
#pragma unroll
		for (int j = 0; j < 4; j++) {
			int pos = cols ? y0 + acc_col(n, j) : x0 + acc_row(j);
			long at = attn_stat(a, i, pos, h);
			float prob = 0, gamma = 1, delta = 0;

			if (pos < a.t) {
				prob = exp2f((s[n][j] - a.lse[at]) * LOG2E);
				gamma = a.gamma ? a.gamma[at] : 1;
				delta = p.delta[at];
			}
			s[n][j] = gamma * prob;
			ds[n][j] = prob * (gamma * ds[n][j] - delta);
		}
	}
}

/* ds *= ra_scale in the band, 0 outside */
static __device__ void any_band_only(tile_acc &ds, const struct attn_run &p, int x0, int y0,
				     bool cols)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++) {
#pragma unroll
		for (int j = 0; j < 4; j++) {
			int d = x0 + acc_row(j) - y0 - acc_col(n, j);

			d = cols ? -d : d;
			ds[n][j] *= d <= p.a.ra_window ? p.ra : 0;
		}
	}
}

static __device__ void acc_scale(tile_acc &c, float f)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
		for (int i = 0; i < 4; i++)
			c[n][i] *= f;
}

static __global__ void __launch_bounds__(TILE_THREADS) any_dq_kernel(struct attn_run p)
{
	__shared__ __align__(16) struct any_smem mem;
	const struct attn &a = p.a;
	int x0 = (gridDim.x - 1 - blockIdx.x) * TILE, e0 = blockIdx.z * W;
	int i = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
	struct any_views v = any_at(p, i, h);
	tile_acc s, ds, dq;

	acc_zero(dq);
	for (int y0 = 0; y0 <= x0; y0 += TILE) {
		any_ds(s, ds, mem, p, v, i, h, x0, y0, false);
		acc_scale(ds, p.scale);
		any_load(p, mem.y, v.k, y0, e0, a.dk);
		any_sum(dq, ds, mem.y);
	}
	for (int y0 = x0; y0 < a.t && any_in_band(p, y0, x0); y0 += TILE) {
		any_ds(s, ds, mem, p, v, i, h, x0, y0, true);
		any_band_only(ds, p, x0, y0, true);
		any_load(p, mem.y, v.k, y0, e0, a.dk);
		any_sum(dq, ds, mem.y);
	}
	rows_store<W>(p.dq + attn_q(a, i, h), a.q_row, x0, a.t, e0, a.dk, dq, 1, 1, p.vec);
}

static __global__ void __launch_bounds__(TILE_THREADS) any_dkv_kernel(struct attn_run p)
{
	__shared__ __align__(16) struct any_smem mem;
	const struct attn &a = p.a;
	int x0 = blockIdx.x * TILE, e0 = blockIdx.z * W, shared = a.heads / p.q_per;
	int i = blockIdx.y / shared, h0 = blockIdx.y % shared * p.q_per;
	bool do_k = p.do_k && e0 < a.dk, do_v = p.do_v && e0 < a.dv;
	tile_acc s, ds, dk, dv;

	acc_zero(dk);
	acc_zero(dv);
	for (int h = h0; h < h0 + p.q_per; h++) {
		struct any_views v = any_at(p, i, h);

		for (int y0 = x0; y0 < a.t; y0 += TILE) {
			any_ds(s, ds, mem, p, v, i, h, x0, y0, true);
			acc_scale(ds, p.scale);
			if (do_v) {
				any_load(p, mem.y, v.d_o, y0, e0, a.dv);
				any_sum(dv, s, mem.y);
			}
			if (do_k) {
				any_load(p, mem.y, v.q, y0, e0, a.dk);
				any_sum(dk, ds, mem.y);
			}
		}
		for (int y0 = x0; do_k && y0 >= 0 && any_in_band(p, x0, y0); y0 -= TILE) {
			any_ds(s, ds, mem, p, v, i, h, x0, y0, false);
			any_band_only(ds, p, x0, y0, false);
			any_load(p, mem.y, v.q, y0, e0, a.dk);
			any_sum(dk, ds, mem.y);
		}
	}
	if (do_k)
		rows_store<W>(p.dk + attn_k(a, i, h0), a.k_row, x0, a.t, e0, a.dk, dk, 1, 1, p.vec);
	if (do_v)
		rows_store<W>(p.dv + attn_v(a, i, h0), a.v_row, x0, a.t, e0, a.dv, dv, 1, 1, p.vec);
}

void attn_any_fwd(const struct attn_run &p)
{
	const struct attn &a = p.a;

	any_fwd_kernel<<<dim3(div_up(a.t, TILE), a.b * a.heads, div_up(a.dv, W)), TILE_THREADS, 0,
			 cuda_stream()>>>(p);
	CUDA_LAUNCHED();
}

/* Blocks that make dk, dv, or both: keys and values may be shared by unlike numbers of heads. */
static void any_dkv(struct attn_run p, int heads, bool do_k, bool do_v)
{
	const struct attn &a = p.a;
	int width = MAX(do_k ? a.dk : 0, do_v ? a.dv : 0);

	p.q_per = a.heads / heads;
	p.do_k = do_k;
	p.do_v = do_v;
	any_dkv_kernel<<<dim3(div_up(a.t, TILE), a.b * heads, div_up(width, W)), TILE_THREADS, 0,
			 cuda_stream()>>>(p);
	CUDA_LAUNCHED();
}

void attn_any_bwd(const struct attn_run &p)
{
	const struct attn &a = p.a;
	int k_heads = attn_k_heads(a), v_heads = attn_v_heads(a);

	any_dq_kernel<<<dim3(div_up(a.t, TILE), a.b * a.heads, div_up(a.dk, W)), TILE_THREADS, 0,
			cuda_stream()>>>(p);
	CUDA_LAUNCHED();
	if (k_heads == v_heads) {
		any_dkv(p, k_heads, true, true);
		return;
	}
	any_dkv(p, k_heads, true, false);
	any_dkv(p, v_heads, false, true);
}
