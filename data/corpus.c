// SPDX-License-Identifier: MIT
/*
 * The embedded corpus: data/corpus.gz, as bytes. It is Tenon's own C sources as they were on
 * one day, so that a commit to Tenon changes no result.
 */
#include "bytes.h"

/* The build unpacks it between these. */
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
