// SPDX-License-Identifier: MIT
/*
 * A binary for x86-64-v3 says so on an older processor, before its first instruction that
 * such a one does not know. Nothing of libc is ready here but system calls.
 */
#include <string.h>
#include <unistd.h>

#include "util.h"

#define WRONG "tenon: this processor is no x86-64-v3 (AVX2, FMA, BMI2): this binary was built with " \
	"CONFIG_CPU_PORTABLE_BITS=y; build it without\n"

static void check_level(int argc, char **argv, char **env)
{
	(void)argc;
	(void)argv;
	(void)env;
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
	    __builtin_cpu_supports("bmi2"))
		return;
	if (write(2, WRONG, sizeof(WRONG) - 1) >= 0)
		_exit(EXIT_INPUT);
	_exit(EXIT_INPUT);
}

static void (*const start)(int, char **, char **)
	__attribute__((section(".preinit_array"), used)) = check_level;
