#!/bin/sh
# SPDX-License-Identifier: MIT
# Why this machine cannot run the tests of the CUDA backend, in one line; nothing where it can.

if ! command -v nvcc >/dev/null; then
	echo "for nvcc is not in the PATH; its kernels are not compiled either"
elif ! nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
	echo "for nvidia-smi -L lists none; its kernels are compiled"
fi
