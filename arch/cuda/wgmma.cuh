/* SPDX-License-Identifier: MIT */
/**
 * DOC: tiles for wgmma and the bulk tensor copy (sm_90a)
 *
 * Operands stand in shared memory as blocks of 64 rows by 64 columns of bf16 (8 KiB),
 * each row 128 bytes in the 128-byte swizzle that the copy engine writes and wgmma
 * reads; a tile of wider rows is several blocks, columns 64 apart. A block serves as
 * operand with its columns as inner dimension (k-major) or with its rows (transposed).
 * Accumulators c[n][4] of a warpgroup stand as those of mma.sync, 16 rows a warp.
 *
 * Only a kernel compiled for sm_90a has a body: WGMMA_BODY.
 */
#ifndef TENON_CUDA_WGMMA_CUH
#define TENON_CUDA_WGMMA_CUH

#include <cuda.h>

#include "attn_tile.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WGMMA_BODY 1
#else
#define WGMMA_BODY 0
#endif

enum {
	WG_THREADS = 128,
	BLOCK_COLS = 64,
	BLOCK_ELEMS = TILE * BLOCK_COLS,
	BLOCK_BYTES = BLOCK_ELEMS * 2,
};

/**
 * struct head_map - a tensor [sequences][heads][positions][width] for the copy engine
 *
 * Positions behind the end of a sequence read as 0.
 */
struct head_map {
	CUtensorMap map;
};

/**
 * head_map_of() - map of blocks
 * @p: 16-byte aligned
 * @row: elements from position to position, a multiple of 8
 * @head: elements from head to head, a multiple of 8
 * @seq: elements from sequence to sequence, a multiple of 8
 * @t: positions of a sequence, @b: sequences, @heads, @width: as they are
 * @rows: positions of a block
 */
head_map head_map_of(const bf16 *p, long row, long head, long seq, int width, int t, int heads,
		     int b, int rows = TILE);

static __device__ __forceinline__ uint32_t smem_at(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- barriers ------------------------------------------------------------- */

static __device__ __forceinline__ void mbar_init(uint64_t *bar, int count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(smem_at(bar)), "r"(count)
		     : "memory");
}

/* After mbar_init() and before a copy or another thread uses the barrier. */
static __device__ __forceinline__ void mbar_init_fence(void)
{
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ __forceinline__ void mbar_arrive(uint64_t *bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(smem_at(bar)) : "memory");
}

/* Arrive and announce bytes that copies will bring. */
static __device__ __forceinline__ void mbar_expect(uint64_t *bar, int bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
		     :: "r"(smem_at(bar)), "r"(bytes) : "memory");
}

/* Until the phase of parity @parity is complete. */
static __device__ __forceinline__ void mbar_wait(uint64_t *bar, int parity)
{
	asm volatile("{\n"
		     ".reg .pred done;\n"
		     "again:\n"
		     "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
		     "@done bra ready;\n"
		     "bra again;\n"
		     "ready:\n"
		     "}" :: "r"(smem_at(bar)), "r"(parity) : "memory");
}

/* ---- copies --------------------------------------------------------------- */

/* Rows pos.. of a head, D columns from @e0 on, as D / 64 blocks; counts on @bar. */
template <int D, int ROWS = TILE>
static __device__ __forceinline__ void tile_fetch(bf16 *dst, const struct head_map *map,
						  uint64_t *bar, int pos, int head, int i,
						  int e0 = 0)
{
#pragma unroll
	for (int e = 0; e < D; e += BLOCK_COLS)
		asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile"
			     ".mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
			     :: "r"(smem_at(dst + e * ROWS)), "l"(&map->map), "r"(e0 + e),
			     "r"(pos), "r"(head), "r"(i), "r"(smem_at(bar)) : "memory");
}

/* ---- products ------------------------------------------------------------- */

static __device__ __forceinline__ void wgmma_fence(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most @N groups are under way. */
template <int N> static __device__ __forceinline__ void wgmma_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}

/* The compiler must not move uses of @c across this point. */
template <int N> static __device__ __forceinline__ void acc_pin(float (&c)[N][4])
{
#pragma unroll
	for (int n = 0; n < N; n++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			asm volatile("" : "+f"(c[n][i]) :: "memory");
}

/*
 * Matrix descriptor of a block: 128-byte swizzle, groups of eight rows 1024 bytes
 * apart. The leading dimension is not used: no operand is wider than a block.
 */
static __device__ __forceinline__ uint64_t block_desc(const bf16 *p)
{
	return (uint64_t)(smem_at(p) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define ACC4(n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define ACC32 ACC4(0), ACC4(1), ACC4(2), ACC4(3), ACC4(4), ACC4(5), ACC4(6), ACC4(7)
#define ACC_NAMES \
	"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
	"%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

/* c (+)= a[64][16] b[64][16]^T, both k-major in shared memory; add 0 overwrites */
static __device__ __forceinline__ void wgmma_ss(tile_acc &c, uint64_t a, uint64_t b, int add)
{
#if WGMMA_BODY
	asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
		     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ACC_NAMES
		     ", %32, %33, p, 1, 1, 0, 0;\n}"
		     : ACC32 : "l"(a), "l"(b), "r"(add));
#endif
}

/* c += a[64][16] b[16][64], a in registers, b transposed: rows are the inner dimension */
static __device__ __forceinline__ void wgmma_rs(tile_acc &c, const uint32_t (&a)[4], uint64_t b)
{
#if WGMMA_BODY
	asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " ACC_NAMES
		     ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
		     : ACC32 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

/* c += a[64][16] b[N][16]^T, N 16 or 32, both k-major in shared memory */
static __device__ __forceinline__ void wgmma_ss(float (&c)[4][4], uint64_t a, uint64_t b)
{
#if WGMMA_BODY
	asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
		     "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, 0, 0;"
		     : ACC4(0), ACC4(1), ACC4(2), ACC4(3) : "l"(a), "l"(b));
#endif
}

static __device__ __forceinline__ void wgmma_ss(float (&c)[2][4], uint64_t a, uint64_t b)
{
#if WGMMA_BODY
	asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
		     "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;"
		     : ACC4(0), ACC4(1) : "l"(a), "l"(b));
#endif
}

/* c += a[64][16] b[16][16], as above */
static __device__ __forceinline__ void wgmma_rs(float (&c)[2][4], const uint32_t (&a)[4],
						uint64_t b)
{
#if WGMMA_BODY
	asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
		     "{%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, 1;"
		     : ACC4(0), ACC4(1) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

/* What this thread wrote to shared memory is there for products, behind the next barrier. */
static __device__ __forceinline__ void wgmma_publish(void)
{
#if WGMMA_BODY
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* c = x[64][D] y[64][D]^T, asynchronous */
template <int D>
static __device__ __forceinline__ void tile_nt(tile_acc &c, const bf16 *x, const bf16 *y)
{
	uint64_t dx = block_desc(x), dy = block_desc(y);

	/* 16 columns are 32 bytes inside a swizzled row: 2 units of a descriptor */
#pragma unroll
	for (int k = 0; k < D / 16; k++) {
		int at = k / 4 * (BLOCK_BYTES / 16) + k % 4 * 2;

		wgmma_ss(c, dx + at, dy + at, k);
	}
}

/* c[64][D] += a[64][64] y[64][D], asynchronous */
template <int D>
static __device__ __forceinline__ void tile_nn(tile_acc (&c)[D / BLOCK_COLS],
					       const tile_left &a, const bf16 *y)
{
	uint64_t dy = block_desc(y);

	/* 16 rows are 2048 bytes */
#pragma unroll
	for (int k = 0; k < TILE / 16; k++)
#pragma unroll
		for (int n = 0; n < D / BLOCK_COLS; n++)
			wgmma_rs(c[n], a[k], dy + n * (BLOCK_BYTES / 16) + k * 128);
}

/* Warpgroup of this thread, in a form that the compiler sees to be the same in a warp. */
static __device__ __forceinline__ int wg_index(void)
{
	return __shfl_sync(~0u, threadIdx.x / WG_THREADS, 0);
}

#endif
