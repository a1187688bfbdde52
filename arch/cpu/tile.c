// SPDX-License-Identifier: MIT
/*
 * Products of small tiles: a register block of rows times a few vectors of
 * columns, the left operand broadcast, the right one packed. Vectors are GCC's
 * generic ones, as wide as the machine's.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tile.h"

typedef tile_vec vec;
/* the same at any address */
typedef act_t uvec __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias,
				  aligned(sizeof(act_t))));

/*
 * Accumulators, one row of b and a broadcast must fit the vector registers: 32
 * where vectors have 64 bytes, else 16.
 */
enum {
	WIDE = __BIGGEST_ALIGNMENT__ == 64,
	NV_MAX = WIDE ? 4 : 2,	/* vectors of a block of columns */
	MR_WIDE = 6,		/* rows beside NV_MAX vectors */
	MR_SLIM = 8,		/* rows beside fewer */
};

/* c[mr][nv vectors], of the last vector the first tail columns */
static inline __attribute__((always_inline)) void
block(const struct tile_mul *p, int mr, int nv, int i, int j, int k0, int k1, int tail)
{
	const act_t *a = p->a + i * p->a_row + k0 * p->a_col;
	const act_t *b = p->b + k0 * p->ldb + j;
	vec acc[MR_SLIM][NV_MAX] = {};
	vec old;
	act_t *c;

	for (int k = k0; k < k1; k++, a += p->a_col, b += p->ldb)
		for (int r = 0; r < mr; r++)
			for (int v = 0; v < nv; v++)
				acc[r][v] += a[r * p->a_row] * *(const uvec *)(b + v * LANES);
	for (int r = 0; r < mr; r++) {
		c = p->c + (i + r) * p->ldc + j;
		for (int v = 0; v < nv; v++, c += LANES) {
			if (v == nv - 1 && tail < LANES) {
				for (int e = 0; e < tail; e++)
					c[e] = p->add ? c[e] + acc[r][v][e] : acc[r][v][e];
			} else {
				old = p->add ? (vec) * (uvec *)c : (vec){};
				*(uvec *)c = old + acc[r][v];
			}
		}
	}
}

/* One instance of block() for each shape, chosen by the number of vectors. */
static inline __attribute__((always_inline)) void
block_nv(const struct tile_mul *p, int mr, int nv, int i, int j, int k0, int k1, int tail)
{
	switch (nv) {
	case 1:
		return block(p, mr, 1, i, j, k0, k1, tail);
	case 2:
		return block(p, mr, 2, i, j, k0, k1, tail);
	case 3:
		return block(p, mr, MIN(3, NV_MAX), i, j, k0, k1, tail);
	default:
		return block(p, mr, NV_MAX, i, j, k0, k1, tail);
	}
}

static __attribute__((noinline)) void rows_slim(const struct tile_mul *p, int nv, int i, int j,
						int k0, int k1, int tail)
{
	block_nv(p, MR_SLIM, MIN(nv, NV_MAX - 1), i, j, k0, k1, tail);
}

static __attribute__((noinline)) void rows_wide(const struct tile_mul *p, int nv, int i, int j,
						int k0, int k1, int tail)
{
	(void)nv;
	block(p, MR_WIDE, NV_MAX, i, j, k0, k1, tail);
}

static __attribute__((noinline)) void rows_four(const struct tile_mul *p, int nv, int i, int j,
						int k0, int k1, int tail)
{
	block_nv(p, 4, nv, i, j, k0, k1, tail);
}

static __attribute__((noinline)) void rows_one(const struct tile_mul *p, int nv, int i, int j,
					       int k0, int k1, int tail)
{
	block_nv(p, 1, nv, i, j, k0, k1, tail);
}

/* Rows [i, i + mr) over the columns of one block of vectors. */
static void block_shape(const struct tile_mul *p, int mr, int nv, int i, int j, int tail)
{
	int k0 = p->shape == TILE_A_UPPER ? MIN(i, p->k) : 0;
	int k1 = p->shape == TILE_A_LOWER ? MIN(i + mr, p->k) : p->k;

	if (p->shape == TILE_C_LOWER && j >= i + mr)
		return;
	if (p->shape == TILE_C_UPPER && j + nv * LANES <= i)
		return;
	if (mr == MR_WIDE)
		rows_wide(p, nv, i, j, k0, k1, tail);
	else if (mr == MR_SLIM)
		rows_slim(p, nv, i, j, k0, k1, tail);
	else if (mr == 4)
		rows_four(p, nv, i, j, k0, k1, tail);
	else
		rows_one(p, nv, i, j, k0, k1, tail);
}

void tile_mul(const struct tile_mul *p)
{
	int nv, mr, tail, most;

	for (int j = 0; j < p->n; j += nv * LANES) {
		nv = MIN((p->n - j + LANES - 1) / LANES, NV_MAX);
		tail = p->pad ? LANES : MIN(p->n - j - (nv - 1) * LANES, LANES);
		most = nv == NV_MAX ? MR_WIDE : MR_SLIM;
		for (int i = 0; i < p->m; i += mr) {
			mr = p->m - i >= most ? most : p->m - i >= 4 ? 4 : 1;
			block_shape(p, mr, nv, i, j, tail);
		}
	}
}

void tile_pack(act_t *dst, const act_t *src, long ld, int rows, int cols)
{
	long width = tile_width(cols);

	for (int r = 0; r < rows; r++, dst += width, src += ld) {
		memcpy(dst, src, cols * sizeof(act_t));
		memset(dst + cols, 0, (width - cols) * sizeof(act_t));
	}
}

/*
 * LANES x LANES transposed in registers: log2(LANES) perfect shuffles of the
 * rows r[i], r[i + LANES/2] give their transpose.
 */
static void transpose(act_t *dst, const act_t *src, long ld, act_t factor)
{
	vec r[LANES], s[LANES];
	tile_mask lo, hi;

	for (int e = 0; e < LANES; e++) {
		lo[e] = e / 2 + (e % 2) * LANES;
		hi[e] = lo[e] + LANES / 2;
	}
	for (int i = 0; i < LANES; i++)
		r[i] = factor * *(const uvec *)(src + i * ld);
	for (int round = 1; round < LANES; round *= 2) {
		for (int i = 0; i < LANES / 2; i++) {
			s[2 * i] = __builtin_shuffle(r[i], r[i + LANES / 2], lo);
			s[2 * i + 1] = __builtin_shuffle(r[i], r[i + LANES / 2], hi);
		}
		memcpy(r, s, sizeof(r));
	}
	for (int i = 0; i < LANES; i++)
		*(uvec *)(dst + i * TILE) = r[i];
}

void tile_pack_t(act_t *dst, const act_t *src, long ld, int rows, int cols, act_t factor)
{
	int whole_r = rows / LANES * LANES, whole_c = cols / LANES * LANES;

	for (int c = 0; c < whole_c; c += LANES)
		for (int r = 0; r < whole_r; r += LANES)
			transpose(dst + c * TILE + r, src + r * ld + c, ld, factor);
	for (int c = 0; c < cols; c++) {
		for (int r = c < whole_c ? whole_r : 0; r < rows; r++)
			dst[c * TILE + r] = factor * src[r * ld + c];
		memset(dst + c * TILE + rows, 0, (TILE - rows) * sizeof(act_t));
	}
}

act_t tile_dot(const act_t *x, const act_t *y, int n)
{
	vec acc = {};
	act_t sum = 0;
	int i = 0;

	for (; i + LANES <= n; i += LANES)
		acc += *(const uvec *)(x + i) * *(const uvec *)(y + i);
	for (int e = 0; i + e < n; e++)
		acc[e] += x[i + e] * y[i + e];
	for (int e = 0; e < LANES; e++)
		sum += acc[e];
	return sum;
}

/* A thread that ends gives its scratch back through this key. */
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_open(void)
{
	if (pthread_key_create(&scratch_key, free))
		die("no thread key for attention scratch: run with fewer libraries preloaded");
}

act_t *tile_scratch(size_t n)
{
	static _Thread_local act_t *buf;
	static _Thread_local size_t size;

	if (n > size) {
		pthread_once(&scratch_once, scratch_open);
		free(buf);
		size = ROUND_UP(n * sizeof(act_t), TENSOR_ALIGN) / sizeof(act_t);
		buf = aligned_alloc(TENSOR_ALIGN, size * sizeof(act_t));
		if (!buf)
			die("no memory for %zu bytes of attention scratch: lower N_EMBD or N_HEAD",
			    size * sizeof(act_t));
		pthread_setspecific(scratch_key, buf);
	}
	return buf;
}
