#!/bin/sh
# SPDX-License-Identifier: MIT
# List the defconfigs with their first comment line behind `# base:`. With an argument, which names
# a .config that is missing: as the answer to who needs it.

if [ $# -gt 0 ]; then
	cat <<END
$1 does not exist. To see Tenon at work:

    make demo       # sets up what is missing, then: make defconfig-tiny-ra-mla-full && make
    make check      # sets up what is missing, builds, runs every test

or choose a configuration, then make:

END
fi

cd defconfigs || exit
for name in *; do
	case $name in
	*.config) target=$name ;;
	*) target=defconfig-$name ;;
	esac
	awk -v target="make $target" '/^# *base:/ { next } {
		sub(/^# */, "")
		printf "    %-34s %s\n", target, $0
		exit
	}' "$name"
done | sort
