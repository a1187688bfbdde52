/* SPDX-License-Identifier: MIT */
/**
 * DOC: products of small tiles
 *
 * Attention and routing work on score tiles of TILE x TILE. Their products are
 * too small for a BLAS call to pay, and an element must come out with the same
 * bits wherever it lies in a tile: every element here is one chain of
 * multiply-adds over k in ascending order.
 */
#ifndef TENON_CPU_TILE_H
#define TENON_CPU_TILE_H

/* Reading it takes longer than the rest of a file. */
#if defined(CONFIG_REAL_BF16) && defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "real.h"
#include "util.h"

enum {
	TILE = 64,	/* queries and keys of a tile */
	/* elements of the widest vector that the compiler was told of */
	LANES = __BIGGEST_ALIGNMENT__ / sizeof(acc_t),
};

/* GCC's generic vectors, as wide as the machine's; a mask has all bits or none. */
typedef acc_t tile_vec __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias));
typedef __typeof__((tile_vec){} > (tile_vec){}) tile_mask;

/** tile_select() - a where the mask is set, else b */
static inline tile_vec tile_select(tile_mask mask, tile_vec a, tile_vec b)
{
	return (tile_vec)((mask & (tile_mask)a) | (~mask & (tile_mask)b));
}

#ifdef CONFIG_REAL_BF16
typedef uint16_t tile_memory __attribute__((vector_size(__BIGGEST_ALIGNMENT__ / 2), may_alias,
					    aligned(sizeof(act_t))));
typedef uint32_t tile_words __attribute__((vector_size(__BIGGEST_ALIGNMENT__)));
#else
typedef acc_t tile_memory __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias,
					 aligned(sizeof(act_t))));
#endif

/** tile_load() - LANES elements at any address, exactly */
static inline tile_vec tile_load(const act_t *x)
{
#if defined(CONFIG_REAL_BF16) && defined(__AVX512F__)
	/* GCC 12 makes six instructions of what follows */
	return (tile_vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(*(const __m256i_u *)x), 16);
#elif defined(CONFIG_REAL_BF16)
	return (tile_vec)(__builtin_convertvector(*(const tile_memory *)x, tile_words) << 16);
#else
	return *(const tile_memory *)x;
#endif
}

/** tile_width() - columns of a packed panel that holds @n columns */
static inline long tile_width(int n)
{
	return ROUND_UP((long)n, LANES);
}

/**
 * enum tile_shape - what is known to be zero or not wanted, on the diagonal
 * @TILE_FULL: nothing
 * @TILE_C_LOWER: c[i][j] is wanted for j <= i
 * @TILE_C_UPPER: c[i][j] is wanted for j >= i
 * @TILE_A_LOWER: a[i][k] counts as 0 for k > i
 * @TILE_A_UPPER: a[i][k] counts as 0 for k < i
 *
 * Bounds are honoured to the block of rows or the vector: unwanted elements of c
 * may be written or not, zeros of a must be there.
 */
enum tile_shape { TILE_FULL, TILE_C_LOWER, TILE_C_UPPER, TILE_A_LOWER, TILE_A_UPPER };

/**
 * struct tile_mul - c = a b, or c += a b
 * @m: rows of c
 * @n: columns of c
 * @k: inner dimension
 * @a: element (i, k) at a[i * a_row + k * a_col]
 * @b: packed, [k][ldb], ldb a multiple of LANES, columns from n on are readable
 * @c: [m][ldc]
 * @add: add to c; else c is overwritten, whatever it holds
 * @pad: c's columns up to the next multiple of LANES may be written too
 */
struct tile_mul {
	int m, n, k;
	const acc_t *a;
	long a_row, a_col;
	const acc_t *b;
	long ldb;
	acc_t *c;
	long ldc;
	bool add, pad;
	enum tile_shape shape;
};

/** tile_mul() - the product, on the calling thread */
void tile_mul(const struct tile_mul *p);

/**
 * tile_mul_act() - the product with activations on the left
 * @p: all but a, a_row and a_col
 * @a: [m][k], row stride @ld
 * @buf: tile_left(m, k) elements
 */
void tile_mul_act(struct tile_mul *p, const act_t *a, long ld, acc_t *buf);

/**
 * tile_widen() - a left operand of activations as acc_t
 * @a: [rows][cols]
 * @ld: row stride, afterwards that of the result
 * @buf: tile_left(rows, cols) elements
 *
 * Returns: @a itself where the types are one, else @buf.
 */
const acc_t *tile_widen(const act_t *a, long *ld, int rows, int cols, acc_t *buf);

/** tile_left() - elements that a left operand of activations, [rows][k], takes as acc_t */
static inline long tile_left(int rows, int k)
{
	return NARROW ? (long)rows * k : 0;
}

/**
 * tile_pack() - dst[r][c] = src[r][c], zero up to the next multiple of LANES
 * @dst: [rows][tile_width(cols)]
 * @src: row stride @ld
 */
void tile_pack(acc_t *dst, const act_t *src, long ld, int rows, int cols);

/** tile_pack_acc() - the same of acc_t */
void tile_pack_acc(acc_t *dst, const acc_t *src, long ld, int rows, int cols);

/**
 * tile_pack_t() - dst[c][r] = factor * src[r][c], columns from @rows to TILE zero
 * @dst: [cols][TILE]
 * @src: row stride @ld, at most TILE rows
 */
void tile_pack_t(acc_t *dst, const act_t *src, long ld, int rows, int cols, acc_t factor);

/** tile_pack_t_acc() - the same of acc_t, factor 1 */
void tile_pack_t_acc(acc_t *dst, const acc_t *src, long ld, int rows, int cols);

/**
 * tile_transpose() - dst[c][r] = src[r][c]
 * @ldd: row stride of dst
 * @rows: a multiple of LANES, as cols
 */
void tile_transpose(acc_t *dst, long ldd, const acc_t *src, long ld, int rows, int cols);

/** tile_dot() - sum of x[i] y[i], LANES interleaved chains added at the end */
acc_t tile_dot(const act_t *x, const act_t *y, int n);

/** tile_dot_acc() - the same with x in acc_t */
acc_t tile_dot_acc(const acc_t *x, const act_t *y, int n);

/**
 * tile_scratch() - memory of the calling thread
 * @n: elements
 *
 * Valid until the thread's next call, undefined contents, aligned to a vector.
 * It grows to the largest request and stays.
 */
acc_t *tile_scratch(size_t n);

#endif
