// SPDX-License-Identifier: MIT
/*
 * Training, piece by piece: schedules, the accumulation tree, rows and events of a
 * resumed run, plans that do not fit, and which configurations may go on with a
 * checkpoint.
 */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arch.h"
#include "../ckpt/ckpt.h"
#include "../train/train.h"
#include "scratch.h"

/* ---- schedule -------------------------------------------------------------- */

/* 8 roundings of values up to the highest rate */
#define CLOSE(a, b) (fabs((a) - (b)) <= 8 * 0x1p-53 * s.lr)

static void schedule_follows_formulas(void)
{
	struct schedule s = { SCHEDULE_COSINE, 6e-4, 6e-5, 10, 0 };
	const int64_t n = 101;
	bool warm = true, cosine = true, constant = true, wsd = true;

	for (int64_t i = 0; i < n; i++) {
		double x = s.min + 0.5 * (s.lr - s.min) * (1 + cos(M_PI * (i - 10) / 90.0));

		s.kind = SCHEDULE_COSINE;
		if (i < 10)
			warm &= CLOSE(schedule_at(&s, i, n), 6e-4 * (i + 1) / 10);
		else
			cosine &= CLOSE(schedule_at(&s, i, n), x);
		s.kind = SCHEDULE_CONSTANT;
		constant &= i < 10 || schedule_at(&s, i, n) == 6e-4;
		s.kind = SCHEDULE_WSD;
		s.decay = 25;
		x = i < n - 25 ? s.lr : s.lr - (s.lr - s.min) * (i - n + 26) / 25.0;
		wsd &= i < 10 || CLOSE(schedule_at(&s, i, n), x);
	}
	ok(warm, "schedule_warmup_is_linear");
	ok(cosine, "schedule_cosine_follows_its_formula");
	ok(constant, "schedule_constant_is_constant");
	ok(wsd, "schedule_wsd_follows_its_formula");
}

static void schedule_corners(void)
{
	struct schedule s = { SCHEDULE_COSINE, 1.0, 0.1, 10, 0 };

	ok(schedule_at(&s, 10, 11) == 1.0, "schedule_cosine_without_room_is_lr");
	ok(CLOSE(schedule_at(&s, 11, 12), 0.1), "schedule_cosine_ends_at_min");
	ok(schedule_at(&s, 4, 5) == 0.5, "schedule_warmup_longer_than_the_run");
	s.warmup = 0;
	ok(schedule_at(&s, 0, 1) == 1.0, "schedule_of_one_step_is_lr");
	ok(schedule_at(&s, 0, 100) == 1.0, "schedule_without_warmup_begins_at_lr");
	s.kind = SCHEDULE_WSD;
	ok(schedule_at(&s, 79, 100) == 1.0 && schedule_at(&s, 80, 100) < 1.0 &&
	   CLOSE(schedule_at(&s, 99, 100), 0.1), "schedule_wsd_decays_over_a_fifth");
	ok(schedule_at(&s, 3, 4) == 1.0, "schedule_wsd_of_four_steps_never_decays");
	s.decay = 100;
	ok(schedule_at(&s, 0, 100) < 1.0, "schedule_wsd_may_decay_from_the_start");
}

/* ---- accumulation ---------------------------------------------------------- */

enum { ELEMS = 192 };

static void leaf_values(grad_t *g, int i)
{
	for (int k = 0; k < ELEMS; k++)
		g[k] = (grad_t)rng_normal(1, i, k);
}

/*
 * The sum of leaves [from, from + n), n = any: the largest power of two of them
 * first (older), the rest folded by itself (newer).
 */
static void fold_apart(grad_t *sum, int from, int n)
{
	grad_t rest[ELEMS];
	int half = 1;

	if (n == 1) {
		leaf_values(sum, from);
		return;
	}
	while (2 * half < n)
		half *= 2;
	fold_apart(sum, from, half);
	fold_apart(rest, from + half, n - half);
	for (int k = 0; k < ELEMS; k++)
		sum[k] += rest[k];
}

/* Merges of whole buffers, or by ranges from the last to the first, as backward ends. */
static void merge_all(const struct accum *a, const struct accum_merge *merges, int nr, bool ranges)
{
	for (int i = 0; i < nr && !ranges; i++)
		accum_merge(a, merges[i], 0, a->elems);
	for (size_t at = ranges ? a->elems : 0, n; at; at -= n) {
		n = MIN(at, (size_t)50);
		for (int i = 0; i < nr; i++)
			accum_merge(a, merges[i], at - n, n);
	}
}

/* Sum of leaves 0..n-1, the last one merged and folded by ranges. */
static void accumulate(struct accum *a, int n, bool ranges, grad_t got[ELEMS])
{
	struct accum_merge merges[2 * ACCUM_MAX_SLOTS];
	grad_t leaf[ELEMS];
	int nr = 0, sum;

	for (int i = 0; i < n; i++) {
		int at = accum_leaf(a);

		leaf_values(leaf, i);
		arch_put(a->buf[at], leaf, sizeof(leaf));
		nr = accum_push(a, at, merges);
		if (i < n - 1)
			merge_all(a, merges, nr, false);
	}
	nr += accum_fold(a, merges + nr, &sum);
	merge_all(a, merges, nr, ranges);
	arch_get(got, a->buf[sum], ELEMS * sizeof(*got));
}

static void accum_is_the_fixed_tree(void)
{
	grad_t *mem = arch_alloc(ROUND_UP(6 * ELEMS * sizeof(*mem), TENSOR_ALIGN));
	struct accum_merge merges[ACCUM_MAX_SLOTS];
	grad_t want[ELEMS], got[ELEMS];
	int wrong = 0, wrong_ranges = 0;
	struct accum a;

	for (int n = 1; n <= 33; n++) {
		accum_place(&a, accum_slots(n), ELEMS, mem);
		fold_apart(want, 0, n);
		accumulate(&a, n, false, got);
		if (memcmp(got, want, sizeof(want)))
			wrong = n;
		accumulate(&a, n, true, got);
		if (memcmp(got, want, sizeof(want)))
			wrong_ranges = n;
	}
	ok(!wrong, "accum_is_the_fixed_tree (1 to 33 leaves)");
	ok(!wrong_ranges, "accum_by_ranges_gives_the_same_bits (1 to 33 leaves)");
	ok(accum_slots(1) == 1 && accum_slots(2) == 2 && accum_slots(7) == 3 &&
	   accum_slots(8) == 4, "accum_slots_is_log2_plus_1");
	accum_push(&a, accum_leaf(&a), merges);
	accum_drop(&a);
	ok(a.buf[accum_leaf(&a)] == mem, "accum_drop_frees_every_buffer");
	arch_free(mem, ROUND_UP(6 * ELEMS * sizeof(*mem), TENSOR_ALIGN));
}

/* ---- rows and events --------------------------------------------------------- */

/* What a checkpoint says of the log of @t after @step. */
static struct ckpt_state state_at(const struct metrics *t, int64_t step, bool evaluated)
{
	struct ckpt_state st = { .step = step, .eval_step = evaluated ? step : -1 };

	metrics_mark(t, &st.log);
	return st;
}

static const struct ckpt_state fresh = { .eval_step = -1 };

static size_t log_size(const char *name)
{
	size_t n = 0;
	char *path = xasprintf("%s/%s", scratch("rows"), name);

	free(file_read(path, &n));
	free(path);
	return n;
}

static size_t rows_again(const struct ckpt_state *st)
{
	metrics_close(metrics_open(scratch("rows"), st));
	return log_size("metrics.jsonl");
}

/* A run that stopped between a step and its evaluation makes up for it, once. */
static void evaluation_is_logged_once(void)
{
	struct step_row row = { .step = 2 };
	struct ckpt_state before, after;
	struct metrics *t;

	dir_make(scratch("rows"));
	t = metrics_open(scratch("rows"), &fresh);
	metrics_step(t, &row);
	before = state_at(t, 2, false);
	metrics_eval(t, 2, "val", &(struct eval){ .loss = 1.5 });
	after = state_at(t, 2, true);
	metrics_close(t);
	ok(before.log.bytes && after.log.bytes > before.log.bytes &&
	   rows_again(&after) == (size_t)after.log.bytes &&
	   rows_again(&before) == (size_t)before.log.bytes, "evaluation_is_logged_once");
}

static void open_rows(const void *state)
{
	metrics_close(metrics_open(scratch("rows"), state));
}

/*
 * Rows that are not those which the checkpoint saw: one line says so, the file as it was
 * found is kept, whole rows stay.
 */
static void damaged_log_is_named(void)
{
	static const char row[] = "{\"step\": 1, \"loss\": 2.5}\n";
	enum { ROW = sizeof(row) - 1, ROWS = 4, SIZE = ROW * ROWS };
	struct ckpt_state st = { .step = 9, .eval_step = -1, .log.bytes = SIZE };
	char whole[SIZE + 1] = "", bad[SIZE], said[4096];
	size_t want;

	for (int i = 0; i < ROWS; i++)
		memcpy(whole + i * ROW, row, ROW);
	sha256_hex(whole, SIZE, st.log.sha256);
	for (int cut = 0; cut < SIZE; cut += 5) {
		dir_remove(scratch("rows"));
		dir_make(scratch("rows"));
		put_file(scratch("rows/metrics.jsonl"), whole, cut);
		ok(!child_says(open_rows, &st, 2, said, sizeof(said)) && strchr(said, '\n') &&
		   !strchr(said, '\n')[1] && strstr(said, "metrics.jsonl.old-1") &&
		   log_size("metrics.jsonl.old-1") == (size_t)cut &&
		   log_size("metrics.jsonl") == (size_t)(cut / ROW * ROW),
		   "log of %d bytes where %d were: %s", cut, SIZE, said);
	}
	for (int at = 0; at < SIZE; at += 5) {
		memcpy(bad, whole, SIZE);
		bad[at] ^= 0x80;	/* no JSON any more, or other words */
		want = SIZE - ROW;
		dir_remove(scratch("rows"));
		dir_make(scratch("rows"));
		put_file(scratch("rows/metrics.jsonl"), bad, SIZE);
		ok(!child_says(open_rows, &st, 2, said, sizeof(said)) && strchr(said, '\n') &&
		   !strchr(said, '\n')[1] && strstr(said, "altered") &&
		   log_size("metrics.jsonl.old-1") == SIZE && log_size("metrics.jsonl") <= want,
		   "log altered at byte %d: %s", at, said);
	}
	dir_remove(scratch("rows"));
	dir_make(scratch("rows"));
	ok(!child_says(open_rows, &st, 2, said, sizeof(said)) && strstr(said, "missing"),
	   "log that is missing: %s", said);
}

/* The event file of @dir without its wall times; the files there must be one. */
static uint8_t *events(const char *dir, size_t *n)
{
	struct dirent *e;
	DIR *d = opendir(dir);
	uint8_t *p = NULL;
	char *path;

	while ((e = readdir(d))) {
		if (strncmp(e->d_name, "events.", 7))
			continue;
		path = xasprintf("%s/%s", dir, e->d_name);
		if (p)
			die("two event files in %s", dir);
		p = file_read(path, n);
		free(path);
	}
	closedir(d);
	/* a record: length 8, checksum 4, a key, wall time 8, the rest, checksum 4 */
	for (size_t at = 0, size; p && at < *n; at += 16 + size) {
		size = p[at] | p[at + 1] << 8 | p[at + 2] << 16;
		memset(p + at + 13, 0, 8);
		memset(p + at + 12 + size, 0, 4);
	}
	return p;
}

static void log_rows(struct metrics *t, int from, int to)
{
	const struct metric values[] = { { "gate", 0.5 }, { "whole", 3 } };

	for (int i = from; i <= to; i++) {
		struct step_row row = { .step = i, .loss = i == 3 ? NAN : 1.0 / i, .has_aux = true };

		metrics_stats(t, i, 1, "recip", values, 2);
		metrics_step(t, &row);
		metrics_eval(t, i, "val", &(struct eval){ .loss = 2 });
	}
}

/* A run that resumes writes the event file anew, as if it had never stopped. */
static void events_are_written_anew(void)
{
	const char *whole = scratch("whole"), *torn = scratch("torn");
	struct ckpt_state at;
	struct metrics *t;
	size_t n, again;
	uint8_t *p, *q;

	dir_make(whole);
	dir_make(torn);
	t = metrics_open(whole, &fresh);
	log_rows(t, 1, 6);
	metrics_close(t);
	t = metrics_open(torn, &fresh);
	log_rows(t, 1, 4);
	at = state_at(t, 4, true);
	log_rows(t, 5, 5);
	metrics_close(t);
	t = metrics_open(torn, &at);
	log_rows(t, 5, 6);
	metrics_close(t);
	p = events(whole, &n);
	q = events(torn, &again);
	ok(IS_ENABLED(CONFIG_TENSORBOARD) ? p && q && n == again && !memcmp(p, q, n) : !p && !q,
	   "events_are_written_anew");
	free(p);
	free(q);
}

/* ---- plans that do not fit --------------------------------------------------- */

/* In a child, which opens the device itself: it cannot use one that its parent has open. */
static void refuse(const void *plan)
{
	arch_init(0, 1);
	plan_refuse(plan);
}

static void plan_that_does_not_fit_names_symbols(void)
{
	const size_t much = (size_t)1 << 60;
	const struct plan act = { .bytes_act = much, .bytes_arena = much };
	const struct plan state = { .bytes_grads = much, .bytes_arena = much };

	ok(dies(refuse, &act, "lower CONFIG_BATCH_SIZE ("), "plan_of_activations_names_symbols");
	ok(dies(refuse, &state, "lower CONFIG_N_LAYER ("), "plan_of_weights_names_symbols");
}

static void plan_that_fits(void)
{
	const struct plan fits = { .bytes_arena = 4096 };

	plan_refuse(&fits);
	ok(true, "plan_that_fits_is_not_refused");
}

/* ---- compatibility of configurations ---------------------------------------- */

static bool diff_is(const char *was, const char *is, enum compat use, const char *want)
{
	char *diff = compat_diff(was, is, use);
	bool same = want ? diff && !strcmp(diff, want) : !diff;

	if (!same)
		diag("got %s", diff ? diff : "no difference");
	free(diff);
	return same;
}

static void compat_sorts_symbols(void)
{
	const char *a = "# Tenon\nCONFIG_N_EMBD=64\n# CONFIG_X is not set\nCONFIG_LOG_INTERVAL=10\n"
			"CONFIG_LEARNING_RATE=\"6e-4\"\n";
	const char *b = "CONFIG_LEARNING_RATE=\"1e-3\"\nCONFIG_LOG_INTERVAL=1\nCONFIG_N_EMBD=32\n"
			"CONFIG_GENERATION_TOP_K=3\n";

	ok(diff_is(a, a, COMPAT_RESUME, NULL), "compat_same_text_has_no_difference");
	ok(diff_is(a, b, COMPAT_RESUME,
		   "LEARNING_RATE (was 6e-4, is 1e-3), N_EMBD (was 64, is 32)"),
	   "compat_resume_lists_what_matters");
	ok(diff_is("CONFIG_GRAD_CLIP=1.0\n", "CONFIG_GRAD_CLIP=\"1.0\"\n", COMPAT_RESUME, NULL),
	   "compat_quotes_of_a_real_do_not_matter");
	ok(diff_is(a, b, COMPAT_WEIGHTS, "N_EMBD (was 64, is 32)"),
	   "compat_weights_ignores_training");
	ok(diff_is("CONFIG_EVAL_SAMPLES_TOO=1\n", "", COMPAT_WEIGHTS,
		   "EVAL_SAMPLES_TOO (was 1, is n)"), "compat_names_are_whole");
	ok(diff_is("CONFIG_NEW=y\n", "", COMPAT_WEIGHTS, "NEW (was y, is n)"),
	   "compat_unlisted_symbol_matters");
}

int main(void)
{
	scratch_open();
	plan_that_does_not_fit_names_symbols();
	arch_init(0, 1);
	plan_that_fits();
	schedule_follows_formulas();
	schedule_corners();
	accum_is_the_fixed_tree();
	compat_sorts_symbols();
	evaluation_is_logged_once();
	damaged_log_is_named();
	events_are_written_anew();
	scratch_close();
	return tap_done();
}
