// SPDX-License-Identifier: MIT
/*
 * Reading checkpoints: the newest whole one of a run, whether this binary may go
 * on with it, and its tensors.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "options.h"
#include "util.h"

/* Verify one; NULL, or what is wrong with it. */
static char *inspect(const char *folder, char **config, struct ckpt_state *st)
{
	char *wrong;

	memset(st, 0, sizeof(*st));
	wrong = manifest_check(folder, config, st);
	if (wrong)
		return wrong;
	wrong = state_read(folder, st);
	if (wrong)
		free(*config);
	return wrong;
}

bool ckpt_newest(const char *dir, char **folder, char **config, struct ckpt_state *st)
{
	int64_t *steps;
	int nr = ckpt_list(dir, &steps), bad;
	char **wrong = xcalloc(nr + 1, sizeof(*wrong));

	*folder = NULL;
	for (bad = 0; bad < nr; bad++) {
		*folder = ckpt_folder(dir, steps[bad]);
		wrong[bad] = inspect(*folder, config, st);
		if (!wrong[bad])
			break;
		free(*folder);
		*folder = NULL;
	}
	if (nr && !*folder)
		die("%s: none of its %d checkpoints is whole (the newest: %s); %s begins anew "
		    "beside it", dir, nr, wrong[0], flag_words("restart"));
	for (int i = 0; i < bad; i++) {
		warn("damaged checkpoint passed over: %s", wrong[i]);
		free(wrong[i]);
	}
	free(wrong);
	free(steps);
	return *folder != NULL;
}

static char *append(char *list, char *item)
{
	char *longer = list ? xasprintf("%s, %s", list, item) : xstrdup(item);

	free(list);
	free(item);
	return longer;
}

/* What flags and data changed, in the words of the configuration. */
static char *flag_diff(const struct ckpt_state *was, const struct ckpt_state *is, char *list)
{
	const struct { const char *name; int64_t was, is; } pairs[] = {
		{ "MAX_ITERS", was->total, is->total }, { "SEED", was->seed, is->seed },
	};

	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++)
		if (pairs[i].was != pairs[i].is)
			list = append(list, xasprintf("%s (was %" PRId64 ", is %" PRId64 ")",
						      pairs[i].name, pairs[i].was, pairs[i].is));
	if (strcmp(was->data, is->data))
		list = append(list, xasprintf("the data (sha256 was %.12s, is %.12s)", was->data,
					      is->data));
	return list;
}

void ckpt_accept(const char *folder, const char *config, const struct model *m,
		 const struct ckpt_state *was, const struct ckpt_state *is, bool allow)
{
	const struct tensor_set weights = { .prefix = "", .weights = true };
	char *wrong = tensors_match(folder, "model.safetensors", m, &weights, 1);
	char *diff = flag_diff(was, is, compat_diff(config, config_text(), COMPAT_RESUME));

	if (wrong)
		die("%s; the checkpoint is of another configuration: %s; build that one, choose "
		    "another folder with %s, or begin anew with %s", wrong,
		    diff ? diff : "the same symbols, another version", flag_words("out"),
		    flag_words("restart"));
	if (diff && !allow)
		die("%s: the configuration changed: %s; %s goes on with it, %s chooses another "
		    "folder, %s begins anew", folder, diff, flag_words("allow-config-change"),
		    flag_words("out"), flag_words("restart"));
	if (diff)
		warn("%s: going on with a changed configuration: %s", folder, diff);
	if (strcmp(was->machine, is->machine))
		warn("%s: going on with other arithmetic, the bits will not be those of one "
		     "machine: was %s, is %s", folder, was->machine, is->machine);
	free(diff);
}

void ckpt_load(const char *folder, struct model *m, struct optim *o, const struct ckpt_state *st)
{
	struct tensor_set weights, buffers[OPTIM_BUFFERS];
	char *wrong;

	tensors_of(o, &weights, buffers);
	wrong = tensors_read(folder, "model.safetensors", m, &weights, 1);
	if (!wrong)
		wrong = tensors_read(folder, "optim.safetensors", m, buffers,
				     optim_rule.nr_buffers);
	if (wrong)
		die("%s; remove that folder to use an older checkpoint", wrong);
	optim_put(o, &st->optim);
}

char *ckpt_find(const char *path)
{
	char *manifest = xasprintf("%s/manifest.json", path), *best = xasprintf("%s/best", path);
	char target[PATH_MAX], *found = NULL;
	ssize_t n = readlink(best, target, sizeof(target) - 1);
	bool no_link = n < 0 && errno == EINVAL;
	int64_t *steps;
	int nr = ckpt_list(path, &steps);

	if (no_link)
		die("%s is no link to a checkpoint: remove it, or give a checkpoint folder", best);
	if (!access(manifest, F_OK))
		found = xstrdup(path);
	else if (n > 0)
		found = xasprintf("%s/%.*s", path, (int)n, target);
	else if (nr)
		found = ckpt_folder(path, steps[0]);
	if (!found)
		die("%s: no checkpoint; give a checkpoint folder (with manifest.json) or a run folder",
		    path);
	free(steps);
	free(best);
	free(manifest);
	return found;
}

/* What a checkpoint holds is the masters: they are rounded, or were. */
static void say_numbers(const char *folder, const char *config)
{
	bool was = strstr(config, "\nCONFIG_REAL_BF16=y\n"), is = IS_ENABLED(CONFIG_REAL_BF16);

	if (was != is)
		warn("%s: trained %s; its weights are used %s", folder,
		     was ? "in bf16" : "in float", is ? "in bf16, rounded" : "in float");
}

int64_t ckpt_load_weights(const char *path, struct model *m)
{
	const struct tensor_set weights = { .prefix = "", .weights = true };
	char *folder = ckpt_find(path), *config, *wrong, *diff;
	struct ckpt_state st;

	wrong = inspect(folder, &config, &st);
	if (wrong)
		die("damaged checkpoint: %s; choose another checkpoint folder", wrong);
	diff = compat_diff(config, config_text(), COMPAT_WEIGHTS);
	wrong = tensors_match(folder, "model.safetensors", m, &weights, 1);
	if (wrong && !diff)	/* numbers of another width may show in the rest */
		diff = compat_diff(config, config_text(), COMPAT_RESUME);
	if (wrong || diff)
		die("%s: checkpoint of another configuration: %s; build that one to use it",
		    wrong ? wrong : folder, diff ? diff : "the same symbols, another version");
	wrong = tensors_read(folder, "model.safetensors", m, &weights, 1);
	if (wrong)
		die("%s", wrong);
	say_numbers(folder, config);
	free(config);
	free(folder);
	return st.step;
}
