// SPDX-License-Identifier: MIT
/*
 * tenon plan: parameters, bytes by phase, decode state and operations of this
 * binary, before anything is allocated; and whether a run could begin.
 */
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arch.h"
#include "data.h"
#include "dist.h"
#include "options.h"
#include "plan.h"
#include "util.h"

const char *const recompute_names[NR_RECOMPUTE] = { "none", "activations", "block" };

void plan_parts(const struct plan *p, struct part parts[PARTS])
{
	const struct part all[PARTS] = {
		{ "weights", "params", p->bytes_params },
		{ "gradients", "grads", p->bytes_grads },
		{ "moments", "optim", p->bytes_optim },
		{ "activations", "act", p->bytes_act },
		{ "scratch", "tmp", p->bytes_tmp },
		{ "caches", "cache", p->bytes_cache },
		{ "arena", "arena", p->bytes_arena },
	};

	for (int i = 0; i < PARTS; i++)
		parts[i] = all[i];
}

/* Of a forward of sub-layer @s (NR_SUB: the head) over one sequence. */
static double forward_flops(const struct model *m, int s, int t)
{
	struct work w = { .flops = 0 };

	if (t)
		model_work(m, s, 1, t, false, &w);
	free(w.products);
	return w.flops;
}

/* Of a step at position @pos. */
static double step_flops(const struct model *m, int s, int pos)
{
	struct work w = { .flops = 0 };

	if (s == NR_SUB || !m->sub[s].mixer->work_step)
		return forward_flops(m, s, pos + 1) - forward_flops(m, s, pos);
	m->sub[s].mixer->work_step(&w, pos, m->sub[s].has);
	free(w.products);
	return w.flops;
}

static bool power_of_two(int n)
{
	return n > 0 && !(n & (n - 1));
}

/* What training would take with each way to recompute. */
static void plan_recompute(struct report *r)
{
	enum recompute configured = r->m.recompute;
	struct plan plan;

	for (int kind = 0; kind < NR_RECOMPUTE; kind++) {
		r->m.recompute = kind;
		model_plan(&r->m, &plan, PHASE_TRAIN, 0);
		r->arena[kind] = plan.bytes_arena;
	}
	r->m.recompute = configured;
}

static void make_report(struct report *r, int sequences)
{
	model_layout(&r->m);
	r->sequences = sequences;
	for (int p = 0; p < PHASES; p++)
		model_plan(&r->m, &r->plan[p], p, sequences);
	plan_recompute(r);
	for (int s = 0; s <= NR_SUB; s++)
		r->flops_decode += step_flops(&r->m, s, T_MAX - 1);
	r->same_bits = power_of_two(CONFIG_GRADIENT_ACCUMULATION);
}

/* Whether a folder can be made or written at @out; nothing is left behind. */
static void check_out(const char *out)
{
	char *folder = xstrdup(out), *probe;
	struct stat st;
	int fd;

	while (stat(folder, &st)) {
		int err = errno;
		char *up;

		/* a link to nothing is in the way, not absent */
		if (err != ENOENT || !lstat(folder, &st))
			die("%s: %s; choose another %s", out, strerror(err), flag_words("out"));
		up = xstrdup(dirname(folder));
		free(folder);
		folder = up;
	}
	if (!S_ISDIR(st.st_mode))
		die("%s: %s is a file, not a folder; choose another %s", out, folder,
		    flag_words("out"));
	probe = xasprintf("%s/.tenon-XXXXXX", folder);
	fd = mkstemp(probe);
	if (fd < 0)
		die("%s: cannot write in %s: %s; make room or choose another %s", out, folder,
		    strerror(errno), flag_words("out"));
	close(fd);
	unlink(probe);
	free(probe);
	free(folder);
}

int verb_plan(int argc, char **argv)
{
	bool json = false, check = false;
	const char *data = NULL, *out = NULL;
	int64_t sequences = 1, device = 0;
	static struct report r;
	const struct opt opts[] = {
		{ "json", OPT_FLAG, &json, 0, 0, "for scripts" },
		{ "check", OPT_FLAG, &check, 0, 0, "end with status 2 where training does not fit" },
		{ "data", OPT_STRING, &data, 0, 0,
		  "with --check: data path that must hold a batch of each split" },
		{ "out", OPT_STRING, &out, 0, 0,
		  "with --check: run folder that it must be possible to write" },
		{ "sequences", OPT_INT, &sequences, 1, B_MAX, "of the decode phase" },
		{ "device", OPT_INT, &device, 0, 1023, "device number" },
		{ "elsewhere", OPT_FLAG, &r.elsewhere, 0, 0,
		  "of a run on another machine: open no device, ask for no memory" },
	};

	options_parse("plan", "", opts, ARRAY_SIZE(opts), argc, argv);
	if ((data || out) && !check)
		die("plan: --data and --out belong to --check");
	if (out)
		check_out(out);
	dist_init();
	if (!r.elsewhere)
		arch_init(device, 0);
	make_report(&r, sequences);
	if (check && !r.elsewhere)
		plan_refuse(&r.plan[PHASE_TRAIN]);
	if (data) {
		data_open(data);
		r.data = source_describe();
	}
	if (json)
		plan_json(&r);
	else if (check && !r.elsewhere)
		printf("plan: %" PRIu64 " parameters, %.1f of %.1f MiB: fits\n",
		       r.plan[PHASE_TRAIN].params, r.plan[PHASE_TRAIN].bytes_arena / MIB,
		       arch_memory() / MIB);
	else
		plan_text(&r);
	return 0;
}
