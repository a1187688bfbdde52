#!/bin/sh
# SPDX-License-Identifier: MIT
# Print the commit of this tree, "+dirty" behind it where a committed file was
# changed; "none" where this folder is not the top of a git checkout with a
# commit that git is willing to read.

head=none
if prefix=$(git rev-parse --show-prefix 2>/dev/null) && [ -z "$prefix" ]; then
	head=$(git rev-parse --verify -q HEAD 2>/dev/null) || head=none
fi
if [ "$head" != none ] && [ "$(git --no-optional-locks status --porcelain \
		--untracked-files=no --ignore-submodules)" ]; then
	head=$head+dirty
fi
echo "$head"
