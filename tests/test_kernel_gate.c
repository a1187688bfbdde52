/* SPDX-License-Identifier: MIT */
/*
 * Pooling over positions and the factors of heads, against plain loops in double.
 */
#include "kernel.h"
#include "kernels_gate.h"

static struct {
	acc_t *y, *x;
	int b, t, c;
	bool in_place;
	void (*kernel)(acc_t *y, const acc_t *x, int b, int t, int c);
} p;

static void call_pool(void)
{
	size_t bytes = (size_t)p.b * p.t * p.c * sizeof(acc_t);

	if (p.in_place)
		memcpy(p.y, p.x, bytes);
	p.kernel(p.y, p.in_place ? p.y : p.x, p.b, p.t, p.c);
}

/* Weight of x_u in y_t. */
static double pool_weight(int t, int u)
{
	if (p.kernel == k_causal_mean_fwd)
		return u <= t ? 1.0 / (t + 1) : 0;
	if (p.kernel == k_causal_mean_bwd)
		return u >= t ? 1.0 / (u + 1) : 0;
	return 1.0 / p.t;
}

static bool pool_right(void)
{
	bool good = true;

	for (int i = 0; i < p.b; i++)
		for (int t = 0; t < p.t; t++)
			for (int j = 0; j < p.c; j++) {
				double sum = 0, size = 0;

				for (int u = 0; u < p.t; u++) {
					double term = pool_weight(t, u) *
						      p.x[((size_t)i * p.t + u) * p.c + j];

					sum += term;
					size += fabs(term);
				}
				good &= near(p.y[((size_t)i * p.t + t) * p.c + j], sum, size,
					     SUM_TOL(p.t));
				if (!good)
					return false;
			}
	return good;
}

static void test_pool(int b, int t, int c)
{
	static const struct {
		const char *name;
		void (*kernel)(acc_t *y, const acc_t *x, int b, int t, int c);
	} kernels[] = {
		{ "causal_mean_fwd", k_causal_mean_fwd }, { "causal_mean_bwd", k_causal_mean_bwd },
		{ "sequence_mean_fwd", k_sequence_mean_fwd },
		{ "sequence_mean_bwd", k_sequence_mean_bwd },
	};
	size_t n = (size_t)b * t * c;
	struct out out = { guarded(n * sizeof(acc_t)), n * sizeof(acc_t), NULL };

	p.b = b, p.t = t, p.c = c, p.x = normals_acc(n), p.y = out.x;
	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++) {
		p.kernel = kernels[i].kernel;
		for (p.in_place = false;; p.in_place = true) {
			ok(threads_agree(call_pool, &out, 1) && pool_right(),
			   "%s_matches_loops %d x %d x %d%s", kernels[i].name, b, t, c,
			   p.in_place ? " in place" : "");
			if (p.in_place || p.kernel == k_sequence_mean_fwd)
				break;
		}
	}
	unguard(p.x), unguard(out.x);
}

static struct {
	acc_t *zbar, *sum;
	const acc_t *z;
	const int32_t *pos;
	long sum_seq;
	int b, t, c;
	bool in_place;
} m;

static void call_step(void)
{
	if (m.in_place)
		memcpy(m.zbar, m.z, (size_t)m.b * m.c * sizeof(*m.z));
	k_causal_mean_step(m.zbar, m.sum, m.sum_seq, m.in_place ? m.zbar : m.z, m.pos, m.b, m.c);
}

static void call_fill(void)
{
	k_causal_mean_fill(m.sum, m.sum_seq, m.zbar, m.pos, m.b, m.t, m.c);
}

/* Row @t of every sequence i stands at place (t + i) mod T: ragged positions. */
static bool steps_right(const acc_t *all, int T)
{
	acc_t *row = xmalloc((size_t)m.b * m.c * sizeof(*row));
	int32_t *pos = xcalloc(m.b, sizeof(*pos));
	bool good = true;

	m.pos = pos, m.z = row;
	for (int n = 0; n < T + m.b - 1 && good; n++) {
		/* sequence i begins at step i, and again at T + i */
		for (int i = 0; i < m.b; i++) {
			pos[i] = n < i ? 0 : (n - i) % T;
			memcpy(row + i * m.c, all + ((size_t)i * T + pos[i]) * m.c,
			       m.c * sizeof(*row));
		}
		call_step();
		arch_sync();
		for (int i = 0; i < m.b; i++)
			for (int j = 0; j < m.c && good; j++) {
				double sum = 0, size = 0;

				for (int u = 0; u <= pos[i]; u++) {
					sum += all[((size_t)i * T + u) * m.c + j];
					size += fabs((double)all[((size_t)i * T + u) * m.c + j]);
				}
				good &= near(m.zbar[i * m.c + j], sum / (pos[i] + 1),
					     size / (pos[i] + 1), SUM_TOL(pos[i] + 1)) &&
					near(m.sum[i * m.sum_seq + j], sum, size,
					     SUM_TOL(pos[i] + 1));
			}
	}
	free(row), free(pos);
	return good;
}

static void test_mean_step(int b, int T, int c)
{
	enum { GAP = 3 };
	size_t bytes = ((size_t)b * (c + GAP)) * sizeof(acc_t);
	struct out sum = { guarded(bytes), bytes, NULL };
	struct out zbar = { guarded(b * c * sizeof(acc_t)), b * c * sizeof(acc_t), NULL };
	acc_t *all = normals_acc((size_t)b * T * c);

	m.b = b, m.c = c, m.sum = sum.x, m.zbar = zbar.x, m.sum_seq = c + GAP;
	for (int in_place = 0; in_place < 2; in_place++) {
		m.in_place = in_place;
		memset(m.sum, 0xFF, bytes);	/* position 0 must not read */
		ok(steps_right(all, T) && guard_whole(&sum) && guard_whole(&zbar) &&
		   isnan(m.sum[c]), "causal_mean_step_matches_loops %d x %d x %d%s", b, T, c,
		   in_place ? " in place" : "");
	}
	unguard(sum.x), unguard(zbar.x), unguard(all);
}

/* The sums that as many steps would have left. */
static void test_mean_fill(int b, int t, int c)
{
	size_t bytes = (size_t)b * (c + 1) * sizeof(acc_t), n = (size_t)b * t * c;
	struct out sum = { guarded(bytes), bytes, NULL };
	acc_t *z = normals_acc(n), *zbar = guarded(n * sizeof(acc_t));
	int32_t *len = xcalloc(b, sizeof(*len));
	bool good;

	k_causal_mean_fwd(zbar, z, b, t, c);
	for (int i = 0; i < b; i++)
		len[i] = i ? (i * 7) % t + 1 : t;
	m.b = b, m.t = t, m.c = c, m.sum = sum.x, m.sum_seq = c + 1, m.zbar = zbar, m.pos = len;
	good = threads_agree(call_fill, &sum, 1);
	for (int i = 0; i < b; i++)
		for (int j = 0; j < c && good; j++) {
			double want = 0, size = 0;

			for (int u = 0; u < len[i]; u++) {
				want += z[((size_t)i * t + u) * c + j];
				size += fabs((double)z[((size_t)i * t + u) * c + j]);
			}
			good &= near(m.sum[i * m.sum_seq + j], want, size, SUM_TOL(len[i]));
		}
	ok(good && isnan(m.sum[c]), "causal_mean_fill_matches_loops %d x %d x %d", b, t, c);
	unguard(sum.x), unguard(z), unguard(zbar);
	free(len);
}

static struct {
	acc_t *gamma, *dgamma, *zbar, *dzbar;
	param_t *w;
	grad_t *dw;
	void *scratch;
	int n, heads, c;
	double alpha;
} g;

static void call_gate(void)
{
	k_head_gate_fwd(g.gamma, g.zbar, g.w, g.n, g.heads, g.c, g.alpha);
}

static void call_gate_bwd(void)
{
	k_head_gate_bwd(g.dzbar, g.dw, g.gamma, g.dgamma, g.zbar, g.w, g.n, g.heads, g.c, g.alpha,
			g.scratch);
}

static bool gate_right(void)
{
	bool good = true;

	for (int i = 0; i < g.n; i++)
		for (int h = 0; h < g.heads && good; h++) {
			double z = 0, size = 0;

			for (int j = 0; j < g.c; j++) {
				double term = g.zbar[i * g.c + j] * real(g.w[h * g.c + j]);

				z += term;
				size += fabs(term);
			}
			/* the slope of a sigmoid is at most 1/4 */
			good &= near(g.gamma[i * g.heads + h],
				     1 - g.alpha + g.alpha / (1 + exp(-z)),
				     1 + g.alpha * size / 4, SUM_TOL(g.c) + ELEMENT_TOL);
		}
	return good;
}

/* What reaches the sum before the sigmoid; gamma of forward is given. */
static double gate_dz(int i, int h)
{
	double gate = (g.gamma[i * g.heads + h] - (1 - g.alpha)) / g.alpha;

	return g.alpha ? g.dgamma[i * g.heads + h] * g.alpha * gate * (1 - gate) : 0;
}

/*
 * gamma errs by UNIT, so that gate errs by UNIT / alpha and a slope alpha gate (1 - gate)
 * by UNIT, whatever its size.
 */
static bool gate_bwd_right(void)
{
	bool good = true;

	for (int i = 0; i < g.n; i++)
		for (int j = 0; j < g.c && good; j++) {
			double sum = 0, size = 0, w;

			for (int h = 0; h < g.heads; h++) {
				w = real(g.w[h * g.c + j]);
				sum += gate_dz(i, h) * w;
				size += fabs(g.dgamma[i * g.heads + h] * w);
			}
			good &= near(g.dzbar[i * g.c + j], sum, size, SUM_TOL(g.heads));
		}
	for (int h = 0; h < g.heads; h++)
		for (int j = 0; j < g.c && good; j++) {
			double sum = 0, size = 0, z;

			for (int i = 0; i < g.n; i++) {
				z = g.zbar[i * g.c + j];
				sum += gate_dz(i, h) * z;
				size += fabs(g.dgamma[i * g.heads + h] * z);
			}
			good &= near(g.dw[h * g.c + j], sum, size, SUM_TOL(g.n));
		}
	return good;
}

static void test_gate(int n, int heads, int c, double alpha)
{
	size_t nh = n * heads * sizeof(acc_t), nc = n * c * sizeof(acc_t);
	size_t hc = heads * c * sizeof(grad_t), size = k_head_gate_scratch(n, heads, c);
	struct out fwd = { guarded(nh), nh, NULL };
	struct out bwd[] = { { guarded(nc), nc, NULL }, { guarded(hc), hc, NULL } };

	g.n = n, g.heads = heads, g.c = c, g.alpha = alpha;
	g.gamma = fwd.x, g.dzbar = bwd[0].x, g.dw = bwd[1].x, g.scratch = guarded(size);
	g.zbar = normals_acc(n * c), g.w = normals(heads * c);
	g.dgamma = normals_acc(n * heads);
	ok(threads_agree(call_gate, &fwd, 1) && gate_right(),
	   "head_gate_fwd_matches_loops %d x %d, %d heads, alpha %g", n, c, heads, alpha);
	ok(threads_agree(call_gate_bwd, bwd, 2) && gate_bwd_right() &&
	   guard_whole(&(struct out) { g.scratch, size, NULL }) &&
	   size <= HEAD_GATE_SCRATCH_MAX(n, heads, c),
	   "head_gate_bwd_matches_loops %d x %d, %d heads, alpha %g", n, c, heads, alpha);
	unguard(fwd.x), unguard(bwd[0].x), unguard(bwd[1].x), unguard(g.scratch);
	unguard(g.zbar), unguard(g.w), unguard(g.dgamma);
}

/* Without a factor there is no gradient, whatever gamma says. */
static void test_gate_off(void)
{
	acc_t gamma[] = { 1, NAN }, dgamma[] = { 1, 1 }, zbar[] = { 1 }, dzbar[] = { NAN };
	grad_t dw[] = { NAN, NAN };
	param_t w[] = { act(1), act(1) };
	void *mem = guarded(k_head_gate_scratch(1, 2, 1));

	k_head_gate_bwd(dzbar, dw, gamma, dgamma, zbar, w, 1, 2, 1, 0, mem);
	arch_sync();
	ok(dzbar[0] == 0 && dw[0] == 0 && dw[1] == 0, "head_gate_bwd_alpha_0_is_0");
	unguard(mem);
}

int main(void)
{
	device_open(0);
	test_pool(1, 1, 1);
	test_pool(2, 37, 5);
	test_pool(3, 90, 70);
	test_mean_step(1, 1, 1);
	test_mean_step(3, 20, 7);
	test_mean_fill(1, 1, 1);
	test_mean_fill(4, 50, 67);
	test_gate(1, 1, 1, 0.25);
	test_gate(5, 3, 7, 1);
	test_gate(300, 12, 64, 0.1);
	test_gate(129, 70, 20, 0.25);
	test_gate_off();
	return tap_done();
}
