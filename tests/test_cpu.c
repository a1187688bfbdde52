/* SPDX-License-Identifier: MIT */
/*
 * The machine as a device: copies, marks, replays; of the cpu also arena, threads and its
 * element functions.
 */
#include <omp.h>

#include "../arch/cpu/blas.h"
#include "../arch/cpu/math.h"
#include "../arch/cpu/thin.h"
#include "arch.h"
#include "real.h"
#include "scratch.h"
#include "tap.h"
#include "util.h"

/* The bounds that arch/cpu/math.h states. */
#define F32_TOL 2e-7
#define F64_TOL 4e-16

/* Half of what a sum of acc_t can lose at each of its terms. */
#define ACC_EPS (R_IS_DOUBLE ? 0x1p-53 : 0x1p-24)

/* Every argument between the flush to 0 and the overflow, in @steps steps. */
static double exp_f32_error(int steps)
{
	double worst = 0;

	for (int i = 0; i <= steps; i++) {
		float x = -86.9f + (float)i / steps * (88.7f + 86.9f);
		double want = exp(x);

		worst = fmax(worst, fabs(exp_f32(x) - want) / want);
	}
	return worst;
}

static double exp_f64_error(int steps)
{
	long double worst = 0;

	for (int i = 0; i <= steps; i++) {
		double x = -708 + (double)i / steps * (709.7 + 708);
		long double want = expl(x);

		worst = fmaxl(worst, fabsl(exp_f64(x) - want) / want);
	}
	return worst;
}

static void test_math(void)
{
	double f32 = exp_f32_error(200003), f64 = exp_f64_error(200003), gelu = 0;

	ok(f32 <= F32_TOL, "exp_f32_relative_error %.3g", f32);
	ok(f64 <= F64_TOL, "exp_f64_relative_error %.3g", f64);
	ok(exp_f32(-INFINITY) == 0 && exp_f64(-INFINITY) == 0 && exp_f32(0) == 1 &&
	   exp_f64(0) == 1, "exp_of_minus_infinity_is_0");
	ok(isinf(exp_f32(INFINITY)) && isinf(exp_f64(INFINITY)) && exp_f32(88.72f) < INFINITY &&
	   isinf(exp_f32(88.73f)) && isinf(exp_f64(709.79)), "exp_overflows_where_it_should");
	ok(isnan(exp_f32(NAN)) && isnan(exp_f64(NAN)), "exp_of_nan_is_nan");
	for (int i = -600; i <= 600; i++) {	/* central difference, h^2 f'''/6 < 1e-9 */
		double x = 0.01 * i, h = 1e-4;
		double fd = (r_gelu(x + h) - r_gelu(x - h)) / (2 * h);

		gelu = fmax(gelu, fabs(fd - r_gelu_grad(x)));
	}
	ok(!R_IS_DOUBLE || gelu < 1e-8, "gelu_grad_is_the_derivative %.3g", gelu);
}

static void test_arena(void)
{
	enum { BYTES = 256 << 20 };	/* from where the plan promises it */
	size_t before = arch_memory_used(NULL), grown;
	char *p = arch_alloc(BYTES);
	bool zero = true;

	grown = arch_memory_used(NULL) - before;
	for (size_t i = 0; i < BYTES; i++)
		zero &= !p[i];
	ok(zero && (uintptr_t)p % TENSOR_ALIGN == 0, "arena_is_zeroed_and_aligned");
	ok(fabs((double)grown - BYTES) < 0.02 * BYTES, "arena_is_resident %zu of %d", grown, BYTES);
	ok(arch_memory() > BYTES, "memory_is_known %zu", arch_memory());
	arch_free(p, BYTES);
}

static void test_copies(void)
{
	static const size_t sizes[] = { 1, 4096, (1 << 20) + 1, (5 << 20) + 17 };
	size_t bytes = ROUND_UP((size_t)6 << 20, TENSOR_ALIGN);
	uint8_t *host = xmalloc(bytes), *back = xmalloc(bytes), *a = arch_alloc(2 * bytes);

	for (size_t i = 0; i < bytes; i++)
		host[i] = rng_u64(1, 2, i);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		size_t n = sizes[i];
		uint8_t behind = 1;
		bool good;

		arch_zero(a, 2 * bytes);
		arch_put(a, host, n);
		arch_copy(a + bytes, a, n);
		memset(back, 0xFF, bytes);
		arch_get(back, a + bytes, n);
		good = !memcmp(back, host, n) && back[n] == 0xFF;
		arch_get(&behind, a + bytes + n, 1);
		good &= !behind;
		arch_get(&behind, a + n, 1);
		good &= !behind;
		ok(good, "copies_of_%zu_bytes_round_trip", n);
	}
	arch_free(a, 2 * bytes);
	free(host), free(back);
}

/* A read that is waited for through a mark, which may be waited for before it was set. */
static void test_later(void)
{
	char *p = arch_alloc(TENSOR_ALIGN), out[6] = "";
	struct arch_mark mark = { 0 };

	arch_mark_wait(&mark);
	arch_put(p, "first", 6);
	arch_get_later(out, p, 6);
	arch_mark_set(&mark);
	arch_mark_wait(&mark);
	ok(!strcmp(out, "first"), "marked_read_is_there");
	arch_free(p, TENSOR_ALIGN);
}

static void body(void *arg)
{
	char *p = arg;

	arch_copy(p + 16, p, 8);
	arch_zero(p + 8, 8);
}

/* Every replay works on what device memory holds then. */
static void test_replay(void)
{
	char *p = arch_alloc(TENSOR_ALIGN), out[24];
	struct arch_graph graph = { 0 };
	bool good = true;

	for (int i = 1; i <= 3; i++) {
		memset(out, i, sizeof(out));
		arch_put(p, out, sizeof(out));
		arch_replay(&graph, body, p);
		arch_get(out, p, sizeof(out));
		good &= out[0] == i && out[8] == 0 && out[15] == 0 && out[16] == i && out[23] == i;
	}
	ok(good, "replays_read_device_memory");
	arch_free(p, TENSOR_ALIGN);
}

static void open_second(const void *arg)
{
	(void)arg;
	arch_init(1, 1);
}

/*
 * thin_gemm() by itself: where AMX is, k_gemm() takes that and leaves the rest to attention.
 */
static void test_thin(int m, int n, int k)
{
	act_t *a = xcalloc(m * k, sizeof(*a)), *b = xcalloc(n * k, sizeof(*b));
	acc_t *c = xcalloc(m * n, sizeof(*c)), *left = xcalloc(m * k, sizeof(*left));
	double worst = 0;
	long lda = k;

	for (int i = 0; i < m * k; i++)
		a[i] = act(rng_normal(1, 1, i));
	for (int i = 0; i < n * k; i++)
		b[i] = act(rng_normal(1, 2, i));
	thin_gemm(m, n, k, 1, thin_widen(a, &lda, m, k, left), lda, b, k, 0, c, n);
	for (int i = 0; i < m; i++)
		for (int j = 0; j < n; j++) {
			double sum = 0, size = 0;

			for (int l = 0; l < k; l++) {
				double term = real(a[i * k + l]) * real(b[j * k + l]);

				sum += term;
				size += fabs(term);
			}
			worst = fmax(worst, fabs(c[i * n + j] - sum) / size);
		}
	ok(worst <= k * ACC_EPS, "thin_matches_loops %d x %d x %d: %.3g", m, n, k, worst);
	free(a), free(b), free(c), free(left);
}

/* What two checkpoints are told apart by: the library, and its way with bf16. */
static void test_names(void)
{
	const char *way = NARROW ? blas_narrow_way() : "", *own = NULL;

	if (NARROW && IS_ENABLED(CONFIG_BLAS_ONEDNN))
		own = onednn_way();
	ok(*blas_name() && way && (!own || !strcmp(way, own)), "the library and its way have names");
	ok(strstr(arch_bits(), blas_name()) == arch_bits() && strstr(arch_bits(), way) &&
	   strstr(arch_describe(), blas_name()), "bits: %s", arch_bits());
}

static void test_cpu(void)
{
	ok(dies(open_second, NULL, "device 1"), "second_cpu_is_refused");
	arch_init(0, 2);
	ok(omp_get_max_threads() == 2, "threads_are_set");
	ok(strstr(arch_describe(), "2 threads") != NULL, "describe: %s", arch_describe());
	test_names();
	test_math();
	test_arena();
	for (int m = 1; m <= THIN_ROWS; m++)
		test_thin(m, 11, 101);
	test_thin(8, 9, 3000);
}

int main(void)
{
	if (IS_ENABLED(CONFIG_ARCH_CPU)) {
		test_cpu();
	} else {
		arch_init(0, 1);
		ok(true, "threads, resident arena, element functions # SKIP the cpu's own");
	}
	test_copies();
	test_later();
	test_replay();
	return tap_done();
}
