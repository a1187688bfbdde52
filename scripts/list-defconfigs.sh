#!/bin/sh
# SPDX-License-Identifier: MIT
# List the defconfigs, then the fragments, with their first comment line behind `# base:`. With an
# argument, which names a .config that is missing: as the answer to who needs it.

if [ $# -gt 0 ]; then
	cat <<END
$1 does not exist. To see Tenon at work:

    make demo       # sets up what is missing, then: make defconfig-tiny-ra-mla-full && make
    make check      # sets up what is missing, builds, runs every test

or choose a configuration, then make:

END
fi

# Those of one kind: PREFIX is "defconfig-", or nothing for fragments.
list() {
	for name in *; do
		case $name in
		*.config) kind= ;;
		*) kind=defconfig- ;;
		esac
		[ "$kind" != "$1" ] || awk -v target="make $1$name" '/^# *base:/ { next } {
			sub(/^# */, "")
			printf "    %-36s %s\n", target, $0
			exit
		}' "$name"
	done
}

cd defconfigs || exit
list defconfig-
printf '\nFragments go on top of one, behind it or later:\n\n'
list ''
