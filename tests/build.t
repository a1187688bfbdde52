#!/bin/bash
# SPDX-License-Identifier: MIT
# The build, on a copy of the tree: what is rebuilt when, where it goes, what is
# said. EXTRA_CFLAGS="-Og -g0" because nothing is run for long.

src=${TENON_SRC:-$(cd "$(dirname "$0")/.." && pwd)}
scratch=${TENON_TESTDIR:-$(mktemp -d)}/build-t
copy=$scratch/src
export EXTRA_CFLAGS='-Og -g0' LC_ALL=C
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
unset MAKEFLAGS MFLAGS MAKELEVEL

count=0 failed=0 out='' status=0

# ok NAME COMMAND...: one test; a failed one shows the last output
ok() {
	local name=$1

	shift
	count=$((count + 1))
	if "$@"; then
		echo "ok $count - $name"
	else
		failed=$((failed + 1))
		echo "not ok $count - $name"
		tail -n 15 <<<"$out" | sed 's/^/# /'
	fi
}

run() {
	out=$("$@" </dev/null 2>&1)
	status=$?
}

status_is() { [ "$status" -eq "$1" ]; }
says() { grep -qE -- "$1" <<<"$out"; }
silent() { [ -z "$out" ]; }
both() { "$1" "$2" && "$3" "$4"; }
lacks() { ! says "$1"; }
compiled() { sed -n 's/^  CC      //p' <<<"$out" | sort; }
compiled_is() { [ "$(compiled)" = "$1" ]; }
fragment() { printf '%s\n' "$@" >fragment.config; }

# Objects of build/ whose dependencies name a symbol.
users_of() {
	(cd build && grep -rlE --include='*.d' "^  build/include/config/$1( |$)" .) |
		sed 's|^\./||; s|\.d$|.o|' | sort
}

# What is committed or about to be, as it stands: nothing of the user's that lies beside it.
source_files() {
	if [ -e .git ]; then
		git ls-files -z
	else
		find . -type d \( -name build -o -name runs -o -name __pycache__ \) -prune -o \
			-type f -print0
	fi
}

copy_tree() {
	rm -rf "$scratch" && mkdir -p "$copy" && cd "$src" || exit 1
	source_files | tar c --null --ignore-failed-read -T - 2>/dev/null | tar x -C "$copy"
	cd "$copy" || exit 1
	git init -q && git add -A && git commit -q -m 'the tree'
}

test_front() {
	run make
	ok 'no .config: exit 2' status_is 2
	ok 'no .config: the two commands' both says 'make demo' says 'make check'
	ok 'no .config: the defconfigs' says 'defconfig-tiny-gpt2 .*GPT-2'
	run make PYTHON=/nonexistent help
	ok 'help, without Python' both says '^  demo' says 'O=DIR'
	out=$(grep -v '^$' README.md | sed -n 2,3p)
	ok 'README begins with demo and check' \
		both says '^    make demo +# ' says '^    make check +# '
	run make defconfig-no-such-thing
	ok 'unknown defconfig: exit 2, one line' both status_is 2 says 'no-such-thing'
	run make defconfig-tiny-gpt2 defconfig-gpt2-124m
	ok 'two defconfigs: exit 2' both status_is 2 says 'only one'
	run make O=. build
	ok 'O=. is refused' both status_is 2 says 'O=\.'
}

test_goals() {
	local goal path

	for goal in data tests tools model Documentation; do
		run make $goal
		ok "make $goal is refused with what to type" both status_is 2 says 'make (check|build|fetch)'
	done
	for path in $(git ls-files -s | sed -n 's/^100... [^\t]*\t//p'); do
		[ "$(head -c 2 "$path" | tr -d '\0')" = '#!' ] && [ ! -x "$path" ] && echo "$path"
	done >"$scratch/not-executable"
	out=$(cat "$scratch/not-executable")
	ok 'every script can be executed' silent
}

test_output() {
	run make defconfig-tiny-gpt2 build
	ok 'defconfig and build in one command' status_is 0
	ok 'quiet lines' both says '^  CC      model/model\.o$' says '^  LD      tenon$'
	ok 'quiet hides the compiler' lacks '-std=gnu11'
	ok './tenon is a link' [ "$(readlink tenon)" = build/tenon ]
	run make build
	ok 'nothing to do: silence' both status_is 0 silent ''
	touch lib/rng.c
	run make V=1 build
	ok 'V=1 shows the compiler' says '^gcc .*-std=gnu11 .* lib/rng\.c'
	ok 'no -ffast-math' lacks 'fast-math'
	touch lib/rng.c
	run make -s build
	ok 'make -s is silent' both status_is 0 silent ''
	run ldd build/tenon
	ok 'at most one BLAS' [ "$(grep -cE 'lib(openblas|blas|blis|cblas)' <<<"$out")" -le 1 ]
	run ./tenon config
	ok 'the binary holds its .config' says '^CONFIG_RUN_NAME="tiny-gpt2"'
}

test_objects() {
	ok 'selected objects are built' [ -e build/model/mixer/mha.o ]
	ok 'unselected objects are not' [ ! -e build/model/mixer/ra_mla.o ]
	ok 'one arch' [ -e build/arch/cpu/norm.o ]
}

test_symbols() {
	local users

	fragment CONFIG_MAX_ITERS=77
	users=$(users_of MAX_ITERS)
	run make fragment.config build
	ok 'a changed symbol rebuilds its users' both status_is 0 compiled_is "$users"
	ok 'it has users' [ "$users" ]
	ok 'but not the model' lacks 'model/model'
	ok 'and links' says '^  LD      tenon$'
	run make fragment.config build
	ok 'the same value again: nothing' both compiled_is '' lacks 'LD'
	sed -i 's/^CONFIG_MAX_ITERS=.*/CONFIG_MAX_ITERS=78/' .config
	run make build
	ok 'a hand edit too' compiled_is "$users"
	sed -i 's/^CONFIG_MAX_ITERS=.*/CONFIG_MAX_ITERZ=78/' .config
	run make build
	ok 'an unknown symbol in .config: exit 2' both status_is 2 says 'MAX_ITERZ'
	printf 'config OF_A_NEW_FILE\n\tint\n\tdefault 7\n' >model/mixer/new.Kconfig
	sed -i 's/^CONFIG_MAX_ITERZ=.*/CONFIG_MAX_ITERS=78/' .config
	run make build
	ok "a mixer's Kconfig is found" \
		grep -qx '#define CONFIG_OF_A_NEW_FILE 7' build/include/generated/autoconf.h
	rm model/mixer/new.Kconfig
	run make defconfig-tiny-gpt2 build
	ok 'back again' both status_is 0 compiled_is "$users"
}

test_fixdep() {
	local dir=$scratch/fixdep

	mkdir -p "$dir/include/config"
	touch "$dir"/include/config/{ONE,BLOCK,LAYERS,REAL,HIDDEN}
	cat >"$dir/a.c" <<-'END'
		/* CONFIG_HIDDEN */ // CONFIG_HIDDEN
		char quote = '"', *text = "CONFIG_HIDDEN \" CONFIG_HIDDEN";
		int x = CONFIG_ONE + CONFIG_BLOCK_LEN + CONFIG_LAYERS_NR + CONFIG_REAL_NONZERO;
		int y = NO_CONFIG_HIDDEN;
	END
	echo "a.o: $dir/a.c $dir/include/generated/autoconf.h" >"$dir/raw"
	run build/scripts/fixdep "$dir/raw" "$dir/include"
	ok 'fixdep finds symbols' both says 'config/ONE' says 'config/ONE:'
	ok 'fixdep maps derived names' both says 'config/BLOCK:' says 'config/REAL:'
	ok 'and numbers of layers' says 'config/LAYERS:'
	ok 'fixdep skips comments and strings' lacks HIDDEN
	ok 'fixdep drops autoconf.h' lacks autoconf
	echo 'int z = CONFIG_TYPO;' >>"$dir/a.c"
	run build/scripts/fixdep "$dir/raw" "$dir/include"
	ok 'fixdep refuses what is no symbol' both status_is 2 says 'CONFIG_TYPO'
}

test_changes() {
	echo '#define GONE 1' >include/gone.h
	sed -i '1i #include "gone.h"' lib/rng.c
	run make build
	ok 'a new header' compiled_is $'lib/ikconfig.o\nlib/rng.o'
	sed -i 1d lib/rng.c && rm include/gone.h
	run make build
	ok 'a deleted header' both status_is 0 says '^  CC      lib/rng\.o$'
}

test_git() {
	echo >>README.md
	run make build
	ok 'changed files: only the build text' compiled_is lib/ikconfig.o
	ok 'and it says so' grep -q '+dirty' build/include/generated/build.h
	git commit -q -a -m 'a line'
	run make build
	ok 'a new commit: the build text, and no other corpus' both compiled_is lib/ikconfig.o lacks UNPACK
	mv .git "$scratch/git"
	run make build
	mv "$scratch/git" .git
	ok 'without git it builds' both status_is 0 lacks UNPACK
}

test_corpus() {
	ok 'the corpus is the text of data/corpus.sha256' \
		sha256sum --check --status data/corpus.sha256 <build/data/corpus.bin
	cp data/corpus.gz "$scratch/corpus.gz"
	printf x | dd of=data/corpus.gz bs=1 seek=5000 conv=notrunc status=none
	run make build
	ok 'a damaged corpus is refused by name' both status_is 2 says '^data/corpus.gz is damaged: git '
	cp "$scratch/corpus.gz" data/corpus.gz
	run make build
	ok 'and taken again when it is whole' status_is 0
}

test_trees() {
	local before other=$scratch/other

	before=$(sha256sum .config build/tenon)
	run make O="$other" defconfig-tiny-ra-mla-full real-double.config build
	ok 'O=DIR beside a configured tree' status_is 0
	ok 'O=DIR has .config and tenon' [ -e "$other/.config" -a -x "$other/tenon" ]
	ok 'fragments merge on top' grep -qx CONFIG_REAL_DOUBLE=y "$other/.config"
	ok 'O=DIR has other objects' \
		[ -e "$other/model/mixer/ra_mla.o" -a ! -e "$other/model/mixer/mha.o" ]
	ok 'the tree itself is as it was' [ "$before" = "$(sha256sum .config build/tenon)" ]
	fragment CONFIG_MAX_ITERS=2 CONFIG_EVAL_SAMPLES=1 CONFIG_RA_MLA_ABLATION_MODE=n
	run make O="$other" fragment.config train
	ok 'O=DIR keeps its output to itself, make train makes it' \
		[ "$status" -eq 0 -a -e "$other"/runs/tiny-ra-mla-full*/result.json -a ! -e runs ]
	rm -rf "$other/runs" fragment.config
	run make O="$other" mrproper
	ok 'mrproper O=DIR leaves nothing' [ ! -e "$other" ]
}

test_flags() {
	run make EXTRA_CFLAGS='-Og -g0 -Iother' build
	ok 'other flags rebuild' both says 'CC      model/model' says 'CC      lib/util'
	run make EXTRA_CFLAGS=-ffast-math build
	ok '-ffast-math is refused' both status_is 2 says 'EXTRA_CFLAGS'
	run make EXTRA_CFLAGS=-O0 build
	ok '-O0 is refused' both status_is 2 says 'EXTRA_CFLAGS=-O0.* -Og'
	run make CC=nonesuch build
	ok 'a compiler that does not exist is one line' both status_is 2 says '^[^ ]+ \*\*\* CC=nonesuch'
	printf '#!/bin/sh\necho clang version 14.0.6\n' >clang && chmod +x clang
	run make CC=./clang build
	ok 'clang is refused by name' both status_is 2 says 'CC=./clang: clang version'
	rm clang
}

test_two_makes() {
	local first

	rm -rf build
	make build </dev/null >/dev/null 2>&1 &
	first=$!
	run make build
	ok 'two makes in one tree: one succeeds' status_is 0
	wait "$first"
	ok 'so does the other' [ $? -eq 0 ]
}

test_clean() {
	rm -f fragment.config
	run make clean
	ok 'clean keeps .config' [ -e .config -a ! -e tenon -a ! -e build/tenon ]
	run make mrproper
	ok 'mrproper leaves a pristine tree' [ -z "$(git status --porcelain --ignored)" ]
}

copy_tree
test_front
test_goals
test_output
test_objects
test_symbols
test_fixdep
test_changes
test_git
test_corpus
test_trees
test_flags
test_two_makes
test_clean
rm -rf "$scratch"
echo "1..$count"
[ "$failed" -eq 0 ]
