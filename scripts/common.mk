# SPDX-License-Identifier: MIT
# What Makefile and scripts/build.mk share: the object tree, output, Python.
#
# Settings are taken from make's command line alone, so that a variable which
# happens to be in the environment changes nothing.

MAKEFLAGS += --no-builtin-rules --no-builtin-variables --no-print-directory
cmdline = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))
# The same as it was typed: a dollar sign is one.
typed = $(if $(filter command,$(firstword $(origin $(1)))),$(value $(1)))
unexport O V DESTDIR PREFIX OUT RESTART ALLOW_CONFIG_CHANGE THREADS TESTS PROGRAMS SEED SYMBOL N RUNS BASE \
	ARMS SEEDS EARLY_STOP BUILD RUN STEPS

# O=DIR: DIR/.config, DIR/tenon and everything that is made.
# Without it: ./.config, and everything under build/ with a link ./tenon.
# What make, the shell or a pattern rule would read otherwise is refused before it is used.
hash := \#
odd := : % $$ ' " \ * ? [ ] ; & | < > ( ) { } ` ! , ^ ~ $(hash)
given := $(call typed,O)
wrong := $(foreach c,$(odd),$(findstring $(c),$(given)))$(if $(filter -%,$(given)), a dash in front)
ifneq ($(strip $(wrong)),)
$(error O=$(strip $(given)): a path with $(strip $(wrong)) does not work; name another folder)
endif
define newline


endef
ifneq ($(findstring $(newline),$(given)),)
$(error O=: a path with a line feed does not work; name another folder)
endif
ifneq ($(subst x$(given)x,,x$(strip $(given))x),)
$(error O=$(strip $(given)): a path with spaces or line feeds around it does not work; name another folder)
endif
# A path back through a folder that may not be there is taken for where it leads.
tree := $(patsubst %/,%,$(call cmdline,O))
tree := $(if $(findstring /..,$(tree)),$(abspath $(tree)),$(tree))
OBJ := $(or $(tree),build)
CONF := $(if $(tree),$(tree)/.config,.config)

ifneq ($(words $(tree)),$(if $(tree),1,0))
$(error O=$(tree): a path with spaces does not work; name another folder)
endif
ifneq ($(filter $(CURDIR) $(CURDIR)/build,$(if $(tree),$(abspath $(tree)))),)
$(error O=$(tree): that is the place of the tree without O=; leave O= away or name another folder)
endif

# $(Q) before a command hides it, $(call say,TAG,WHAT) announces it; V=1 shows
# the commands instead, make -s neither.
ifneq ($(call cmdline,V),1)
Q := @
ifeq ($(findstring s,$(firstword -$(filter-out --%,$(MAKEFLAGS)))),)
say = @printf '  %-7s %s\n' $(1) $(2)
endif
endif

# Looked for when a recipe first needs it, never while a makefile is read.
# make check hands its choice to the tests in TENON_PYTHON.
PYTHON = $(eval PYTHON := $$(or $(TENON_PYTHON),$(shell sh scripts/python.sh),$$(error \
	no python3 here imports kconfiglib 14.1; run: make setup)))$(PYTHON)
KCONFIG = $(PYTHON) scripts/kconfig.py --config $(CONF) --gen $(OBJ)

ifneq ($(filter default undefined,$(origin CC)),)
CC := gcc
endif

# One job per processor where nobody said otherwise.
jobs = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# For programs that call make themselves: it starts afresh, with this Python.
afresh = env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL TENON_PYTHON=$(PYTHON)

# One make at a time compiles in an object tree; another one waits.
locked = mkdir -p $(OBJ) && flock --close $(OBJ)
