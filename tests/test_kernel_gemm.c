/* SPDX-License-Identifier: MIT */
/*
 * k_gemm(), k_gemm_acc(), k_gemm_grad(), k_cast() and k_widen() against plain
 * loops in double.
 */
#include "../arch/cpu/blas.h"
#include "kernel.h"

static long gap = 3;	/* unused elements at the end of a row */

/* What a case has beside its shape. */
enum {
	TA = 1, TB = 2,
	NO_BIAS = 4,
	ONE_A = 8, ONE_B = 16,	/* all products of a batch share it */
};

static struct gemm g;
static void (*kernel)(const struct gemm *g) = k_gemm;
static size_t result = ACT;	/* bytes of an element of c */

static void call_gemm(void)
{
	kernel(&g);
}

static double gelu(double x)
{
	return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_grad(double x)
{
	double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);

	return 0.5 * (1 + th) +
	       0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* Element (i, j) of product p; @size gets the sum of magnitudes. */
static double reference(int p, int i, int j, double before, double *size)
{
	const act_t *a = (const act_t *)g.a + p * g.sa, *b = (const act_t *)g.b + p * g.sb;
	double sum = 0, magnitude = 0;

	for (int l = 0; l < g.k; l++) {
		double term = real(g.ta ? a[l * g.lda + i] : a[i * g.lda + l]) *
			      real(g.tb ? b[j * g.ldb + l] : b[l * g.ldb + j]);

		sum += term;
		magnitude += fabs(term);
	}
	*size = fabs(g.alpha) * magnitude;
	if (g.beta) {
		*size += fabs(g.beta * before);
		return g.alpha * sum + g.beta * before;
	}
	return g.alpha * sum;
}

/* cuBLASLt takes GELU, whose slope is below 1.2, before it rounds to bf16 what it saves of its argument. */
#define GELU_BEFORE (IS_ENABLED(CONFIG_ARCH_CUDA) && IS_ENABLED(CONFIG_REAL_BF16) ? 1.2 : 0)
/* And it may round a product before it adds what was there. */
#define BETA_BEFORE (IS_ENABLED(CONFIG_ARCH_CUDA) && IS_ENABLED(CONFIG_REAL_BF16) ? 1 : 0)

/*
 * One result of an epilogue. In front of it a product may have been rounded to an activation,
 * where the epilogue is a pass of its own: @before is how large that was.
 */
static bool near_epilogue(act_t x, double want, double size, double tol, double before)
{
	return near(real(x), want,
		    tol * size + ACT_ROUND * (fabs(want) + tol * size + before), 1);
}

/* One result against its epilogue; @aux was the argument of DGELU. */
static bool element(int p, int i, int j, double before, const act_t *aux_in)
{
	long at = i * g.ldaux + j;
	double size, tol = SUM_TOL(g.k);
	double want = reference(p, i, j, before, &size), bias = g.bias ? real(g.bias[j]) : 0;
	act_t got;

	if (result == ACC && g.ep == GEMM_PLAIN)
		return near(((acc_t *)g.c)[p * g.sc + i * g.ldc + j], want, size, tol);
	got = ((act_t *)g.c)[p * g.sc + i * g.ldc + j];
	switch (g.ep) {
	case GEMM_PLAIN:
		return near_epilogue(got, want, size, tol,
				     BETA_BEFORE * fabs(want - g.beta * before));
	case GEMM_BIAS:
		return near_epilogue(got, want + bias, size + fabs(bias), tol, fabs(want));
	case GEMM_BIAS_GELU:
		return near_epilogue(g.aux[at], want + bias, size + fabs(bias), tol,
				     fabs(want)) &&
		       near_epilogue(got, gelu(real(g.aux[at])), 1 + fabs(real(g.aux[at])),
				     ELEMENT_TOL, GELU_BEFORE * fabs(real(g.aux[at])));
	case GEMM_DGELU:	/* |gelu'| < 1.2 */
		return near_epilogue(got, want * gelu_grad(real(aux_in[at])),
				     2 * size + fabs(want), tol + ELEMENT_TOL, 1.2 * fabs(want));
	}
	return false;
}

/* Between rows and products nothing may be written. */
static bool gaps_whole(const void *x, size_t elem, long ld, const void *was, long rows)
{
	size_t row = ld * elem, used = g.n * elem;

	for (long i = 0; i < rows; i++)
		if (memcmp((const char *)x + i * row + used, (const char *)was + i * row + used,
			   row - used))
			return false;
	return true;
}

static bool elements(const void *before, const act_t *aux_in, int batch)
{
	for (int p = 0; p < batch; p++)
		for (int i = 0; i < g.m; i++)
			for (int j = 0; j < g.n; j++)
				if (!element(p, i, j, get(before, result, p * g.sc + i * g.ldc + j),
					     aux_in)) {
					diag("product %d element %d,%d", p, i, j);
					return false;
				}
	return true;
}

/* The sum of the rows of a [k][m]. */
static bool bias_gradient_right(void)
{
	bool good = true;

	for (int j = 0; g.db && j < g.m; j++) {
		double sum = 0, size = 0;

		for (int i = 0; i < g.k; i++) {
			double a = real(((const act_t *)g.a)[i * g.lda + j]);

			sum += a;
			size += fabs(a);
		}
		good &= near(g.db[j], sum, size, SUM_TOL(g.k));
	}
	return good;
}

/* @beta 0: c holds NaN before the call. A transposed a has a bias's gradient as well. */
static void test_gemm(int m, int n, int k, int flags, double alpha, double beta, int batch,
		      enum gemm_epilogue ep)
{
	bool ta = flags & TA, tb = flags & TB, gelu_out = ep == GEMM_BIAS_GELU;
	bool with_db = kernel == k_gemm_grad && ta && batch <= 1;
	long lda = (ta ? m : k) + gap, ldb = (tb ? k : n) + gap, ldc = n + gap, ldaux = ldc + gap;
	long sa = lda * (ta ? k : m), sb = ldb * (tb ? n : k), sc = ldc * m;
	size_t bytes = sc * MAX(batch, 1) * result, aux_bytes = m * ldaux * sizeof(act_t);
	act_t *a = normals(sa * MAX(batch, 1)), *b = normals(sb * MAX(batch, 1));
	act_t *bias = normals(n);
	void *before = result == ACC ? (void *)normals_acc(sc * MAX(batch, 1)) :
				       normals(sc * MAX(batch, 1));
	act_t *aux_in = normals(m * ldaux), *aux = guarded(aux_bytes);
	act_t *nan = guarded(bytes + aux_bytes);
	struct out db = { guarded(m * sizeof(grad_t)), m * sizeof(grad_t), NULL };
	struct out out[2] = { { guarded(bytes), bytes, beta ? before : NULL },
			      { aux, aux_bytes, gelu_out ? NULL : aux_in } };

	if (with_db)
		out[1] = db;
	g = (struct gemm) {
		.m = m, .n = n, .k = k, .ta = ta, .tb = tb, .a = a, .lda = lda, .b = b, .ldb = ldb,
		.c = out[0].x, .ldc = ldc, .alpha = alpha, .beta = beta, .batch = batch,
		.sa = flags & ONE_A ? 0 : sa, .sb = flags & ONE_B ? 0 : sb, .sc = sc, .ep = ep,
		.bias = flags & NO_BIAS ? NULL : bias, .aux = ep == GEMM_PLAIN ? NULL : aux,
		.ldaux = ldaux, .db = with_db ? db.x : NULL,
	};
	ok(threads_agree(call_gemm, out, batch > 1 ? 1 : 2) &&
	   elements(before, aux_in, MAX(batch, 1)) && bias_gradient_right() &&
	   gaps_whole(g.c, result, ldc, beta ? before : nan, (long)m * MAX(batch, 1)) &&
	   (!gelu_out || gaps_whole(aux, ACT, ldaux, nan, m)),
	   "gemm_matches_loops %d x %d x %d%s%s%s%s%s alpha %g beta %g batch %d epilogue %d%s", m,
	   n, k, ta ? " a^T" : "", tb ? " b^T" : "", flags & NO_BIAS ? " no bias" : "",
	   flags & ONE_A ? " one a" : "", flags & ONE_B ? " one b" : "", alpha, beta, batch, ep,
	   with_db ? " db" : "");
	unguard(a), unguard(b), unguard(bias), unguard(before);
	unguard(aux_in), unguard(aux), unguard(nan), unguard(out[0].x), unguard(db.x);
}

/* A row's result does not depend on what is multiplied beside it. */
static void test_few_rows(int n, int k)
{
	enum { ROWS = 8 };
	act_t *a = normals(ROWS * k), *b = normals((long)n * k);
	acc_t *all = guarded(ROWS * n * sizeof(*all)), *few = guarded(ROWS * n * sizeof(*few));
	bool good = true;

	for (int m = ROWS; m; m--) {
		k_gemm_acc(&(struct gemm) {
			.m = m, .n = n, .k = k, .tb = true, .a = a, .lda = k, .b = b, .ldb = k,
			.c = m == ROWS ? all : few, .ldc = n, .alpha = 1,
		});
		arch_sync();
		good &= m == ROWS || !memcmp(few, all, (size_t)m * n * sizeof(*few));
	}
	ok(good, "few_rows_have_their_own_bits %d x %d", n, k);
	unguard(a), unguard(b), unguard(all), unguard(few);
}

/* A step of three products: of weights, of others, and of what was just written. */
static struct {
	struct gemm product[3];
	param_t *w;
	size_t elems;
	bool rest;
} step;

static void step_body(void *arg)
{
	(void)arg;
	if (step.rest)
		k_weights_rest(step.w, step.elems * sizeof(*step.w));
	for (size_t i = 0; i < ARRAY_SIZE(step.product); i++)
		k_gemm(&step.product[i]);
	k_weights_rest(NULL, 0);
}

enum { STEPS = 4 };

/* @to: [STEPS][@n] what each step left in @x; in front of each the weights change. */
static void steps_run(acc_t *to, const act_t *x, size_t n, const grad_t *masters, bool rest)
{
	struct arch_graph graph = { 0 };

	step.rest = rest;
	for (int i = 0; i < STEPS; i++) {
		k_cast(step.w, masters + i * step.elems, step.elems);
		arch_replay(&graph, step_body, NULL);
		k_widen(to + i * n, x, n);
	}
	arch_sync();
}

static struct gemm by_rows(act_t *c, const act_t *a, const act_t *b, int m, int n, int k)
{
	return (struct gemm) {
		.m = m, .n = n, .k = k, .tb = true, .a = a, .lda = k, .b = b, .ldb = k, .c = c,
		.ldc = n, .alpha = 1,
	};
}

/* Reading weights early changes no bit: y = x w^T, z = y w'^T, s = x z^T. */
static void test_rest(int m, int n, int k)
{
	size_t elems = 2 * (size_t)n * k, size = (size_t)m * m;
	act_t *x = normals((long)m * k), *y = guarded((size_t)m * n * sizeof(*y));
	act_t *z = guarded((size_t)m * k * sizeof(*z)), *s = guarded(size * sizeof(*s));
	acc_t *got = guarded(STEPS * size * sizeof(*got));
	acc_t *want = guarded(STEPS * size * sizeof(*want));
	grad_t *masters = normals_acc(STEPS * elems);
	param_t *w = guarded(elems * sizeof(*w));
	bool good = true;

	step.product[0] = by_rows(y, x, w, m, n, k);
	step.product[1] = by_rows(z, y, w + (size_t)n * k, m, k, n);
	step.product[2] = by_rows(s, x, z, m, m, k);
	step.w = w, step.elems = elems;
	steps_run(want, s, size, masters, false);
	steps_run(got, s, size, masters, true);
	for (int i = 1; i < STEPS; i++)
		good &= !!memcmp(want + i * size, want, size * sizeof(*want));
	ok(good && !memcmp(got, want, STEPS * size * sizeof(*got)),
	   "weights_at_rest_change_no_bit %d x %d x %d", m, n, k);
	unguard(x), unguard(y), unguard(z), unguard(s);
	unguard(got), unguard(want), unguard(masters), unguard(w);
}

static struct {
	param_t *narrow;
	grad_t *wide;
	size_t n;
} cast;

static void call_cast(void)
{
	k_cast(cast.narrow, cast.wide, cast.n);
}

static void call_widen(void)
{
	k_widen(cast.wide, cast.narrow, cast.n);
}

static void test_cast(size_t n)
{
	struct out narrow = { guarded(n * sizeof(param_t)), n * sizeof(param_t), NULL };
	struct out wide = { guarded(n * sizeof(acc_t)), n * sizeof(acc_t), NULL };
	grad_t *src = normals_acc(n);
	bool good;

	cast.narrow = narrow.x, cast.wide = src, cast.n = n;
	good = threads_agree(call_cast, &narrow, 1);
	for (size_t i = 0; i < n; i++)
		good &= real(cast.narrow[i]) == real(act(src[i]));
	ok(good, "cast_matches_loops %zu", n);
	cast.wide = wide.x;
	good = threads_agree(call_widen, &wide, 1);
	for (size_t i = 0; i < n; i++)
		good &= cast.wide[i] == real(cast.narrow[i]);
	ok(good, "widen_matches_loops %zu", n);
	unguard(src), unguard(narrow.x), unguard(wide.x);
}

/* Halves between two activations go to the even one; what is not finite stays so. */
static void test_rounding(void)
{
	static const double one = 1 + 0x1p-8, three = 1 + 3 * 0x1p-8, above = 1 + 0x1.01p-8;
	const grad_t src[] = { one, three, above, -one, -three, 0, -0.0, 1e-40, 3.39e38, INFINITY,
			       -INFINITY, NAN };
	param_t dst[ARRAY_SIZE(src)];
	bool good = true;

	k_cast(dst, src, ARRAY_SIZE(src));
	arch_sync();
	for (size_t i = 0; i < ARRAY_SIZE(src) - 1; i++) {
		act_t want = act(src[i]);

		good &= !memcmp(&dst[i], &want, sizeof(want));
	}
	ok(good && isnan(real(dst[ARRAY_SIZE(src) - 1])), "cast_rounds_to_nearest_even");
}

/* Few rows, 16-byte rows of both operands: what a GPU has a kernel of its own for. */
static void test_thin(int m, int n, int k)
{
	gap = 8;
	for (int ep = GEMM_PLAIN; ep <= GEMM_DGELU; ep++)
		test_gemm(m, n, k, TB, 1, 0, 1, ep);
	test_gemm(m, n, k, TB, -0.5, 1, 1, GEMM_PLAIN);
	gap = 3;
}

static void test_workspace(void)
{
	void *mem = arch_alloc(ROUND_UP(k_workspace() + 1, TENSOR_ALIGN));

	k_workspace_use(mem);
	test_gemm(37, 53, 29, TB, 1, 0, 0, GEMM_PLAIN);
	arch_free(mem, ROUND_UP(k_workspace() + 1, TENSOR_ALIGN));
}

/* What a cpu without products of bf16 does, on any cpu; shapes are of more than one panel. */
static void widened(const struct gemm *p)
{
	blas_gemm_widened(p->ta, p->tb, p->m, p->n, p->k, p->alpha, p->a, p->lda, p->b, p->ldb,
			  p->beta, p->c, p->ldc);
}

static void test_widened(void)
{
	kernel = widened;
	for (int flags = 0; flags < 4; flags++) {
		test_gemm(3, 5, 7, flags, 1, 0, 0, GEMM_PLAIN);
		test_gemm(300, 530, 270, flags, -0.5, 1, 0, GEMM_PLAIN);
	}
}

int main(void)
{
	static const int shapes[][3] = {
		{ 1, 1, 1 }, { 1, 700, 37 }, { 8, 300, 64 }, { 9, 17, 5 }, { 37, 53, 29 },
		{ 130, 70, 300 }, { 1500, 33, 24 }, { 40, 1800, 20 }, { 250, 1100, 60 },
	};

	device_open(0);
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		const int *s = shapes[i];

		for (int flags = 0; flags < 4; flags++)
			test_gemm(s[0], s[1], s[2], flags, 1, 0, 0, GEMM_PLAIN);
		test_gemm(s[0], s[1], s[2], TB, -0.5, 1, 0, GEMM_PLAIN);
		test_gemm(s[0], s[1], s[2], 0, 2, 0.25, 1, GEMM_PLAIN);
		for (int ep = GEMM_BIAS; ep <= GEMM_DGELU; ep++)
			test_gemm(s[0], s[1], s[2], TB, 1, 0, 1, ep);
		test_gemm(s[0], s[1], s[2], TB | NO_BIAS, 1, 0, 1, GEMM_BIAS);
		test_gemm(s[0], s[1], s[2], TB | NO_BIAS, 1, 0, 1, GEMM_BIAS_GELU);
		test_gemm(s[0], s[1], s[2], 0, 1, 0, 1, GEMM_DGELU);
	}
	test_thin(1, 700, 64);
	test_thin(5, 37, 40);	/* no multiple of what a warp takes */
	test_thin(16, 300, 1000);
	test_thin(17, 37, 40);
	test_thin(33, 700, 264);
	test_thin(64, 96, 3080);
	gap = 8;
	test_gemm(50, 100, 520, TB, 1, 0, 3, GEMM_PLAIN);
	test_gemm(9, 64, 256, TB, 1, 1, 12, GEMM_PLAIN);
	gap = 3;
	for (int flags = 0; flags < 4; flags++) {
		test_gemm(65, 48, 33, flags, 1, 0, 5, GEMM_PLAIN);
		test_gemm(140, 130, 64, flags, 0.5, 1, 12, GEMM_PLAIN);
	}
	test_gemm(65, 48, 33, TB | ONE_A, 1, 0, 5, GEMM_PLAIN);
	test_gemm(140, 130, 64, ONE_B, 0.5, 1, 12, GEMM_PLAIN);
	test_gemm(7, 83, 45, TB, 0.5, 1, 5, GEMM_PLAIN);
	test_gemm(3, 83, 45, TB | ONE_A, 1, 0, 5, GEMM_PLAIN);
	test_rest(1, 304, 3080);
	test_rest(8, 768, 768);
	test_rest(40, 64, 72);
	if (IS_ENABLED(CONFIG_ARCH_CPU)) {
		test_few_rows(83, 45);
		test_few_rows(128, 768);
	}
	kernel = k_gemm_acc;
	result = ACC;
	test_gemm(7, 300, 1000, TB, -0.5, 1, 0, GEMM_PLAIN);
	test_gemm(40, 300, 1000, TB, -0.5, 1, 0, GEMM_PLAIN);
	test_gemm(130, 70, 300, TB, 1, 0, 0, GEMM_PLAIN);
	test_gemm(140, 130, 64, TA | ONE_B, 0.5, 1, 12, GEMM_PLAIN);
	if (IS_ENABLED(CONFIG_ARCH_CPU) && ACT != ACC)
		test_widened();
	kernel = k_gemm_grad;
	test_gemm(300, 170, 90, TA, 1, 0, 0, GEMM_PLAIN);
	test_gemm(300, 170, 90, TA, 1, 1, 0, GEMM_PLAIN);
	test_gemm(1, 1, 1, TA, 1, 0, 0, GEMM_PLAIN);
	test_gemm(130, 5, 7, TA, 2, 0, 0, GEMM_PLAIN);
	test_gemm(67, 40, 1000, TA, 1, 0, 1, GEMM_PLAIN);
	test_gemm(3072, 20, 200, TA, -0.5, 1, 0, GEMM_PLAIN);
	test_gemm(65, 48, 33, TA, 1, 0, 5, GEMM_PLAIN);
	kernel = k_gemm;
	result = ACT;
	test_workspace();
	test_rounding();
	test_cast(1);
	test_cast(50001);
	return tap_done();
}
