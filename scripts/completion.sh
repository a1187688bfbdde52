#!/bin/sh
# SPDX-License-Identifier: MIT
# Print bash's completion for a binary, from what its --help says.
#
#	scripts/completion.sh BINARY

binary=${1:?}
verbs=$("$binary" --help | sed -n 's/^  \([a-z]*\)  *.*/\1/p' | tr '\n' ' ')

cat <<END
# bash completion for tenon
_tenon()
{
	local word=\${COMP_WORDS[COMP_CWORD]} flags= texts=

	COMPREPLY=()
	if [ "\$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "$verbs--help --version" -- "\$word")
		return
	fi
	case \${COMP_WORDS[1]} in
END
for verb in $verbs; do
	"$binary" "$verb" --help | awk -v verb="$verb" '
		/^  --/ { flags = flags " " $1; if ($2 == "TEXT") texts = texts " " $1 }
		END { printf "\t%s) flags=\"%s\" texts=\"%s \" ;;\n", verb, substr(flags, 2), texts }'
done
cat <<'END'
	esac
	# what a text is for is mostly a path; a verb is none, though a folder may have its name
	if [[ $texts == *" ${COMP_WORDS[COMP_CWORD - 1]} "* ]]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
	else
		mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$word")
	fi
}
complete -F _tenon tenon
END
