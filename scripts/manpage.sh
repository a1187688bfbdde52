#!/bin/sh
# SPDX-License-Identifier: MIT
# Print the man page of a binary, from what its --help says.
#
#	scripts/manpage.sh BINARY

binary=${1:?}

# Text for troff: no line begins a request, a hyphen is a hyphen.
plain() {
	sed 's/\\/\\e/g; s/-/\\-/g; s/^\./\\\&./'
}

verbs() {
	"$binary" --help | sed -n 's/^  \([a-z]*\)  *.*/\1/p'
}

flags_of() {
	"$binary" "$1" --help | plain | awk '
		/^  / && match($0, /^  [^ ]+( (TEXT|N|X))?/) {
			flag = substr($0, 3, RLENGTH - 2)
			text = substr($0, RLENGTH + 1)
			sub(/^ +/, "", text)
			sub(/ /, "\\fR \\fI", flag)
			print ".TP\n.B " flag "\\fR\n" text
		}'
}

cat <<END
.TH TENON 1 "" "$("$binary" --version | cut -d\; -f1 | plain)" "User Commands"
.SH NAME
tenon \\- train and run the language model that this binary was configured for
.SH SYNOPSIS
.B tenon
.I VERB
[flags]
.br
.B tenon
\\-\\-help | \\-\\-version
.SH DESCRIPTION
One configuration makes one binary;
.B tenon config
prints the one of this. Flags are what needs no new binary. A value follows its flag as the
next word or behind a =.
.SH VERBS
END
for verb in $(verbs); do
	echo ".SS tenon $verb"
	"$binary" --help | plain | sed -n "s/^  $verb  *//p"
	flags_of "$verb"
done
cat <<'END'
.SH EXIT STATUS
0: done. 1: training stopped because too many updates in a row were not finite. 2: something the
user can mend, named in one line on stderr. 128 and the number of a signal: stopped by it; run
again to go on.
END
