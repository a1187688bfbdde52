// SPDX-License-Identifier: MIT
/*
 * The embedded corpus: the committed files of this tree, in sorted order, as bytes.
 */
#include "bytes.h"

/* The build puts the corpus between these. */
extern const unsigned char tenon_corpus[], tenon_corpus_end[];

static struct bytes corpus;

void source_open(const char *path)
{
	(void)path;
	bytes_split_tail(&corpus, tenon_corpus, tenon_corpus_end - tenon_corpus);
	bytes_ready(&corpus, "embedded corpus", "the last 10 %");
}

uint64_t source_tokens(enum split s)
{
	return corpus.n[s];
}

void source_read(enum split s, uint64_t pos, int n, int32_t *dst)
{
	bytes_read(&corpus, s, pos, n, dst);
}

const char *source_describe(void)
{
	return corpus.line;
}
