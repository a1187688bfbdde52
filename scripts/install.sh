#!/bin/sh
# SPDX-License-Identifier: MIT
# Install a binary with its man page and bash completion.
#
#	scripts/install.sh BINARY PREFIX

set -e
binary=${1:?} prefix=${2:?}

put() {
	mkdir -p "$(dirname "$2")"
	install -m "$3" "$1" "$2"
}

text=$(mktemp)
trap 'rm -f "$text"' EXIT
put "$binary" "$prefix/bin/tenon" 755
sh scripts/manpage.sh "$binary" >"$text"
put "$text" "$prefix/share/man/man1/tenon.1" 644
sh scripts/completion.sh "$binary" >"$text"
put "$text" "$prefix/share/bash-completion/completions/tenon" 644
