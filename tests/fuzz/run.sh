#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds tests/fuzz/parsers.c with clang's libFuzzer, ASan and UBSan, and runs it.
#
#   tests/fuzz/run.sh DIR RUNS      DIR: an object tree with DATA_SHARDS=y; executions in all
#
# What crashes is left in DIR/fuzz. New inputs stay in DIR/fuzz/corpus; tests/corpus/ has few.
set -e

cd "$(dirname "$0")/../.."
obj=$1 left=$2 out=$1/fuzz
# What a refusal leaves behind is lost, so that a process does this many and the next one goes on.
chunk=500000

mkdir -p "$out/corpus"
# shellcheck disable=SC2046 # flags are words
clang -g -O1 -std=gnu11 -Wall -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	-Iinclude -I"$obj/include" -Iinfer -include include/kconfig.h \
	tests/fuzz/parsers.c lib/file.c lib/json.c lib/safetensors_read.c lib/sha256.c lib/util.c \
	lib/protobuf.c lib/tfevents.c ckpt/state.c ckpt/manifest.c ckpt/compat.c infer/prompt.c \
	train/events.c train/metrics.c \
	$(pkg-config --cflags --libs jansson zlib) -lm -o "$out/parsers"

while [ "$left" -gt 0 ]; do
	runs=$((left < chunk ? left : chunk))
	ASAN_OPTIONS=detect_leaks=0 "$out/parsers" -runs="$runs" -max_len=4096 -timeout=10 \
		-rss_limit_mb=6000 -close_fd_mask=2 -print_final_stats=1 -verbosity=0 \
		-artifact_prefix="$out/" "$out/corpus" tests/corpus
	rm -rf /dev/shm/tenon-fuzz-*
	left=$((left - runs))
	echo "fuzz: $left executions left"
done
