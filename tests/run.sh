#!/bin/sh
# SPDX-License-Identifier: MIT
# How prove runs one test: a script by its first line, Python by the one that
# the build uses, a program as it is. What a test says on stderr, refusals that
# it provoked among them, is shown only where it fails.

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

log=$(mktemp) || exit
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # no word where there is no interpreter
$interpreter "$@" 2>"$log"
status=$?
[ "$status" -eq 0 ] || cat "$log" >&2
exit "$status"
