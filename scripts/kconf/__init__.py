# SPDX-License-Identifier: MIT
"""The configuration front end behind scripts/kconfig.py."""
