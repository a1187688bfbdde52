/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles of attention for mma.sync (sm_80 and later)
 *
 * A tile is TILE rows by W columns of bf16 in shared memory. Its 16-byte chunks are
 * permuted, chunk c of row r at c ^ (r % 8), so that ldmatrix reads eight rows of one
 * chunk from eight different bank groups. A block has four warps; each owns 16 rows
 * of a product.
 */
#ifndef TENON_CUDA_ATTN_MMA_CUH
#define TENON_CUDA_ATTN_MMA_CUH

#include "attn_tile.cuh"

/* One head of one sequence: element (pos, e) at p[pos * row + e]. */
struct head_view {
	const bf16 *p;
	long row;
};

static __device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], const bf16 *p)
{
	uint32_t at = (uint32_t)__cvta_generic_to_shared(p);

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

static __device__ __forceinline__ void ldmatrix_t(uint32_t (&r)[4], const bf16 *p)
{
	uint32_t at = (uint32_t)__cvta_generic_to_shared(p);

	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

/* The left operand of mul_nn(): accumulators, rounded. */
typedef tile_left tile_operand;

static __device__ __forceinline__ void operand_of(tile_operand &a, const tile_acc &c)
{
	tile_pack(a, c);
}

/* Address of chunk @c (8 elements) of row @r. */
template <int W> static __device__ __forceinline__ int tile_at(int r, int c)
{
	return r * W + (c ^ (r & 7)) * 8;
}

/**
 * tile_load() - rows [pos, pos + TILE), columns [e0, e0 + W) of a head to shared memory
 * @t: positions; what lies behind them, or behind column @width, becomes 0
 * @vec: rows begin at multiples of 16 bytes and width is a multiple of 8
 *
 * Asynchronous with @vec: copy_commit() and copy_wait() follow.
 */
template <int W>
static __device__ __forceinline__ void tile_load(bf16 *s, const struct head_view &v, int pos,
						 int t, int e0, int width, bool vec)
{
	constexpr int CHUNKS = W / 8;

#pragma unroll 4
	for (int n = threadIdx.x; n < TILE * CHUNKS; n += TILE_THREADS) {
		int r = n / CHUNKS, c = n % CHUNKS, e = e0 + c * 8;
		const bf16 *src = v.p + (long)(pos + r) * v.row + e;
		bf16 *dst = s + tile_at<W>(r, c);
		bool inside = pos + r < t && e < width;

		if (vec) {
			copy16(dst, inside ? src : v.p, inside);
		} else {
			bf16 x[8];

			for (int i = 0; i < 8; i++)
				x[i] = inside && e + i < width ? src[i] : __float2bfloat16(0);
			*(uint4 *)dst = *(uint4 *)x;
		}
	}
}

/* c[16][TILE] += x[16][W] y[TILE][W]^T, the warp's rows of x */
template <int W>
static __device__ __forceinline__ void mul_nt(tile_acc &c, const bf16 *x, const bf16 *y)
{
	int lane = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16;

#pragma unroll
	for (int k = 0; k < W / 16; k++) {
		uint32_t a[4], b[4];

		ldmatrix(a, x + tile_at<W>(r0 + lane % 16, 2 * k + lane / 16));
#pragma unroll
		for (int n = 0; n < TILE_N; n += 2) {
			ldmatrix(b, y + tile_at<W>(8 * n + lane % 8 + lane / 16 * 8,
						   2 * k + lane / 8 % 2));
			mma(c[n], a, b[0], b[1]);
			mma(c[n + 1], a, b[2], b[3]);
		}
	}
}

/* Accumulators to a tile [TILE][TILE] in shared memory, rounded. */
static __device__ __forceinline__ void operand_put(bf16 *p, const tile_acc &c)
{
#pragma unroll
	for (int n = 0; n < TILE_N; n++)
#pragma unroll
		for (int i = 0; i < 4; i += 2)
			*(uint32_t *)(p + tile_at<TILE>(acc_row(i), n) + acc_col(0, 0)) =
				pack_bf16(c[n][i], c[n][i + 1]);
}

/* The warp's 16 rows of the transposed tile of operand_put(). */
static __device__ __forceinline__ void operand_transposed(tile_operand &a, const bf16 *p)
{
	int lane = threadIdx.x % 32, chunk = threadIdx.x / 32 * 2 + lane / 8 % 2;

#pragma unroll
	for (int k = 0; k < TILE / 16; k++)
		ldmatrix_t(a[k], p + tile_at<TILE>(16 * k + lane % 8 + lane / 16 * 8, chunk));
}

/* c[16][W] += a[16][TILE] y[TILE][W] */
template <int W>
static __device__ __forceinline__ void mul_nn(float (*c)[4], const tile_left &a, const bf16 *y)
{
	int lane = threadIdx.x % 32;

#pragma unroll
	for (int k = 0; k < TILE / 16; k++) {
		uint32_t b[4];

#pragma unroll
		for (int n = 0; n < W / 8; n += 2) {
			ldmatrix_t(b, y + tile_at<W>(16 * k + lane % 16, n + lane / 16));
			mma(c[n], a[k], b[0], b[1]);
			mma(c[n + 1], a[k], b[2], b[3]);
		}
	}
}

#endif
