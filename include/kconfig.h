/* SPDX-License-Identifier: MIT */
/**
 * DOC: configuration symbols in C
 *
 * Force-included into every object. <generated/autoconf.h> holds one line per
 * symbol: a bool that is y is 1 (n: not defined), an int is always a number
 * (0 without a value), a string always a literal, a real a double literal
 * together with CONFIG_X_NONZERO.
 */
#ifndef TENON_KCONFIG_H
#define TENON_KCONFIG_H

#include <generated/autoconf.h>

#define KCONFIG_ARG_PLACEHOLDER_1 0,
#define KCONFIG_SECOND(ignored, val, ...) val
#define KCONFIG_IS_SET3(arg1_or_junk) KCONFIG_SECOND(arg1_or_junk 1, 0, 0)
#define KCONFIG_IS_SET2(val) KCONFIG_IS_SET3(KCONFIG_ARG_PLACEHOLDER_##val)
#define KCONFIG_IS_SET1(val) KCONFIG_IS_SET2(val)

/**
 * IS_ENABLED() - 1 where a bool symbol is y, else 0
 * @option: the symbol with its CONFIG_ prefix
 *
 * A constant expression, usable in C conditions and array dimensions, so that
 * code which is switched off still compiles.
 */
#define IS_ENABLED(option) KCONFIG_IS_SET1(option)

#endif
