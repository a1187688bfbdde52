# SPDX-License-Identifier: MIT
# From $(CONF) to $(OBJ)/tenon: one make over all folders. Each folder's
# Makefile names its objects:
#
#	obj-y += loop.o
#	obj-$(CONFIG_OPTIM_ADAMW) += adamw.o
#	arch-y += norm.o		(arch/Makefile: found in arch/$(ARCH)/)
#	arch-test += route.o		(the same, for test programs alone)
#
# They are linked directly, never from an archive, which would drop the
# entries of the mixer registry.

.PHONY: build objects kernels ptx check-programs run FORCE
.DELETE_ON_ERROR:
.SUFFIXES:
build:

include scripts/common.mk

# Configuration: make reads auto.conf, C reads autoconf.h; make starts again
# with the new values where sync wrote them.

auto := $(OBJ)/include/config/auto.conf
gen := $(OBJ)/include/generated

$(auto): $(CONF) $(wildcard Kconfig */Kconfig */*/*.Kconfig) scripts/kconfig.py \
		$(wildcard scripts/kconf/*.py)
	$(Q)$(KCONFIG) sync
	@touch $@

# What a crash of the machine left empty is made again.
$(shell for f in $(auto) $(addprefix $(gen)/,autoconf.h taps.h free.h); do \
	[ ! -e $$f ] || [ -s $$f ] || rm -f $(auto); done)

# Without a file, however old, make would add a complaint of its own to a refusal.
$(if $(wildcard $(auto)),,$(shell mkdir -p $(dir $(auto)) && touch -d @0 $(auto)))
include $(auto)
unquote = $(subst ",,$(1))

# Objects

arch-name-$(CONFIG_ARCH_CPU) := cpu
arch-name-$(CONFIG_ARCH_CUDA) := cuda
ARCH := $(arch-name-y)

define folder
obj-y :=
arch-y :=
include $(1)/Makefile
objects += $$(addprefix $(OBJ)/$(1)/,$$(obj-y) $$(addprefix $(ARCH)/,$$(arch-y)))
endef
objects :=
arch-test :=
$(foreach d,lib arch model train ckpt data infer dist compress tools,$(eval $(call folder,$(d))))
include tests/Makefile

objects += $(OBJ)/lib/config-gz.o $(if $(CONFIG_DATA_TREE),$(OBJ)/data/corpus-bin.o)
tests := $(addprefix $(OBJ)/tests/,$(or $(call cmdline,PROGRAMS),$(test-y)))
test-only := $(addprefix $(OBJ)/arch/$(ARCH)/,$(arch-test))
compiled := $(filter-out %/config-gz.o %/corpus-bin.o,$(objects)) $(test-only) $(addsuffix .o,$(tests))
$(shell mkdir -p $(gen) $(OBJ)/scripts $(sort $(dir $(compiled) $(objects))))

$(shell for f in $(objects) $(compiled) $(tests) $(addprefix $(OBJ)/,tenon scripts/fixdep \
		data/corpus.bin) $(gen)/config $(gen)/config.gz; do [ ! -e $$f ] || [ -s $$f ] || rm -f $$f; done; \
	for f in $(compiled:.o=.d); do [ ! -e $$f ] || [ -s $$f ] || rm -f $${f%.d}.o; done)

# Flags. -ffast-math and its parts are refused: they change results. So is -O0: the
# optimizer removes calls of what is switched off, and what is switched off is not linked.

package = $(or $(shell pkg-config $(1) 2>/dev/null), \
	$(error pkg-config $(1) failed; run: make setup))
have-package = $(shell pkg-config --exists $(1) && echo y)

# Debian's BLIS has no pkg-config file, and its <cblas.h> in a folder of its own.
ifeq ($(CONFIG_BLAS_OPENBLAS),y)
blas-cflags := $(if $(call have-package,openblas),$(shell pkg-config --cflags openblas))
blas-libs := $(if $(call have-package,openblas),$(call package,--libs openblas),-lopenblas)
else ifeq ($(CONFIG_BLAS_BLIS),y)
blas-cflags := $(addprefix -isystem ,$(firstword $(wildcard /usr/include/*/blis-* /usr/include/blis)))
blas-libs := -lblis
else ifeq ($(CONFIG_BLAS_ONEDNN),y)
blas-libs := -ldnnl
endif

# Where BLAS_OPENBLAS is chosen it has LAPACK in it already.
ifeq ($(CONFIG_COMPRESS),y)
lapack-libs := $(if $(findstring openblas,$(blas-libs)),,$(firstword $(foreach l,openblas lapack,\
	$(if $(filter /%,$(shell $(CC) -print-file-name=lib$(l).so 2>/dev/null)),-l$(l)))))
lapack-libs += $(if $(filter -llapack,$(lapack-libs)),-lblas)
endif

compiler := $(shell $(CC) --version 2>/dev/null | head -n 1)

ifeq ($(compiler),)
$(error CC=$(CC): there is no such compiler; name another, or run: make setup)
else ifneq ($(findstring clang,$(compiler)),)
$(error CC=$(CC): $(compiler) lacks vector operations that arch/cpu uses; name a gcc, or leave CC away)
endif

loose := -Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math \
	-ffinite-math-only -fno-signed-zeros -fno-trapping-math -fno-math-errno \
	-ffp-contract=fast -fexcess-precision=fast -fsingle-precision-constant -mrecip% -mfpmath% \
	-mdaz-ftz
portable := $(if $(CONFIG_CPU_PORTABLE_BITS),-march=x86-64-v3 -ffp-contract=off)

define refuse-loose
ifneq ($$(filter $$(loose) $$(if $$(portable),-march% -mtune% -ffp-contract%),$$($(1))),)
$$(error $(1)=$$($(1)): results must not depend on $$(strip $$(filter $$(loose) -m% \
	-ffp-contract%,$$($(1)))); leave it away)
endif
endef
$(foreach v,CC EXTRA_CFLAGS EXTRA_LDFLAGS,$(eval $(call refuse-loose,$(v))))

ifneq ($(filter -O0,$(EXTRA_CFLAGS)),)
$(error EXTRA_CFLAGS=$(EXTRA_CFLAGS): what is switched off needs an optimizer to go; use -Og or -O1)
endif

# The toolkit that nvcc belongs to. Its cublasLt is found there when the program starts,
# or in LD_LIBRARY_PATH on another machine.
ifeq ($(CONFIG_ARCH_CUDA),y)
nvcc := $(realpath $(shell command -v nvcc))
ifeq ($(nvcc),)
$(error CONFIG_ARCH_CUDA=y: nvcc is not in the PATH; install the CUDA toolkit and add its bin \
	folder, or set CONFIG_ARCH_CPU=y)
endif
cuda := $(patsubst %/bin/nvcc,%,$(nvcc))
cuda-lib := $(firstword $(wildcard $(cuda)/lib64 $(cuda)/targets/*/lib $(cuda)/lib))
cuda-libs := -L$(cuda-lib) -Wl,-rpath,$(cuda-lib) -lcublasLt -lcudart_static -lstdc++ -lpthread \
	-ldl -lrt
gencode-$(CONFIG_CUDA_SM_80) := -gencode arch=compute_80,code=[sm_80,compute_80]
gencode-$(CONFIG_CUDA_SM_90A) := -gencode arch=compute_90a,code=sm_90a
nvccflags := -std=c++17 -O3 -lineinfo $(gencode-y) -Xcompiler -Wall -Iinclude \
	-I$(OBJ)/include -include include/kconfig.h
endif

# Tuned for Zen 1 to 3 gcc leaves some chains of multiply-adds in two roundings and not others, so
# that instances of one inline function would differ in their bits.
cflags = -std=gnu11 -O3 $(if $(CONFIG_CPU_NATIVE),-march=native) $(portable) \
	--param=avoid-fma-max-bits=0 -fopenmp -g -Wall -Wextra \
	-Wno-zero-length-bounds -Iinclude -I$(OBJ)/include $(blas-cflags) \
	-include include/kconfig.h $(test-flags) $(EXTRA_CFLAGS) $(last-flags)
ldflags := -fopenmp $(EXTRA_LDFLAGS)

# A test program is compiled once and runs once; what it tests is compiled as for users.
$(addsuffix .o,$(tests)): private test-flags := -O1

# The processor's SHA instructions have no VEX form: between AVX-512 that the optimizer left
# around them they take a hundred times as long (-Og and -O1, a Xeon), and every
# checkpoint is hashed.
$(OBJ)/lib/sha256.o: private last-flags := -O3
libs := $(blas-libs) $(lapack-libs) $(cuda-libs) $(call package,--libs zlib jansson) -lm

# A file that changes only when its content does; what depends on it follows.
# $(call content,TEXT)
define content
@printf '%s\n' '$(subst ','\'',$(1))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(1))' >$@
endef

machine := $(shell $(CC) -dumpmachine)
processor := $(if $(CONFIG_CPU_NATIVE),$(shell grep -m 1 -E '^(flags|Features)' /proc/cpuinfo \
	| cksum))

$(OBJ)/compile.flags: FORCE
	$(call content,$(CC) $(compiler) $(processor) $(cflags))

$(OBJ)/link.flags: FORCE
	$(call content,$(ldflags) $(objects) $(libs))

# Compiling: gcc writes the headers that it read, fixdep replaces autoconf.h by
# the symbols that these files use. The object comes last, so that a compiler
# killed half-way leaves nothing that looks finished.

$(OBJ)/scripts/fixdep: scripts/fixdep.c
	$(call say,HOSTCC,scripts/fixdep)
	$(Q)$(CC) -std=gnu11 -O1 -Wall -Wextra -o $@ $<

$(OBJ)/%.o: %.c $(OBJ)/compile.flags $(OBJ)/scripts/fixdep
	$(call say,CC,$*.o)
	$(Q)$(CC) $(cflags) -MMD -MF $@.raw -MT $@ -c -o $@.tmp $<
	@$(OBJ)/scripts/fixdep $@.raw $(OBJ)/include >$(@:.o=.d) && rm -f $@.raw && mv $@.tmp $@

$(OBJ)/nvcc.flags: FORCE
	$(call content,$(nvcc) $(shell $(nvcc) --version | tail -n 1) $(nvccflags))

$(OBJ)/%.o: %.cu $(OBJ)/nvcc.flags $(OBJ)/scripts/fixdep
	$(call say,NVCC,$*.o)
	$(Q)$(nvcc) $(nvccflags) -MMD -MF $@.raw -MT $@ -c -o $@.tmp $<
	@$(OBJ)/scripts/fixdep $@.raw $(OBJ)/include >$(@:.o=.d) && rm -f $@.raw && mv $@.tmp $@

$(OBJ)/%.ptx: %.cu $(OBJ)/nvcc.flags $(OBJ)/scripts/fixdep
	$(call say,PTX,$*.ptx)
	$(Q)$(nvcc) $(nvccflags) -Xcicc -O0 -ptx -MMD -MF $@.raw -MT $@ -o $@.tmp $<
	@$(OBJ)/scripts/fixdep $@.raw $(OBJ)/include >$@.d && rm -f $@.raw && mv $@.tmp $@

-include $(compiled:.o=.d) $(compiled:.o=.ptx.d)

# $(call embed,SYMBOL,FILE)
define embed
$(call say,EMBED,$(patsubst $(OBJ)/%,%,$@))
$(Q)$(CC) -DNAME=$(1) -DNAME_END=$(1)_end -DPATH='"$(2)"' -c -o $@ scripts/embed.S
endef

# What the binary says about itself: its .config, git state and compiler.

git := $(shell sh scripts/git-state.sh)

$(gen)/config: $(CONF)
	@cmp -s $< $@ || cp $< $@

$(gen)/config.gz: $(gen)/config
	@gzip -9n <$< >$@

$(gen)/build.h: FORCE
	$(call content,#define BUILD_TEXT "git $(git); $(call unquote,$(compiler)); $(machine)")

$(OBJ)/lib/config-gz.o: $(gen)/config.gz scripts/embed.S $(OBJ)/compile.flags
	$(call embed,tenon_config_gz,$<)

$(OBJ)/lib/ikconfig.o: $(gen)/build.h

# The embedded corpus: a text that no commit changes.

$(OBJ)/data/corpus.bin: data/corpus.gz data/corpus.sha256
	$(call say,UNPACK,data/corpus.bin)
	$(Q)gzip -dc data/corpus.gz | tee $@.tmp | sha256sum --check --status data/corpus.sha256 || \
		{ echo 'data/corpus.gz is damaged: git checkout data/corpus.gz brings it back' >&2; exit 2; }
	@mv $@.tmp $@

$(OBJ)/data/corpus-bin.o: $(OBJ)/data/corpus.bin scripts/embed.S $(OBJ)/compile.flags
	$(call embed,tenon_corpus,$<)

# Linking

$(OBJ)/tenon: $(objects) $(OBJ)/link.flags
	$(call say,LD,tenon)
	$(Q)$(CC) $(ldflags) -o $@ $(objects) $(libs)

test-objects := $(filter-out $(OBJ)/tools/main.o,$(objects)) $(test-only)
model-objects := $(filter $(addprefix $(OBJ)/,lib/% arch/% model/% dist/% train/optim.o \
	train/adam% train/accum.o),$(test-objects))
model-tests := $(filter $(addprefix $(OBJ)/tests/,$(model-test-y)),$(tests))
dump-objects := $(filter $(addprefix $(OBJ)/,ckpt/% data/% tools/dump.o tools/plan%),$(test-objects))
dump-tests := $(filter $(addprefix $(OBJ)/tests/,$(dump-test-y)),$(tests))

$(model-tests) $(dump-tests): $(model-objects)
$(dump-tests): $(dump-objects)
$(filter-out $(model-tests) $(dump-tests),$(tests)): $(test-objects)
$(tests): %: %.o $(OBJ)/link.flags
	$(call say,LD,tests/$(@F))
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o,$^) $(libs)

build: $(OBJ)/tenon
	$(if $(tree),@:,@[ "$$(readlink tenon)" = $(OBJ)/tenon ] || ln -sfn $(OBJ)/tenon tenon)

check-programs: $(tests)
	@:

# Compiled, not linked: everything that may not look into act_t and param_t.
objects: $(filter-out $(OBJ)/arch/%,$(objects))
	@:

# Every kernel of the arch, also those that the configuration does not use. Needs no GPU.
kernels: $(filter $(OBJ)/arch/%,$(objects)) $(test-only)
	@:

# The same as far as PTX, unoptimised: whether they compile, in a fifth of the time.
ptx: $(patsubst %.o,%.ptx,$(filter $(OBJ)/arch/%,$(objects)) $(test-only))
	@:

# What the configuration is for. Building takes seconds; the binary itself says then
# whether memory, data and output folder are there. The output of an object tree lies in it,
# so that two configurations do not meet in one folder.

# One word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
out := $(or $(call typed,OUT),$(addsuffix /,$(tree))runs/$(call unquote,$(CONFIG_RUN_NAME)))
# A string of auto.conf for the shell: already in double quotes.
literal = $(subst `,\`,$(subst $$,\$$,$(1)))
run-flags = --out $(call quoted,$(out)) $(if $(call cmdline,RESTART),--restart) \
	$(if $(call typed,THREADS),--threads=$(call quoted,$(call typed,THREADS)))
allow := $(if $(call cmdline,ALLOW_CONFIG_CHANGE),--allow-config-change)
tenon := $(OBJ)/tenon --called-by-make

run:
ifneq ($(CONFIG_RA_MLA_ABLATION_MODE)$(call unquote,$(CONFIG_ABLATION_ARMS)),)
	$(if $(allow),$(error ALLOW_CONFIG_CHANGE=$(ALLOW_CONFIG_CHANGE): the arms of a study must be of \
		one configuration; RESTART=1 moves the old study aside))
	$(Q)$(afresh) $(PYTHON) scripts/ablate.py --config $(CONF) --objtree $(OBJ) \
		$(if $(tree),,--link tenon) $(run-flags)
else
	$(Q)+$(locked) $(MAKE) -f scripts/build.mk build
	$(Q)$(tenon) plan --check --out $(call quoted,$(out)) \
		$(if $(CONFIG_DATA_PATH),--data $(call literal,$(CONFIG_DATA_PATH)))
	$(Q)$(tenon) train $(run-flags) $(allow)
endif
