# SPDX-License-Identifier: MIT
# The goals that people type. scripts/build.mk compiles; Documentation/build.md
# explains both.

# Goals run in the order in which they were typed: make defconfig-tiny-gpt2 all
.NOTPARALLEL:
.PHONY: all train build objects kernels check-programs install demo check bench table setup help clean mrproper \
	FORCE
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

build objects kernels check-programs:
	$(have-config)
	$(Q)+$(locked) $(build.mk) $@

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

# Finished runs side by side, whatever binary made them.
table:
	$(if $(call cmdline,RUNS),,$(error make table: say which runs: make table RUNS="runs/a runs/b"))
	$(Q)$(PYTHON) scripts/table.py $(addprefix --out ,$(call cmdline,OUT)) $(call cmdline,RUNS)

bench:
	@sh scripts/setup.sh bench
	$(Q)$(afresh) $(PYTHON) scripts/bench.py --objtree $(OBJ)/bench \
		$(addprefix --threads ,$(call cmdline,THREADS))

# Tests: programs under every configuration of tests/Makefile, then the scripts.

check-dir = $(OBJ)/check
# Why the programs do not run on a GPU, empty where they do; tests/cuda.t looks for itself.
no-gpu = $(eval no-gpu := $$(shell sh tests/gpu.sh))$(no-gpu)
check-configs = $(check-config-y) $(if $(no-gpu),,$(check-config-gpu))
check-programs-of = $(foreach c,$(check-configs),$(addprefix $(check-dir)/$(c)/tests/,$(test-y)) \
	$(if $(findstring +arch-cuda,$(c)),,$(addprefix $(check-dir)/$(c)/tests/,$(test-cpu))))
# The same text is compiled once for all object trees: tests/bin/gcc.
compile-once = TENON_OBJECTS=$(abspath $(check-dir))/scratch/objects PATH="$(CURDIR)/tests/bin:$$PATH"
one-check-tree = $(compile-once) $(MAKE) O=$(check-dir)/$(1) $(jobs) EXTRA_CFLAGS='-g0 $(EXTRA_CFLAGS)' \
	defconfig-$(firstword $(subst +, ,$(1))) \
	$(addsuffix .config,$(wordlist 2,9,$(subst +, ,$(1)))) check-programs
# The longest scripts first, so that no processor waits for one at the end.
check-first := $(addprefix tests/,docs.t sweep.t study.t torch.t cuda.t)
check-order = $(filter $(check-first),$(1)) $(filter-out $(check-first),$(1))

check: setup
	$(Q)rm -rf $(check-dir)/scratch && mkdir -p $(check-dir)/scratch/objects
	$(Q)+set -e; $(foreach c,$(check-configs),$(call one-check-tree,$(c));)
	@$(if $(no-gpu),echo 'not run: the tests on a GPU: $(no-gpu)',:)
	$(Q)$(afresh) $(compile-once) TENON_SRC=$(CURDIR) TENON_TESTDIR=$(abspath $(check-dir))/scratch \
		prove --jobs $(shell nproc) --exec 'sh tests/run.sh' \
		$(or $(call cmdline,TESTS),$(call check-order,$(wildcard tests/*.t)) $(check-programs-of)) </dev/null

# Cleaning

made := yaml lib arch model train ckpt data infer dist tools tests include scripts arms check bench tenon \
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

folders := arch ckpt dist include infer lib model scripts defconfigs Documentation runs
.PHONY: $(folders) data tests tools

$(folders):
	$(error make $@: that is a folder; `make build` compiles what is selected, `make help` lists goals)

data:
	$(error make data: make fetches none; Documentation/data.md says where data comes from, and how a file of tokens is made)

tests:
	$(error make tests: type `make check`, or for some of them `make check TESTS=tests/build.t`)

tools:
	$(error make tools: they are verbs of the binary: `make build`, then `./tenon --help`)
