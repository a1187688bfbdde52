// SPDX-License-Identifier: MIT
/*
 * Linear RNNs beyond what every mixer is tested for: decode writes the state that is planned,
 * whatever the length; first values are those that are documented; heads that share their
 * decay have one state.
 */
#include "mixer_bench.h"

static const char *const names[] = { "gla", "mfa_gla", "mamba2" };

static size_t round_up(size_t n)
{
	return ROUND_UP(n, TENSOR_ALIGN);
}

/* States (@elems of them), and the last inputs of convolutions, each where a tensor may begin. */
static size_t expected(const char *name, size_t *elems)
{
	size_t n = H, taps = CONFIG_GLA_CONV ? CONFIG_GLA_CONV - 1 : 0, k, v, rings;

	if (!strcmp(name, "mamba2")) {
		n = CONFIG_MAMBA2_NUM_HEADS, k = CONFIG_MAMBA2_STATE_SIZE, v = CONFIG_MAMBA2_HEAD_DIM;
		rings = round_up((CONFIG_MAMBA2_CONV_KERNEL - 1) *
				 (n * v + 2 * CONFIG_MAMBA2_N_GROUPS * k) * ACT);
	} else if (!strcmp(name, "mfa_gla")) {
		k = CONFIG_MFA_LATENT_DIM;
		v = CONFIG_MFA_VALUE_DIM ? CONFIG_MFA_VALUE_DIM : k;
		rings = 3 * round_up(taps * k * ACT);
	} else {
		k = CONFIG_GLA_KEY_DIM ? CONFIG_GLA_KEY_DIM : MAX(D / 2, 1);
		v = CONFIG_GLA_VALUE_DIM ? CONFIG_GLA_VALUE_DIM : D;
		rings = 2 * round_up(taps * n * k * ACT) + round_up(taps * n * v * ACT);
	}
	*elems = n * k * v;
	return round_up(*elems * ACC) + rings;
}

static void state_is_what_is_planned(const struct mixer *x)
{
	struct cache_size planned = x->cache(0);
	size_t elems, bytes = expected(x->name, &elems);
	act_t *y = xmalloc(sizeof(*y) * T_MAX * C);
	int32_t none[MB] = { 0 };
	struct bench s;

	bench_init(&s, x, x->options ? x->options(0) : 0, true, 1, T_MAX);
	bench_decode(&s, none, y);
	ok(!planned.token && planned.size == bytes && s.cache_bytes == bytes &&
	   guards_whole(s.cache, bytes) && all_finite(s.cache, elems),
	   "%s: %zu bytes of state, whatever the length", x->name, planned.size);
	free(y);
}

/* ---- first values ------------------------------------------------------------------------ */

enum kind { OTHER, UNIFORM, NORMAL, CONSTANT };

/* What a tensor begins with: a bound, a deviation or a value. */
static enum kind start_of(const struct param *p, double *value)
{
	bool xavier = IS_ENABLED(CONFIG_INIT_XAVIER), gate = !strncmp(p->name, "gk_proj", 7);
	int in = p->dims[p->ndim - 1], out = p->ndim > 1 ? p->dims[p->ndim - 2] : 0;

	if (strstr(p->name, "conv1d.weight")) {
		*value = 1 / sqrt(in);
		return UNIFORM;
	}
	if (p->ndim == 1) {
		*value = gate ? CONFIG_GLA_GATE_BIAS : strstr(p->name, "conv1d") ? 0 : 1;
		return strcmp(p->name, "A_log") && strcmp(p->name, "dt_bias") ? CONSTANT : OTHER;
	}
	if (xavier) {
		*value = gate ? 1 / sqrt(in) : sqrt(6.0 / (in + out));
		return UNIFORM;
	}
	*value = strstr(p->name, "_c") == p->name + 1 ? 1 / sqrt(out) :
		 !strncmp(p->name, "o", 1) ? 0.02 / sqrt(NR_SUB) : 0.02;
	return NORMAL;
}

/* Decays and steps, by their definition: 1 to 16, and 0.001 to 0.1 through softplus. */
static bool other_right(const struct param *p, const char *name, const grad_t *x)
{
	double tol = sizeof(grad_t) == sizeof(double) ? 1e-12 : 1e-5;
	bool good = true;

	for (int i = 0; i < p->dims[0]; i++) {
		double u = rng_uniform(11, hash_name(name), i);

		if (!strcmp(p->name, "A_log"))
			good &= fabs(exp(x[i]) - (1 + 15 * u)) <= 16 * tol;
		else
			good &= fabs(log(log1p(exp(x[i])) / 0.001) - u * log(100)) <= 16 * tol;
	}
	return good;
}

static bool start_right(const struct param_entry *e)
{
	grad_t *x = xmalloc(e->numel * sizeof(*x));
	double value = 0, top = 0, sum = 0, square = 0, near = 5 / sqrt(e->numel);
	enum kind kind = start_of(e->p, &value);
	bool good;

	e->p->init(e, 0, e->numel, x, 11);
	for (size_t i = 0; i < e->numel; i++) {
		top = MAX(top, fabs(x[i]));
		sum += x[i] / e->numel;
		square += (double)x[i] * x[i] / e->numel;
	}
	if (kind == UNIFORM)	/* its square has a mean of value^2 / 3 */
		good = top <= value && fabs(square * 3 / (value * value) - 1) <= near &&
		       fabs(sum) <= near * value;
	else if (kind == NORMAL)
		good = fabs(square / (value * value) - 1) <= 2 * near && fabs(sum) <= near * value;
	else if (kind == CONSTANT)
		good = top == fabs(value) && fabs(sum - value) <= 1e-6;
	else
		good = other_right(e->p, e->name, x);
	if (!good)
		diag("%s: mean %g, mean square %g, largest %g, wanted %g", e->name, sum, square, top,
		     value);
	free(x);
	return good;
}

static void first_values(const struct mixer *x)
{
	struct model *m = xcalloc(1, sizeof(*m));
	bool good = true;

	model_layout(m);
	for (int i = 0; i < m->nr_entries; i++)
		for (int k = 0; k < x->nr_params; k++)
			if (m->entries[i].p == &x->params[k]) {
				good &= start_right(&m->entries[i]);
				good &= (x->params[k].ndim > 1) == !!(x->params[k].flags & DECAY);
			}
	ok(good, "%s: first values, and which of them decay", x->name);
	free(m);
}

/* ---- a shared decay ---------------------------------------------------------------------- */

enum {
	KEY = CONFIG_MFA_LATENT_DIM,
	VALUE = MAX(CONFIG_MFA_VALUE_DIM, 1),
};

static char *tensor(const struct bench *s, const char *name)
{
	for (int i = 0; i < s->x->nr_params; i++)
		if (!strcmp(s->x->params[i].name, name))
			return (char *)s->a.w + s->x->params[i].offset;
	die("no tensor %s", name);
}

/* The states [H][KEY][VALUE] after all positions of one sequence. */
static acc_t *states_of(struct bench *s)
{
	act_t *y = xmalloc(sizeof(*y) * T_MAX * C);
	int32_t none[MB] = { 0 };
	acc_t *states = xmalloc((size_t)H * KEY * VALUE * sizeof(*states));

	bench_decode(s, none, y);
	memcpy(states, s->cache, (size_t)H * KEY * VALUE * sizeof(*states));
	free(y);
	return states;
}

/*
 * S_h = S V_c,h: S itself column block by column block, from maps that are columns of the
 * identity.
 */
static void heads_share_a_state(const struct mixer *x)
{
	struct bench s;
	acc_t *drawn, *blocks;
	param_t *maps, *before;
	size_t size = (size_t)H * KEY * VALUE;
	double off = 0, top = 0;

	bench_init(&s, x, 0, true, 1, T_MAX);
	drawn = states_of(&s);
	maps = (param_t *)tensor(&s, "V_c");
	before = memcpy(xmalloc(size * sizeof(*maps)), maps, size * sizeof(*maps));
	for (int h = 0; h < H; h++)
		for (int i = 0; i < KEY; i++)
			for (int j = 0; j < VALUE; j++)
				maps[((size_t)h * KEY + i) * VALUE + j] = act(i == h * VALUE + j);
	blocks = states_of(&s);
	for (int h = 0; h < H; h++)
		for (int c = 0; c < KEY; c++)
			for (int e = 0; e < VALUE; e++) {
				double sum = 0;

				for (int j = 0; j < KEY; j++)
					sum += blocks[((size_t)(j / VALUE) * KEY + c) * VALUE + j % VALUE] *
					       real(before[((size_t)h * KEY + j) * VALUE + e]);
				top = MAX(top, fabs(sum));
				off = MAX(off, fabs(sum - drawn[((size_t)h * KEY + c) * VALUE + e]));
			}
	ok(off <= SAME_TOL * top, "heads_share_a_state (%.2g of %.2g)", off, top);
	free(drawn), free(blocks), free(before);
}

int main(void)
{
	int found = 0;

	device_open(1);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		const struct mixer *x = mixer_find(names[i]);

		if (!x)
			continue;
		found++;
		state_is_what_is_planned(x);
		first_values(x);
	}
	if (IS_ENABLED(CONFIG_MFA_SHARED_DECAY) && CONFIG_MFA_VALUE_DIM && H * VALUE >= KEY)
		heads_share_a_state(mixer_find("mfa_gla"));
	if (!found)
		ok(true, "states of fixed size # SKIP needs a linear RNN");
	return tap_done();
}
