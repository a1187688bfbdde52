# SPDX-License-Identifier: MIT
# Preprocessed C without the constants of anonymous enums that nothing uses: widths in a
# header that every file includes. Only lines "NAME = value," whose next one has a value, too.
{
	line[NR] = $0
	n = split($0, word, /[^A-Za-z0-9_]+/)
	for (i = 1; i <= n; i++)
		uses[word[i]]++
	if (inside && $1 ~ /^[A-Z][A-Z0-9_]*$/ && $2 == "=" && /,$/)
		name[NR] = $1
	if (/^enum *{$/)
		inside = 1
	else if (/}/)
		inside = 0
}
END {
	for (k = NR; k > 0; k--)
		if (k in name && uses[name[k]] == 1 &&
		    (k + 1 in gone || line[k + 1] ~ /=/ || line[k + 1] ~ /^ *}/)) {
			n = split(line[k], word, /[^A-Za-z0-9_]+/)
			for (i = 1; i <= n; i++)
				uses[word[i]]--
			line[k] = ""
			gone[k]
		}
	for (k = 1; k <= NR; k++)
		print line[k]
}
