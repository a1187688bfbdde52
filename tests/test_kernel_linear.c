// SPDX-License-Identifier: MIT
/*
 * What stands around a linear recurrence, against plain loops in double: decays, keys of
 * length 1, the inputs of a state space, gated norms.
 */
#include "kernel.h"
#include "kernels_linattn.h"
#include "silu.h"

/* ---- decays and keys -------------------------------------------------------------------- */

static struct {
	acc_t *g;
	const acc_t *dg;
	act_t *dz, *y, *dx;
	const act_t *z, *dy;
	int n, width;
} e;

static void call_decay(void)
{
	k_log_decay_fwd(e.g, e.z, (size_t)e.n * e.width, 0.7);
	k_log_decay_bwd(e.dz, e.dg, e.z, (size_t)e.n * e.width, 0.7);
	k_unit_fwd(e.y, e.z, e.n, e.width);
	k_unit_bwd(e.dx, e.dy, e.z, e.n, e.width);
}

static bool decays_right(void)
{
	bool good = true;

	for (int i = 0; i < e.n * e.width; i++) {
		double z = real(e.z[i]), g = (z < 0 ? z : 0) - log1p(exp(-fabs(z)));

		good &= near(e.g[i], g / 0.7, fabs(g), ELEMENT_TOL);
		good &= near_act(e.dz[i], e.dg[i] * sigmoid(-z) / 0.7, fabs(e.dg[i]) * sigmoid(-z),
				 ELEMENT_TOL * (1 + fabs(z)));
	}
	return good;
}

static bool units_right(void)
{
	bool good = true;

	for (int i = 0; i < e.n; i++) {
		double size = 1e-12, along = 0, dsize = 0;

		for (int j = 0; j < e.width; j++) {
			double x = real(e.z[i * e.width + j]), d = real(e.dy[i * e.width + j]);

			size += x * x;
			along += x * d;
			dsize += fabs(x * d);
		}
		for (int j = 0; j < e.width; j++) {
			int at = i * e.width + j;
			double x = real(e.z[at]), r = 1 / sqrt(size);

			good &= near_act(e.y[at], x * r, fabs(x * r), SUM_TOL(e.width));
			good &= near_act(e.dx[at], r * (real(e.dy[at]) - x * along / size),
					 r * (fabs(real(e.dy[at])) + fabs(x) * dsize / size),
					 SUM_TOL(e.width));
		}
	}
	return good;
}

/* With the tails, where nothing may be lost. */
static void test_decay(int n, int width)
{
	static const double tails[] = { -1000, -80, -20, -1e-3, 0, 1e-6, 15, 80, 1000 };
	size_t size = (size_t)n * width;
	act_t *z = normals(size);
	struct out out[] = { { guarded(size * ACC), size * ACC, NULL },
			     { guarded(size * ACT), size * ACT, NULL },
			     { guarded(size * ACT), size * ACT, NULL },
			     { guarded(size * ACT), size * ACT, NULL } };

	for (size_t i = 0; i < MIN(size, ARRAY_SIZE(tails)); i++)
		z[i] = act(tails[i]);
	e.g = out[0].x, e.dz = out[1].x, e.y = out[2].x, e.dx = out[3].x;
	e.z = z, e.dg = normals_acc(size), e.dy = normals(size), e.n = n, e.width = width;
	ok(threads_agree(call_decay, out, 4) && decays_right(), "log_decay_matches_loops %d x %d", n,
	   width);
	ok(units_right(), "unit_matches_loops");
	for (int i = 0; i < 4; i++)
		unguard(out[i].x);
	unguard(z), unguard((void *)e.dg), unguard((void *)e.dy);
}

/* ---- inputs of a state space ------------------------------------------------------------- */

static struct {
	struct ssm a;
	struct ssm_grad d;
	act_t *v, *y;
	const act_t *o;
} m;

static void call_ssm(void)
{
	k_ssm_fwd(&m.a, m.v);
	k_ssm_skip(&m.a, m.y, m.o);
	k_ssm_bwd(&m.a, &m.d);
}

/* Of head @h: rows, and what is summed over them. */
static bool ssm_right(int h)
{
	double bias = 0, a_log = 0, skip = 0, size = 1e-3, decay = exp(m.a.a_log[h]);
	bool good = true;

	for (int i = 0; i < m.a.n; i++) {
		double raw = real(m.a.raw[i * m.a.raw_row + h]) + m.a.dt_bias[h];
		double dt = (raw > 0 ? raw : 0) + log1p(exp(-fabs(raw)));
		double dg = m.d.dg[i * m.a.heads + h], ddt = -dg * decay, terms = fabs(ddt);

		good &= near(m.a.dt[i * m.a.heads + h], dt, dt + fabs(raw), ELEMENT_TOL);
		good &= near(m.a.g[i * m.a.heads + h], -dt * decay, (dt + fabs(raw)) * decay,
			     ELEMENT_TOL);
		for (int p = 0; p < m.a.p; p++) {
			long at = (i * m.a.heads + h) * m.a.p + p, in = i * m.a.x_row + h * m.a.p + p;
			double x = real(m.a.x[in]), dv = real(m.d.dv[at]), dy = real(m.d.dy[at]);
			double d = m.a.d[h];

			good &= near_act(m.v[at], dt * x, (dt + fabs(raw)) * fabs(x), ELEMENT_TOL);
			good &= near_act(m.y[at], real(m.o[at]) + d * x,
					 fabs(real(m.o[at])) + fabs(d * x), ELEMENT_TOL);
			good &= near_act(m.d.dx[in], dt * dv + d * dy,
					 (dt + fabs(raw)) * fabs(dv) + fabs(d * dy), ELEMENT_TOL);
			ddt += dv * x;
			terms += fabs(dv * x);
			skip += dy * x;
			size += fabs(dy * x);
		}
		good &= near_act(m.d.draw[i * m.a.raw_row + h], ddt * sigmoid(raw), terms,
				 ELEMENT_TOL + SUM_TOL(m.a.p));
		bias += ddt * sigmoid(raw);
		a_log -= dg * dt * decay;
		size += terms + fabs(dg * dt * decay);
	}
	good &= near(m.d.ddt_bias[h], bias, size, ELEMENT_TOL + SUM_TOL(70));
	good &= near(m.d.da_log[h], a_log, size, ELEMENT_TOL + SUM_TOL(70));
	return good && near(m.d.dd[h], skip, size, SUM_TOL(70));
}

static void test_ssm(int n, int heads, int p)
{
	size_t width = (size_t)heads * p, row = width + row_gap(width), all = n * width;
	struct out out[] = { { guarded(n * heads * ACC), n * heads * ACC, NULL },
			     { guarded(n * heads * ACC), n * heads * ACC, NULL },
			     { guarded(all * ACT), all * ACT, NULL },
			     { guarded(all * ACT), all * ACT, NULL },
			     { guarded(n * row * ACT), n * row * ACT, NULL },
			     { guarded(n * (heads + row_gap(heads)) * ACT), n * (heads + row_gap(heads)) * ACT, NULL },
			     { guarded(3 * heads * sizeof(grad_t)), 3 * heads * sizeof(grad_t), NULL } };
	grad_t *sums = out[6].x;
	bool good;

	m.a = (struct ssm){ .n = n, .heads = heads, .p = p, .x = normals(n * row), .x_row = row,
			    .raw = normals(n * (heads + row_gap(heads))), .raw_row = heads + row_gap(heads),
			    .dt_bias = normals_acc(heads), .a_log = normals_acc(heads),
			    .d = normals_acc(heads), .dt = out[0].x, .g = out[1].x };
	m.v = out[2].x, m.y = out[3].x, m.o = normals(all);
	m.d = (struct ssm_grad){ .dy = normals(all), .dv = normals(all), .dg = normals_acc(n * heads),
				 .dx = out[4].x, .draw = out[5].x, .ddt_bias = sums,
				 .da_log = sums + heads, .dd = sums + 2 * heads };
	good = threads_agree(call_ssm, out, 7);
	for (int h = 0; h < heads; h++)
		good &= ssm_right(h);
	ok(good, "ssm_matches_loops %d rows, %d heads of %d", n, heads, p);
	for (int i = 0; i < 7; i++)
		unguard(out[i].x);
	unguard((void *)m.a.x), unguard((void *)m.a.raw), unguard((void *)m.o);
	unguard((void *)m.d.dy), unguard((void *)m.d.dv), unguard((void *)m.d.dg);
}

/* ---- gated norms ---------------------------------------------------------------------------- */

static struct {
	struct gated_norm a;
	act_t *dx, *dz;
	grad_t *dw;
	const act_t *dy;
} g;

static void call_norm(void)
{
	k_gated_norm_fwd(&g.a);
	k_gated_norm_bwd(&g.a, g.dx, g.dz, g.dw, g.dy);
}

static double norm_gate(long i, int group, int j)
{
	return g.a.z ? real(g.a.z[i * g.a.z_row + group * g.a.width + j]) : 0;
}

/* What is normalised, and the gradient that comes back through a gate behind. */
static double norm_in(long i, int group, int j)
{
	double x = real(g.a.x[(i * g.a.groups + group) * g.a.width + j]);

	return g.a.z && g.a.gate_first ? x * silu(norm_gate(i, group, j)) : x;
}

static double norm_dy(long i, int group, int j)
{
	double d = real(g.dy[(i * g.a.groups + group) * g.a.width + j]);

	return g.a.z && !g.a.gate_first ? d * silu(norm_gate(i, group, j)) : d;
}

static double norm_weight(int group, int j)
{
	return g.a.w ? g.a.w[group * g.a.w_group + j] : 1;
}

static double norm_rstd(long i, int group)
{
	double sum = 0;

	for (int j = 0; j < g.a.width; j++)
		sum += norm_in(i, group, j) * norm_in(i, group, j);
	return g.a.w ? 1 / sqrt(sum / g.a.width + g.a.epsilon) : 1;
}

static bool norm_group_right(long i, int group)
{
	double r = norm_rstd(i, group), dot = 0, size = 0, tol = ELEMENT_TOL + SUM_TOL(g.a.width);
	bool good = true;

	for (int j = 0; g.a.w && j < g.a.width; j++) {
		double one = norm_dy(i, group, j) * norm_weight(group, j) * norm_in(i, group, j);

		dot += one * r * r / g.a.width;
		size += fabs(one) * r * r / g.a.width;
	}
	for (int j = 0; j < g.a.width; j++) {
		long at = (i * g.a.groups + group) * g.a.width + j;
		double z = norm_gate(i, group, j), in = norm_in(i, group, j), w = norm_weight(group, j);
		double y = in * r * w, du = r * (norm_dy(i, group, j) * w - in * dot), dx = du, dz = 0;
		double big = r * (fabs(norm_dy(i, group, j) * w) + fabs(in) * size), zsize = 1 + fabs(z);

		if (g.a.z && g.a.gate_first) {
			dx = du * silu(z);
			dz = du * real(g.a.x[at]) * silu_grad(z);
			big *= zsize * (1 + fabs(real(g.a.x[at])));
		} else if (g.a.z) {
			dz = real(g.dy[at]) * y * silu_grad(z);
			big += zsize * fabs(real(g.dy[at]) * y);
			y *= silu(z);
		}
		good &= near_act(g.a.y[at], y, zsize * fabs(in * r * w), tol);
		good &= near_act(g.dx[at], dx, big, tol);
		if (g.a.z)
			good &= near_act(g.dz[i * g.a.z_row + group * g.a.width + j], dz, big, tol);
	}
	return good;
}

static bool norm_sums_right(int groups)
{
	bool good = true;

	for (int group = 0; group < groups; group++)
		for (int j = 0; j < g.a.width; j++) {
			double sum = 0, size = 1e-3;

			for (int i = 0; i < g.a.n; i++)
				for (int h = g.a.w_group ? group : 0;
				     h < (g.a.w_group ? group + 1 : g.a.groups); h++) {
					double one = norm_dy(i, h, j) * norm_in(i, h, j) *
						     norm_rstd(i, h);

					sum += one;
					size += fabs(one);
				}
			good &= near(g.dw[group * g.a.w_group + j], sum, size,
				     ELEMENT_TOL + SUM_TOL(64 * g.a.groups + g.a.width));
		}
	return good;
}

static void test_norm(int n, int groups, int width, bool weight, bool shared, bool gate, bool first)
{
	size_t all = (size_t)n * groups * width, row = groups * width + row_gap(width);
	size_t weights = (size_t)width * (shared ? 1 : groups);
	struct out out[] = { { guarded(all * ACT), all * ACT, NULL },
			     { guarded(all * ACT), all * ACT, NULL },
			     { guarded(n * row * ACT), n * row * ACT, NULL },
			     { guarded(weights * sizeof(grad_t)), weights * sizeof(grad_t), NULL },
			     { guarded(n * groups * ACC), n * groups * ACC, NULL } };
	bool good;

	g.a = (struct gated_norm){ .n = n, .groups = groups, .width = width, .gate_first = first,
				   .epsilon = 1e-5, .x = normals(all),
				   .z = gate ? normals(n * row) : NULL, .z_row = row,
				   .w = weight ? normals_acc(weights) : NULL,
				   .w_group = shared ? 0 : width, .rstd = out[4].x, .y = out[0].x };
	g.dx = out[1].x, g.dz = gate ? out[2].x : NULL, g.dw = weight ? out[3].x : NULL;
	g.dy = normals(all);
	good = threads_agree(call_norm, out, 5);
	for (long i = 0; i < n; i++)
		for (int group = 0; group < groups; group++)
			good &= norm_group_right(i, group);
	good &= !weight || norm_sums_right(shared ? 1 : groups);
	ok(good, "gated_norm_matches_loops %d x %d x %d%s%s%s", n, groups, width,
	   weight ? shared ? ", one weight" : ", weights" : "", gate ? ", a gate" : "",
	   first ? " first" : "");
	for (int i = 0; i < 5; i++)
		unguard(out[i].x);
	unguard((void *)g.a.x), unguard((void *)g.dy);
}

int main(void)
{
	device_open(0);
	test_decay(1, 9);
	test_decay(70, 65);
	test_decay(300, 64);
	test_ssm(1, 1, 1);
	test_ssm(70, 3, 66);
	test_ssm(130, 5, 64);
	test_norm(1, 1, 1, true, false, true, true);
	test_norm(70, 3, 33, true, true, true, false);
	test_norm(70, 2, 130, true, false, true, true);
	test_norm(9, 5, 16, true, true, false, false);
	test_norm(70, 4, 64, true, true, true, false);
	test_norm(70, 3, 384, true, false, true, true);
	test_norm(9, 1, 3000, true, false, true, true);
	test_norm(9, 5, 16, false, false, true, false);
	return tap_done();
}
