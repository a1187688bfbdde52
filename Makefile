# SPDX-License-Identifier: MIT
# The goals that people type. scripts/build.mk compiles; Documentation/build.md
# explains both.

# Goals run in the order in which they were typed: make defconfig-tiny-gpt2 all
.NOTPARALLEL:
.PHONY: all train build plan explain objects kernels check-programs install demo check check-all \
	randconfig-check liveness-check disk-check ptx fuzz bench table ablate ablate-status repro setup \
	help clean mrproper FORCE
all:

include scripts/common.mk
include tests/Makefile

build.mk = $(MAKE) $(jobs) -f scripts/build.mk

# Configuration

verbs := menuconfig guiconfig oldconfig olddefconfig savedefconfig alldefconfig allnoconfig \
	listnewconfig
defconfig := $(filter defconfig-% %_defconfig,$(MAKECMDGOALS))
fragments := $(filter %.config,$(MAKECMDGOALS))
.PHONY: $(verbs) randconfig yamlconfig list-defconfigs $(fragments)

ifneq ($(word 2,$(defconfig)),)
$(error $(defconfig): only one of them can be the configuration; name one, and fragments on top)
endif

ifneq ($(filter defconfig-%.config %.config_defconfig,$(MAKECMDGOALS)),)
$(error $(filter defconfig-%.config %.config_defconfig,$(MAKECMDGOALS)): a defconfig or a \
	fragment? Type defconfig-NAME, or NAME.config, or both)
endif

$(verbs):
	$(Q)$(KCONFIG) $@
	$(if $(filter menuconfig guiconfig,$@),$(Q)+[ ! -f $(CONF) ] || \
		$(PYTHON) scripts/chosen.py $(OBJ)/tenon $(MAKE) $(addprefix O=,$(tree)) build)

randconfig:
	$(Q)$(KCONFIG) $@ $(call cmdline,SEED)

defconfig-%: FORCE
	$(Q)$(KCONFIG) defconfig $* $(fragments)

%_defconfig: FORCE
	$(Q)$(KCONFIG) defconfig $* $(fragments)

# With a defconfig they were merged there, so that all are checked together.
$(fragments):
	$(if $(defconfig)$(filter-out $(firstword $(fragments)),$@),@:,$(Q)$(KCONFIG) merge $(fragments))

explain:
	$(if $(call cmdline,SYMBOL),,$(error make explain: say which symbol: make explain SYMBOL=N_EMBD))
	$(Q)$(KCONFIG) $@ '$(subst ','\'',$(call typed,SYMBOL))'

# The lines that a guide's YAML means, taken as a defconfig of that name.
yaml-name = $(basename $(notdir $(call cmdline,FILE)))

yamlconfig:
	$(if $(call cmdline,FILE),,$(error make yamlconfig: say which file: make yamlconfig FILE=guide.yaml))
	@sh scripts/setup.sh yaml
	$(Q)mkdir -p $(OBJ)/yaml
	$(Q)/usr/bin/python3 scripts/yamlconfig.py '$(call cmdline,FILE)' >'$(OBJ)/yaml/$(yaml-name)'
	$(Q)$(KCONFIG) defconfig '$(OBJ)/yaml/$(yaml-name)' $(fragments)

list-defconfigs:
	@sh scripts/list-defconfigs.sh

# Building and running

have-config = @test -f $(CONF) || { sh scripts/list-defconfigs.sh 'tenon: $(CONF)' >&2; exit 2; }

all:
	$(have-config)
	$(Q)+$(build.mk) run

train: all

build objects kernels ptx check-programs:
	$(have-config)
	$(Q)+$(locked) $(build.mk) $@

# What a configuration takes: the binary's own count of parameters, memory, FLOPs and cache.
plan: build
	$(Q)$(OBJ)/tenon plan

# Binary, man page and bash completion; DESTDIR goes before all of it.
prefix = $(call cmdline,DESTDIR)$(or $(call cmdline,PREFIX),/usr/local)

install: build
	$(call say,INSTALL,$(prefix)/bin/tenon)
	$(Q)sh scripts/install.sh $(OBJ)/tenon '$(subst ','\'',$(prefix))'

setup:
	@sh scripts/setup.sh

demo:
	@sh scripts/setup.sh curve
	$(Q)$(MAKE) defconfig-tiny-ra-mla-full
	$(Q)$(MAKE) all

# A study of any arms: BASE, or .config, with each of ARMS on top (scripts/study_arms.py).
as-word = '$(subst ','\'',$(call typed,$(1)))'
flag = $(if $(call typed,$(2)),--$(1)=$(call as-word,$(2)))
ablate-flags = $(call flag,base,BASE) $(call flag,arms,ARMS) $(call flag,seeds,SEEDS) \
	$(call flag,early-stop,EARLY_STOP) $(call flag,out,OUT) $(call flag,threads,THREADS) \
	$(if $(call cmdline,RESTART),--restart) $(if $(filter only,$(call typed,BUILD)),--build-only)

ablate:
	$(if $(call typed,BASE),,$(have-config))
	$(Q)$(afresh) $(PYTHON) scripts/ablate.py --config $(CONF) --objtree $(OBJ)/ablate $(ablate-flags)

ablate-status:
	$(Q)$(PYTHON) scripts/ablate.py --status $(if $(call typed,OUT),$(call as-word,OUT),$(error make \
		ablate-status: say which study: OUT=DIR))

# The binary of a run of a study once more, and its first steps.
repro:
	$(Q)$(afresh) $(PYTHON) scripts/repro.py --objtree $(OBJ)/repro $(call flag,steps,STEPS) \
		$(if $(call typed,RUN),$(call as-word,RUN),$(error make repro: say which run: RUN=FOLDER))

# Finished runs side by side, whatever binary made them.
table:
	$(if $(call cmdline,RUNS),,$(error make table: say which runs: make table RUNS="runs/a runs/b"))
	$(Q)$(PYTHON) scripts/table.py $(addprefix --out ,$(call cmdline,OUT)) $(call cmdline,RUNS)

# Of a study, while it runs or after.
.PHONY: report
report:
	$(if $(call cmdline,OUT),,$(error make report: say of which study: make report OUT=runs/NAME))
	@sh scripts/setup.sh report
	$(Q)$(PYTHON) scripts/report.py '$(subst ','\'',$(call typed,OUT))'

bench:
	@sh scripts/setup.sh bench
	$(Q)$(afresh) $(PYTHON) $(if $(no-gpu),scripts/bench.py \
		$(addprefix --threads ,$(call cmdline,THREADS)),scripts/bench_cuda.py) \
		--objtree $(OBJ)/bench

# Tests: programs under every configuration of tests/Makefile, then the scripts.

check-dir = $(OBJ)/check
# Why the programs do not run on a GPU, empty where they do; tests/cuda.t looks for itself.
no-gpu = $(eval no-gpu := $$(shell sh tests/gpu.sh))$(no-gpu)
check-configs = $(check-config-y) $(if $(no-gpu),,$(check-config-gpu))
# Of the tests of all configurations those that have something of their own to say in this one.
# A kind is an arch and a precision; subst leaves nothing where two are the same.
kind-of = $(filter arch-% real-%,$(subst +, ,$(1)))
first-of-kind = $(firstword $(foreach c,$(check-configs),\
	$(if $(subst =$(call kind-of,$(1)),,=$(call kind-of,$(c))),,$(c))))
programs-of = $(filter-out $(if $(filter-out $(firstword $(check-configs)),$(1)),$(plain-test-y)) \
	$(if $(filter-out $(first-of-kind),$(1)),$(kernel-test-y)),$(test-y))
check-programs-of = $(foreach c,$(check-configs),$(addprefix $(check-dir)/$(c)/tests/,$(call programs-of,$(c))))
# The same text and symbols are compiled once for all object trees: tests/bin/gcc.
compile-once = TENON_OBJECTS=$(abspath $(check-dir))/scratch/objects PATH="$(CURDIR)/tests/bin:$$PATH"
one-check-tree = $(compile-once) $(MAKE) O=$(check-dir)/$(1) $(jobs) EXTRA_CFLAGS='-g0 -Werror $(EXTRA_CFLAGS)' \
	defconfig-$(firstword $(subst +, ,$(1))) \
	$(addsuffix .config,$(wordlist 2,9,$(subst +, ,$(1)))) \
	check-programs PROGRAMS='$(call programs-of,$(1))'
# Python keeps what it compiles of its scripts, beside them nothing.
keep-python = env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(abspath $(check-dir))/scratch/python
# The longest scripts first, so that no processor waits for one at the end; and one more than
# there are processors, for some sleep in a terminal.
check-first := $(addprefix tests/,sweep.t docs.t cuda.t study.t torch.t plan.t)
check-order = $(filter $(1),$(check-first)) $(filter-out $(check-first),$(1))
check-jobs = $(shell echo $$(($$(nproc) + 1)))

# Most of these build dozens of configurations, each takes half a minute of a processor or more:
# not part of check, but of check-all.
check-long := $(addprefix tests/,sweep.t docs.t plan.t study.t torch.t numbers.t transformers.t \
	compress.t report.t limits.t sanitize.t disk.t drawn.t)
check-scripts = $(filter-out $(if $(filter check,$(1)),$(check-long)),$(wildcard tests/*.t))

check check-all: setup
	$(Q)rm -rf $(check-dir)/scratch && mkdir -p $(check-dir)/scratch/objects
	$(Q)+set -e; $(foreach c,$(check-configs),$(call one-check-tree,$(c));)
	@$(if $(no-gpu),echo 'not run: the tests on a GPU: $(no-gpu)',:)
	$(Q)$(afresh) $(keep-python) $(compile-once) TENON_SRC=$(CURDIR) TENON_TESTDIR=$(abspath $(check-dir))/scratch \
		prove --jobs $(check-jobs) --exec 'sh tests/run.sh' \
		$(or $(call cmdline,TESTS),$(call check-order,$(call check-scripts,$@)) $(check-programs-of)) </dev/null
	@$(if $(or $(call cmdline,TESTS),$(filter check-all,$@)),:,\
		echo 'not run, make check-all runs them: $(notdir $(check-long))')

# Random configurations, seeds SEED to SEED + N - 1. Not part of check: minutes for each ten.
randconfig-check: setup
	$(Q)mkdir -p $(check-dir)
	$(Q)$(afresh) OMP_WAIT_POLICY=passive prove --verbose --exec $(PYTHON) tests/randconfig.py :: \
		--count $(or $(call cmdline,N),30) --seed $(or $(call cmdline,SEED),1) \
		--dir $(abspath $(check-dir))/randconfig </dev/null

# Every symbol changed alone, in one object tree.
liveness-check: setup
	$(Q)mkdir -p $(check-dir)
	$(Q)$(afresh) OMP_WAIT_POLICY=passive prove --verbose --exec $(PYTHON) tests/liveness.py :: \
		--dir $(abspath $(check-dir))/liveness </dev/null

# All of what tests/disk.t tries a sample of: an hour.
disk-check: setup
	$(Q)$(afresh) OMP_WAIT_POLICY=passive TENON_TESTDIR=$(abspath $(check-dir))/disk \
		prove --verbose --exec $(PYTHON) tests/disk.t :: --all </dev/null

# Readers of files under libFuzzer: RUNS executions in all, which go on from the last ones;
# and a hundredth as many altered configurations, seeds SEED on, through the strict merge.
fuzz-runs = $(or $(call cmdline,RUNS),1000000)

fuzz: setup
	@sh scripts/setup.sh fuzz
	$(Q)$(PYTHON) scripts/kconfig.py --config $(check-dir)/fuzz/.config --gen $(check-dir)/fuzz \
		defconfig tiny-gpt2 tests/fuzz/shards.config
	$(Q)$(PYTHON) scripts/kconfig.py --config $(check-dir)/fuzz/.config --gen $(check-dir)/fuzz sync
	$(Q)sh tests/fuzz/run.sh $(check-dir)/fuzz $(fuzz-runs)
	$(Q)$(PYTHON) tests/fuzz/merge.py $(check-dir)/fuzz/merge --runs $$(($(fuzz-runs) / 100 + 1)) \
		--seed $(or $(call cmdline,SEED),1)

# Cleaning

made := yaml lib arch model train ckpt data infer dist compress tools tests include scripts arms check bench tenon \
	compile.flags nvcc.flags link.flags

clean:
	$(Q)rm -rf $(addprefix $(OBJ)/,$(made)) $(if $(tree),,tenon)
	$(Q)find scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

mrproper: clean
	$(Q)rm -f $(CONF) $(CONF).old $(if $(tree),$(tree)/)defconfig
	$(Q)$(if $(tree),[ ! -d $(tree) ] || rmdir --ignore-fail-on-non-empty $(tree),rm -rf build)

help:
	@cat scripts/help.txt

# Names of folders, which make would take for files that are up to date.

folders := arch ckpt compress dist include infer lib model scripts defconfigs Documentation runs
.PHONY: $(folders) data tests tools

$(folders):
	$(error make $@: that is a folder; `make build` compiles what is selected, `make help` lists goals)

data:
	$(error make data: make fetches none; Documentation/data.md says where data comes from, and how a file of tokens is made)

tests:
	$(error make tests: type `make check`, or for some of them `make check TESTS=tests/build.t`)

tools:
	$(error make tools: they are verbs of the binary: `make build`, then `./tenon --help`)
