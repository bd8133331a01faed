"""The mistake that a user can mend, how every command prints it, and how one ends that nobody reads."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: command lines print it as one line and exit with code 2."""


def print_mistake(mistake: UserError) -> int:
    """Print a mistake as the one line that every command line gives it, and return the exit code for it."""
    print(f"camal_rl: {mistake}", file=sys.stderr)
    return 2


def end_quietly_without_a_reader() -> None:
    """Let this process end without a traceback when the reader of its output, such as `head`, leaves."""

    def hook(*error: Any) -> None:
        end_if_unread()
        sys.__excepthook__(*error)

    sys.excepthook = hook
    atexit.register(end_if_unread)


def end_if_unread() -> None:
    """End the process with SIGPIPE's exit code where the reader of its output has left."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    output = select.poll()
    output.register(1, select.POLLOUT)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os._exit(128 + signal.SIGPIPE)


def in_one_line(error: Exception) -> str:
    """An exception's text, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
