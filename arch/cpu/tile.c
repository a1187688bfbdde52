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
typedef acc_t uvec __attribute__((vector_size(__BIGGEST_ALIGNMENT__), may_alias,
				  aligned(sizeof(acc_t))));

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
	const acc_t *a = p->a + i * p->a_row + k0 * p->a_col;
	const acc_t *b = p->b + k0 * p->ldb + j;
	vec acc[MR_SLIM][NV_MAX] = {};
	vec old;
	acc_t *c;

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

const acc_t *tile_widen(const act_t *a, long *ld, int rows, int cols, acc_t *buf)
{
	if (!NARROW)
		return (const acc_t *)a;
	for (int r = 0; r < rows; r++, a += *ld)
		for (int c = 0; c < cols; c++)
			buf[(long)r * cols + c] = load(a[c]);
	*ld = cols;
	return buf;
}

void tile_mul_act(struct tile_mul *p, const act_t *a, long ld, acc_t *buf)
{
	p->a = tile_widen(a, &ld, p->m, p->k, buf);
	p->a_row = ld;
	p->a_col = 1;
	tile_mul(p);
}

/* Element @i, or LANES elements, of activations or, where @wide, of acc_t. */
static inline acc_t load_one(const void *x, long i, bool wide)
{
	return wide ? ((const acc_t *)x)[i] : load(((const act_t *)x)[i]);
}

static inline vec load_vec(const void *x, long i, bool wide)
{
	vec v;

	if (wide || !NARROW)
		return *(const uvec *)((const acc_t *)x + i);
	for (int e = 0; e < LANES; e++)
		v[e] = load(((const act_t *)x)[i + e]);
	return v;
}

static inline __attribute__((always_inline)) void
pack(acc_t *dst, const void *src, bool wide, long ld, int rows, int cols)
{
	long width = tile_width(cols);

	for (int r = 0; r < rows; r++, dst += width) {
		if (wide || !NARROW)
			memcpy(dst, (const acc_t *)src + r * ld, cols * sizeof(acc_t));
		for (int c = 0; !wide && NARROW && c < cols; c++)
			dst[c] = load_one(src, r * ld + c, wide);
		memset(dst + cols, 0, (width - cols) * sizeof(acc_t));
	}
}

void tile_pack(acc_t *dst, const act_t *src, long ld, int rows, int cols)
{
	pack(dst, src, false, ld, rows, cols);
}

void tile_pack_acc(acc_t *dst, const acc_t *src, long ld, int rows, int cols)
{
	pack(dst, src, true, ld, rows, cols);
}

/*
 * LANES x LANES from element @from on transposed in registers: log2(LANES) perfect
 * shuffles of the rows r[i], r[i + LANES/2] give their transpose.
 */
static inline __attribute__((always_inline)) void
transpose(acc_t *dst, long ldd, const void *src, long from, bool wide, long ld, acc_t factor)
{
	vec r[LANES], s[LANES];
	tile_mask lo, hi;

	for (int e = 0; e < LANES; e++) {
		lo[e] = e / 2 + (e % 2) * LANES;
		hi[e] = lo[e] + LANES / 2;
	}
	for (int i = 0; i < LANES; i++)
		r[i] = factor * load_vec(src, from + i * ld, wide);
	for (int round = 1; round < LANES; round *= 2) {
		for (int i = 0; i < LANES / 2; i++) {
			s[2 * i] = __builtin_shuffle(r[i], r[i + LANES / 2], lo);
			s[2 * i + 1] = __builtin_shuffle(r[i], r[i + LANES / 2], hi);
		}
		memcpy(r, s, sizeof(r));
	}
	for (int i = 0; i < LANES; i++)
		*(uvec *)(dst + i * ldd) = r[i];
}

static inline __attribute__((always_inline)) void
pack_t(acc_t *dst, const void *src, bool wide, long ld, int rows, int cols, acc_t factor)
{
	int whole_r = rows / LANES * LANES, whole_c = cols / LANES * LANES;

	for (int c = 0; c < whole_c; c += LANES)
		for (int r = 0; r < whole_r; r += LANES)
			transpose(dst + c * TILE + r, TILE, src, r * ld + c, wide, ld, factor);
	for (int c = 0; c < cols; c++) {
		for (int r = c < whole_c ? whole_r : 0; r < rows; r++)
			dst[c * TILE + r] = factor * load_one(src, r * ld + c, wide);
		memset(dst + c * TILE + rows, 0, (TILE - rows) * sizeof(acc_t));
	}
}

void tile_pack_t(acc_t *dst, const act_t *src, long ld, int rows, int cols, acc_t factor)
{
	pack_t(dst, src, false, ld, rows, cols, factor);
}

void tile_pack_t_acc(acc_t *dst, const acc_t *src, long ld, int rows, int cols)
{
	pack_t(dst, src, true, ld, rows, cols, 1);
}

void tile_transpose(acc_t *dst, long ldd, const acc_t *src, long ld, int rows, int cols)
{
	for (int r = 0; r < rows; r += LANES)
		for (int c = 0; c < cols; c += LANES)
			transpose(dst + c * ldd + r, ldd, src, r * ld + c, true, ld, 1);
}

static inline __attribute__((always_inline)) acc_t
dot(const void *x, bool wide, const act_t *y, int n)
{
	vec acc = {};
	acc_t sum = 0;
	int i = 0;

	for (; i + LANES <= n; i += LANES)
		acc += load_vec(x, i, wide) * load_vec(y, i, false);
	for (int e = 0; i + e < n; e++)
		acc[e] += load_one(x, i + e, wide) * load(y[i + e]);
	for (int e = 0; e < LANES; e++)
		sum += acc[e];
	return sum;
}

acc_t tile_dot(const act_t *x, const act_t *y, int n)
{
	return dot(x, false, y, n);
}

acc_t tile_dot_acc(const acc_t *x, const act_t *y, int n)
{
	return dot(x, true, y, n);
}

/* A thread that ends gives its scratch back through this key. */
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void scratch_open(void)
{
	if (pthread_key_create(&scratch_key, free))
		die("no thread key for attention scratch: run with fewer libraries preloaded");
}

acc_t *tile_scratch(size_t n)
{
	static _Thread_local acc_t *buf;
	static _Thread_local size_t size;

	if (n > size) {
		pthread_once(&scratch_once, scratch_open);
		free(buf);
		size = ROUND_UP(n * sizeof(acc_t), TENSOR_ALIGN) / sizeof(acc_t);
		buf = aligned_alloc(TENSOR_ALIGN, size * sizeof(acc_t));
		if (!buf)
			die("no memory for %zu bytes of attention scratch: lower N_EMBD or N_HEAD",
			    size * sizeof(acc_t));
		pthread_setspecific(scratch_key, buf);
	}
	return buf;
}
