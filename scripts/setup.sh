#!/bin/sh
# SPDX-License-Identifier: MIT
# Install what the build and the tests need and this machine lacks: Debian
# packages where that is allowed (as root, or through sudo without a password),
# else print the command to type and fail. Says nothing where nothing is missing.
# Run from the top of the tree.
#
#	scripts/setup.sh [torch|bench|transformers|curve|report|browser|fuzz|yaml|compress]
#
# torch: Debian's PyTorch too, which tests/torch.t compares with.
# bench: the newest PyTorch too, in a folder of its own, and what torch.compile needs;
# where none can be had, Debian's.
# transformers: that and the transformers library, which tests/transformers.t compares with.
# compress: LAPACK too, where neither OpenBLAS, which has it, nor another one is there.
# yaml: PyYAML too, for make yamlconfig.
# curve: gnuplot too, where it can be had; without it a study draws no curve.
# report: scipy too, where it can be had; without it a report has no intervals.
# browser: chromium too, where it can be had; with it tests/report.t looks at reports.
# fuzz: clang too, with libFuzzer and the sanitizers.

WITH=$1
KCONFIGLIB=14.1.0
VENV=build/venv
TORCH=build/torch

has_library() {
	pkg-config --exists "$1" 2>/dev/null
}

has_python() {
	sh scripts/python.sh >/dev/null
}

has_torch() {
	/usr/bin/python3 -c 'import torch, numpy' 2>/dev/null
}

has_yaml() {
	/usr/bin/python3 -c 'import yaml' 2>/dev/null
}

has_new_torch() {
	"$TORCH/bin/python" -c 'import torch' 2>/dev/null
}

# has_linkable NAME...: one of these libraries
has_linkable() {
	for lib in "$@"; do
		case $(${CC:-cc} -print-file-name=lib$lib.so 2>/dev/null) in
		/*) return ;;
		esac
	done
	return 1
}

# The Debian package of kconfiglib, where it is the pinned version.
kconfiglib_package() {
	apt-cache policy python3-kconfiglib 2>/dev/null |
		grep -q "Candidate: ${KCONFIGLIB%.*}" && echo python3-kconfiglib
}

# torch.compile makes C++ against the headers of Python.
bench_packages() {
	command -v g++ >/dev/null || echo g++
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
	/usr/bin/python3 -c 'import os, sysconfig
os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null || echo python3-dev
}

missing_packages() {
	command -v "${CC:-gcc}" >/dev/null || echo gcc libc6-dev
	command -v make >/dev/null || echo make
	command -v pkg-config >/dev/null || echo pkg-config
	command -v prove >/dev/null || echo perl
	command -v python3 >/dev/null || echo python3
	has_library zlib || echo zlib1g-dev
	has_library jansson || echo libjansson-dev
	has_linkable openblas blis || echo libopenblas-dev
	has_linkable dnnl || echo libdnnl-dev
	[ "$WITH" != compress ] || has_linkable openblas lapack || echo libopenblas-dev
	[ "$WITH" != yaml ] || has_yaml || echo python3-yaml
	[ "$WITH" != torch ] || has_torch || echo python3-torch python3-numpy
	case $WITH in bench | transformers) bench_packages ;; esac
}

say() {
	printf '  %-7s %s\n' SETUP "$*"
}

fail() {
	echo "setup: $*" >&2
	exit 2
}

apt_install() {
	say "$@"
	$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends "$@" </dev/null >"$log" 2>&1
}

# Fresh containers have no package lists, old ones outdated lists.
apt_update() {
	say package lists
	$sudo apt-get update -qq </dev/null >"$log" 2>&1
}

# Whether packages may be installed without asking anybody.
may_install() {
	command -v apt-get >/dev/null || return 1
	sudo=
	[ "$(id -u)" = 0 ] && return
	sudo=sudo
	sudo -n true 2>/dev/null
}

install_packages() {
	command -v apt-get >/dev/null ||
		fail "install what these Debian packages have, then repeat: $*"
	may_install || fail "packages are missing; type: sudo apt-get update &&" \
		"sudo apt-get install -y $* $(has_python || kconfiglib_package)"
	if ! apt_install "$@" && ! { apt_update && apt_install "$@"; }; then
		cat "$log" >&2
		fail "apt-get install $* failed (above); mend that, then repeat"
	fi
}

install_venv() {
	say "kconfiglib $KCONFIGLIB in $VENV"
	mkdir -p build
	for python in python3 /usr/bin/python3; do
		rm -rf "$VENV"
		if "$python" -m venv "$VENV" >"$log" 2>&1 &&
			"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
				"kconfiglib==$KCONFIGLIB" >>"$log" 2>&1; then
			return
		fi
	done
	cat "$log" >&2
	rm -rf "$VENV"
	return 1
}

# From Debian where it has the version and we may, else in a folder of our own.
install_kconfiglib() {
	if may_install; then
		[ "$(kconfiglib_package)" ] || apt_update || :
		package=$(kconfiglib_package)
		if [ "$package" ]; then
			install_packages "$package"
			has_python && return
		fi
	fi
	install_venv || fail "kconfiglib $KCONFIGLIB is missing; type: sudo apt-get update &&" \
		"sudo apt-get install -y $(kconfiglib_package || echo python3-venv), then repeat"
}

# A failure is no end: Debian's PyTorch is a peer too, and the bench names what it took.
install_torch() {
	say "the newest PyTorch in $TORCH (gigabytes: the index's default build)"
	rm -rf "$TORCH"
	mkdir -p build
	if /usr/bin/python3 -m venv "$TORCH" >"$log" 2>&1 &&
		"$TORCH/bin/python" -m pip install --quiet --disable-pip-version-check \
			torch numpy >>"$log" 2>&1 && has_new_torch; then
		return
	fi
	say "no newer PyTorch: $(tail -n 1 "$log")"
	rm -rf "$TORCH"
	has_torch && return
	may_install && install_packages python3-torch python3-numpy
	has_torch || fail "there is no PyTorch; type: sudo apt-get install -y python3-torch python3-numpy"
}

# For tests/transformers.t alone, which is skipped without it.
install_transformers() {
	has_new_torch || fail "the transformers library needs a newer PyTorch than Debian's"
	say "transformers in $TORCH"
	"$TORCH/bin/python" -m pip install --quiet --disable-pip-version-check transformers \
		>"$log" 2>&1 || { cat "$log" >&2; fail "pip install transformers failed (above)"; }
}

# wish PACKAGE WORDS: no need; the words say what there is not without it
wish() {
	! may_install || apt_install "$1" || { apt_update && apt_install "$1"; } || say "$2"
}

has_scipy() {
	"$(sh scripts/python.sh)" -c 'import scipy' 2>/dev/null
}

# For the Python that runs scripts: a folder of our own takes no Debian packages.
wish_scipy() {
	case $(sh scripts/python.sh) in
	"$PWD/$VENV"/*)
		say "scipy in $VENV"
		"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check scipy \
			>"$log" 2>&1 || say "without scipy: a report has no intervals" ;;
	*) wish python3-scipy "without scipy: a report has no intervals" ;;
	esac
}

# The driver says where its own libraries are; of libFuzzer there is one for each processor.
has_fuzzer() {
	set -- "$(clang -print-resource-dir 2>/dev/null)"/lib/*/libclang_rt.fuzzer*.a
	[ -e "$1" ]
}

log=$(mktemp) || exit
trap 'rm -f "$log"' EXIT
packages=$(missing_packages)
# shellcheck disable=SC2086 # one word for each package
[ -z "$packages" ] || install_packages $packages
packages=$(missing_packages | tr '\n' ' ')
[ -z "$packages" ] || fail "still missing after the installation: $packages"
has_python || install_kconfiglib
has_python || fail "no python3 imports kconfiglib $KCONFIGLIB even after the installation"
case $WITH in bench | transformers) has_new_torch || install_torch ;; esac
[ "$WITH" != transformers ] || "$TORCH/bin/python" -c 'import transformers' 2>/dev/null ||
	install_transformers
[ "$WITH" != curve ] || command -v gnuplot >/dev/null ||
	wish gnuplot-nox "without gnuplot: no picture of the losses"
[ "$WITH" != report ] || has_scipy || wish_scipy
[ "$WITH" != browser ] || command -v chromium >/dev/null ||
	wish chromium "without chromium: nobody looks at reports"
[ "$WITH" != fuzz ] || has_fuzzer || install_packages clang libclang-rt-dev
