"""The mistake that a user can mend, and how every command prints it."""

from __future__ import annotations

import sys


class UserError(Exception):
    """A mistake that the user can mend: command lines print it as one line and exit with code 2."""


def print_mistake(mistake: UserError) -> int:
    """Print a mistake as the one line that every command line gives it, and return the exit code for it."""
    print(f"camal_rl: {mistake}", file=sys.stderr)
    return 2
