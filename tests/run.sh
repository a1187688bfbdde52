#!/bin/sh
# SPDX-License-Identifier: MIT
# How prove runs one test: a script by its first line, Python by the one that
# the build uses, a program as it is. Where a test fails, its failed lines, what
# it says of them and its stderr follow on stderr; else stderr is not shown,
# for tests provoke refusals.

interpreter=
# Threads of a busy machine should sleep, not spin.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

case $1 in
*.t)
	read -r first <"$1"
	case $first in
	*python*) interpreter=${TENON_PYTHON:-python3} ;;
	*perl*) interpreter=perl ;;
	*bash*) interpreter=bash ;;
	*) interpreter="sh" ;;
	esac ;;
esac

log=$(mktemp -d) || exit
trap 'rm -rf "$log"' EXIT
# shellcheck disable=SC2086 # no word where there is no interpreter
{ $interpreter "$@" 2>"$log/err"; echo $? >"$log/status"; } | tee "$log/out"
read -r status <"$log/status"
if [ "$status" -ne 0 ]; then
	awk '/^ok/ { show = 0 } /^not ok/ { show = 1 } show' "$log/out" >&2
	cat "$log/err" >&2
fi
exit "$status"
