// SPDX-License-Identifier: MIT
/*
 * A few rows times a weight by AMX. The tile instruction takes c[i][j] += sum of
 * x[i][2l] y[l][2j] + x[i][2l+1] y[l][2j+1]: x is ROWS rows of the weight, y the left
 * operand with pairs of its columns interleaved, so that the weight, of which there is
 * much, is loaded as it lies, and the few rows beside it are packed once for all of it.
 */
#include "amx.h"

#ifdef __AMX_BF16__
#include <asm/prctl.h>
#include <immintrin.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "thin.h"
#include "util.h"

enum {
	ROWS = 16,		/* of a tile */
	STEP = 32,		/* bf16 of a tile's row */
	PAIRS = STEP / 2,
	PANEL = 2 * ROWS,	/* rows of b: two sums hide each other's latency */
	AMX_DATA = 18,		/* state component of the tiles */
};

/* Tiles: macros, because GCC 12 writes down the word that it is given. */
#define SUM_0 0
#define SUM_1 1
#define LEFT 2
#define RIGHT_0 3
#define RIGHT_1 4
#define NR_TILES 5

struct tile_config {
	uint8_t palette, start_row, reserved[14];
	uint16_t bytes[16];	/* of a row */
	uint8_t rows[16];
} __attribute__((aligned(64)));

/* GCC 12 does not know which memory a tile instruction reads and writes. */
static inline void memory_is_used(void)
{
	__asm__ volatile ("" : : : "memory");
}

static bool granted;

/* The kernel keeps room for the tiles of a process that asked. */
static void ask(void)
{
	granted = __builtin_cpu_supports("amx-bf16") &&
		  !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, AMX_DATA);
}

bool amx_ready(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, ask);
	return granted;
}

static int steps(int k)
{
	return (k + STEP - 1) / STEP;
}

long amx_left(int m, int k)
{
	return (long)steps(k) * PAIRS * m;
}

/* [steps][PAIRS][m], an element is a pair of columns */
void amx_pack(int m, int k, const act_t *a, long lda, acc_t *to)
{
	for (int i = 0; i < m; i++, a += lda, to++) {
		for (int l = 0; l < k / 2; l++)
			memcpy(to + (long)l * m, a + 2 * l, 2 * sizeof(*a));
		for (int l = k / 2; l < steps(k) * PAIRS; l++)
			to[(long)l * m] = 0;
		if (k % 2)
			memcpy(to + (long)(k / 2) * m, a + k - 1, sizeof(*a));
	}
}

static void configure(int m)
{
	struct tile_config t = { .palette = 1 };

	for (int i = 0; i < NR_TILES; i++) {
		t.rows[i] = ROWS;
		t.bytes[i] = (i < RIGHT_0 ? m : PAIRS) * sizeof(acc_t);
	}
	memory_is_used();
	_tile_loadconfig(&t);
}

/* Sums of @count whole steps of PANEL rows are added to. */
static void multiply(int m, int count, const acc_t *a, const act_t *b, long ldb)
{
	long next = ROWS * ldb;

	for (; count; count--, a += PAIRS * m, b += STEP) {
		_tile_loadd(LEFT, a, m * sizeof(*a));
		_tile_loadd(RIGHT_0, b, ldb * sizeof(*b));
		_tile_loadd(RIGHT_1, b + next, ldb * sizeof(*b));
		_tile_dpbf16ps(SUM_0, RIGHT_0, LEFT);
		_tile_dpbf16ps(SUM_1, RIGHT_1, LEFT);
	}
}

/* The same of up to PANEL rows and STEP columns, beside zeros. */
static void multiply_rest(int m, int rows, int columns, const acc_t *a, const act_t *b, long ldb)
{
	act_t whole[PANEL][STEP] = { };

	for (int j = 0; j < rows; j++)
		memcpy(whole[j], b + j * ldb, columns * sizeof(*b));
	memory_is_used();
	multiply(m, 1, a, whole[0], STEP);
	memory_is_used();
}

void amx_gemm(int m, int n, int k, acc_t alpha, const acc_t *a, const act_t *b, long ldb,
	      acc_t beta, acc_t *c, long ldc)
{
	acc_t sum[PANEL][THIN_ROWS];

	configure(m);
	for (int j = 0; j < n; j += PANEL, b += PANEL * ldb, c += PANEL) {
		int rows = MIN(PANEL, n - j), whole = rows == PANEL ? k / STEP : 0;

		_tile_zero(SUM_0);
		_tile_zero(SUM_1);
		multiply(m, whole, a, b, ldb);
		for (int l = whole * STEP; l < k; l += STEP)
			multiply_rest(m, rows, MIN(STEP, k - l), a + l / 2 * m, b + l, ldb);
		_tile_stored(SUM_0, sum[0], sizeof(sum[0]));
		_tile_stored(SUM_1, sum[ROWS], sizeof(sum[0]));
		memory_is_used();
		for (int i = 0; i < m; i++)
			for (int r = 0; r < rows; r++) {
				acc_t *to = c + i * ldc + r, x = alpha * sum[r][i];

				*to = beta == 0 ? x : x + beta * *to;
			}
	}
	_tile_release();
}

#endif
