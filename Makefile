# SPDX-License-Identifier: MIT
# The goals that people type. scripts/build.mk compiles; Documentation/build.md
# explains both.

# Goals run in the order in which they were typed: make defconfig-tiny-gpt2 all
.NOTPARALLEL:
.PHONY: all build objects check-programs demo check bench setup help clean mrproper FORCE
all:

include scripts/common.mk
include tests/Makefile

build.mk = $(MAKE) $(jobs) -f scripts/build.mk

# Configuration

verbs := menuconfig guiconfig oldconfig olddefconfig savedefconfig alldefconfig allnoconfig \
	listnewconfig
defconfig := $(filter defconfig-% %_defconfig,$(MAKECMDGOALS))
fragments := $(filter %.config,$(MAKECMDGOALS))
.PHONY: $(verbs) randconfig list-defconfigs $(fragments)

ifneq ($(word 2,$(defconfig)),)
$(error $(defconfig): only one of them can be the configuration; name one, and fragments on top)
endif

$(verbs):
	$(Q)$(KCONFIG) $@

randconfig:
	$(Q)$(KCONFIG) $@ $(call cmdline,SEED)

defconfig-%: FORCE
	$(Q)$(KCONFIG) defconfig $* $(fragments)

%_defconfig: FORCE
	$(Q)$(KCONFIG) defconfig $* $(fragments)

# With a defconfig they were merged there, so that all are checked together.
$(fragments):
	$(if $(defconfig)$(filter-out $(firstword $(fragments)),$@),@:,$(Q)$(KCONFIG) merge $(fragments))

list-defconfigs:
	@sh scripts/list-defconfigs.sh

# Building and running

have-config = @test -f $(CONF) || { sh scripts/list-defconfigs.sh 'tenon: $(CONF)' >&2; exit 2; }

all:
	$(have-config)
	$(Q)+$(build.mk) run

build objects check-programs:
	$(have-config)
	$(Q)+$(locked) $(build.mk) $@

setup:
	@sh scripts/setup.sh

demo: setup
	$(Q)$(MAKE) defconfig-tiny-ra-mla-full
	$(Q)$(MAKE) all

bench:
	@sh scripts/setup.sh torch
	$(Q)$(afresh) $(PYTHON) scripts/bench.py --objtree $(OBJ)/bench \
		$(addprefix --threads ,$(call cmdline,THREADS))

# Tests: programs under every configuration of tests/Makefile, then the scripts.

check-dir = $(OBJ)/check
check-programs-of = $(foreach c,$(check-config-y),$(addprefix $(check-dir)/$(c)/tests/,$(test-y)))
one-check-tree = $(MAKE) O=$(check-dir)/$(1) $(jobs) \
	defconfig-$(firstword $(subst +, ,$(1))) \
	$(addsuffix .config,$(wordlist 2,9,$(subst +, ,$(1)))) check-programs

check: setup
	$(Q)rm -rf $(check-dir)/scratch && mkdir -p $(check-dir)/scratch
	$(Q)+set -e; $(foreach c,$(check-config-y),$(call one-check-tree,$(c));)
	$(Q)$(afresh) TENON_SRC=$(CURDIR) TENON_TESTDIR=$(abspath $(check-dir))/scratch \
		prove --jobs $(shell nproc) --exec 'sh tests/run.sh' \
		$(or $(call cmdline,TESTS),$(wildcard tests/*.t) $(check-programs-of)) </dev/null

# Cleaning

made := lib arch model train ckpt data infer dist tools tests include scripts arms check bench tenon \
	compile.flags link.flags

clean:
	$(Q)rm -rf $(addprefix $(OBJ)/,$(made)) $(if $(tree),,tenon)
	$(Q)find scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

mrproper: clean
	$(Q)rm -f $(CONF) $(CONF).old $(if $(tree),$(tree)/)defconfig
	$(Q)$(if $(tree),[ ! -d $(tree) ] || rmdir --ignore-fail-on-non-empty $(tree),rm -rf build)

help:
	@cat scripts/help.txt
