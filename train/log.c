// SPDX-License-Identifier: MIT
/*
 * What a person sees: the first lines, then a line every LOG_INTERVAL steps; on a terminal
 * one that is written over for the steps between.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arch.h"
#include "dist.h"
#include "train.h"
#include "util.h"

#define MIB (1024.0 * 1024)

enum {
	ESTIMATE_AFTER = 3,	/* steps of this process; the first one is slower */
	WIDTH = 80,		/* of a terminal that does not say */
	WIDTH_MIN = 20,
};

/* @shown: the progress line stands on the terminal; @seconds: of a step, smoothed */
static struct {
	bool shown;
	int steps;
	double seconds, drawn;
} progress;

static void wipe(void)
{
	if (progress.shown)
		printf("\r\033[K");
	progress.shown = false;
}

/* The longest line that the terminal does not wrap; 0 where stdout is none. */
static int columns(void)
{
	struct winsize w;

	if (!isatty(STDOUT_FILENO))
		return 0;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || !w.ws_col)
		return WIDTH - 1;
	return MAX((int)w.ws_col, WIDTH_MIN) - 1;
}

void log_line(const char *fmt, ...)
{
	char *text, *line;
	va_list ap;

	if (!dist_leads())
		return;
	wipe();
	va_start(ap, fmt);
	text = xvasprintf(fmt, ap);
	va_end(ap);
	line = text_plain(text);
	puts(line);
	fflush(stdout);
	free(line);
	free(text);
}

void log_start(const struct run *r, int64_t from)
{
	const struct plan *p = &r->plan;

	log_line("run      " CONFIG_RUN_NAME ", block \"" CONFIG_BLOCK "\" x %d, seed %" PRId64
		 ", in %s", NL, r->st.seed, r->dir);
	log_line("build    %s", build_text());
	log_line("device   %s", arch_describe());
	log_line("data     %s", source_describe());
	log_line("model    %" PRIu64 " parameters in %d tensors", p->params, r->m.nr_entries);
	log_line("memory   %.1f MiB planned: weights %.1f, gradients %.1f (%d buffer%s), moments %.1f, "
		 "activations %.1f, scratch %.1f", p->bytes_arena / MIB, p->bytes_params / MIB,
		 p->bytes_grads / MIB, p->slots, &"s"[p->slots == 1], p->bytes_optim / MIB, p->bytes_act / MIB,
		 p->bytes_tmp / MIB);
	log_line("steps    %" PRId64 " of %d x %d x %d tokens", r->st.total,
		 CONFIG_GRADIENT_ACCUMULATION, B_MAX, T_MAX);
	if (from)
		log_line("resume   from step %" PRId64, from);
}

/* Seconds to the end: steps, and forward passes (a third of a step's work) of evaluations. */
static double left(const struct run *r)
{
	int64_t steps = r->st.total - r->st.step;
	int64_t evals = steps / CONFIG_EVAL_INTERVAL + 1;
	double micro = progress.seconds / CONFIG_GRADIENT_ACCUMULATION;
	double batches = CONFIG_EVAL_SAMPLES;

	if (SYNTHETIC)
		batches = MIN(batches, (double)CONFIG_DATA_VAL_SEQS / B_MAX);
	return steps * progress.seconds + evals * (micro / 3 * batches);
}

static const char *span(char text[32], double seconds)
{
	int64_t s = seconds + 0.5;

	if (s < 60)
		snprintf(text, 32, "%ds", (int)s);
	else if (s < 3600)
		snprintf(text, 32, "%dm%02ds", (int)(s / 60), (int)(s % 60));
	else
		snprintf(text, 32, "%" PRId64 "h%02dm", s / 3600, (int)(s / 60 % 60));
	return text;
}

/* One step, without line feed, cut at @width (0: not at all). */
static void print_step(const struct run *r, const struct step_row *row, int width)
{
	char eta[32], *text;

	text = xasprintf("step %" PRId64 "/%" PRId64 "  loss %.4f  lr %.3e  norm %.3f  %.0f tok/s  "
			 "eta %s", row->step, r->st.total, row->loss, row->lr, row->grad_norm,
			 row->tok_s, span(eta, left(r)));
	printf("%.*s", width ? width : (int)strlen(text), text);
	free(text);
}

void log_eval(const struct run *r, const struct eval *e)
{
	int width = columns();
	char *text, *more;

	if (!dist_leads())
		return;
	wipe();
	more = eval_more(e);
	text = xasprintf("eval     step %" PRId64 "  val loss %.4f  ppl %.2f per %s%s%s", r->st.step,
			 e->loss, exp(e->loss), data_unit(), more,
			 r->st.best_step == r->st.step ? "  (best)" : "");
	free(more);
	printf("%.*s\n", width ? width : (int)strlen(text), text);
	fflush(stdout);
	free(text);
}

/* The steps between two lines; not so often that the terminal costs anything. */
static void draw(const struct run *r, const struct step_row *row, int width)
{
	if (now() - progress.drawn < 0.1)
		return;
	wipe();
	print_step(r, row, width);
	progress.shown = true;
	progress.drawn = now();
}

void log_step(const struct run *r, const struct step_row *row)
{
	bool due = row->step % CONFIG_LOG_INTERVAL == 0 || !progress.steps ||
		   row->step == r->st.total;
	double s = row->ms / 1e3;
	int width = columns();
	char text[32];

	if (!dist_leads())
		return;
	progress.seconds = progress.steps > 1 ? 0.9 * progress.seconds + 0.1 * s : s;
	progress.steps++;
	if (progress.steps == ESTIMATE_AFTER)
		log_line("time     about %s to the end", span(text, left(r)));
	if (due) {
		wipe();
		print_step(r, row, width);
		putchar('\n');
	} else if (width) {
		draw(r, row, width);
	}
	fflush(stdout);
}

void log_skip(const struct run *r, const struct step_row *row, const char *tensor)
{
	if (!dist_leads())
		return;
	wipe();
	fflush(stdout);
	warn("step %" PRId64 ": update skipped, first not finite: %s (%" PRId64 " in a row, %" PRId64
	     " in all)", row->step, tensor, r->st.optim.common.skipped_row,
	     r->st.optim.common.skipped);
}
