#!/bin/sh
# SPDX-License-Identifier: MIT
# Print the Python that the build uses: the first that imports kconfiglib 14.1.
# Run from the top of the tree; exit 1 where there is none.

for python in /usr/bin/python3 python3 "$PWD/build/venv/bin/python"; do
	if "$python" -c 'import kconfiglib as k, sys; sys.exit(k.VERSION[:2] != (14, 1))' \
			2>/dev/null; then
		command -v "$python"
		exit 0
	fi
done
exit 1
