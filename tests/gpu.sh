#!/bin/sh
# SPDX-License-Identifier: MIT
# Why this machine cannot run the tests of the CUDA backend, in one line; nothing where it can.

if ! command -v nvcc >/dev/null; then
	echo "nvcc is not in the PATH; no CUDA kernel is compiled"
elif ! nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
	echo "nvidia-smi -L lists none; CUDA kernels are compiled"
fi
