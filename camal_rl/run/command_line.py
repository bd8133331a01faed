"""Options and their ranges, and how commands end: on signals, and on errors as one line and an exit code."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import pydantic
import tyro

from camal_rl.errors import UserError, end_if_unread, end_quietly_without_a_reader, print_mistake

# Waiting torch threads spin by default, which takes the cores from the game engines. torch's import reads it,
# and commands import this module before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

T = TypeVar("T")


def option(value: str | None = None) -> Any:
    """Let --help show an option with this word for its value, and with its default where it has one."""
    words = {"None": "", "''": "", "": "", "True": "(default: on)", "False": "(default: off)"}
    return tyro.conf.arg(
        metavar=value, help_behavior_hint=lambda default: words.get(default, f"(default: {default})")
    )


NAME, _COUNT, _NUMBER = option("NAME"), option("N"), option("X")
Method = Literal["camal", "balanced", "vanilla", "suppress"]
"""Methods that agents are trained with."""
Map = Literal[
    "gradcam", "magnitude", "layercam", "hirescam", "diffgradcam", "smoothgrad", "integrated-gradients"
]
"""Kinds of attention maps: `attention.METHODS`, which would be torch's to import."""
Switch = Annotated[bool, option()]
Count = Annotated[int, pydantic.Field(ge=0, lt=2**63), _COUNT]
Positive = Annotated[int, pydantic.Field(ge=1, lt=2**63), _COUNT]
Number = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False), _NUMBER]
RunName = Annotated[str, pydantic.Field(pattern=r"^(\w[\w.+=-]{0,99})?$"), NAME]
Factor = Annotated[float, pydantic.Field(gt=0), _NUMBER]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1), _NUMBER]


def parse(kind: type[T], program: str, arguments: Sequence[str] | None = None) -> T:
    """Read a command line into a dataclass of options; exit with code 2 and a message where it can't be.

    Without `arguments` it is this process's own, see `own_arguments`.
    """
    try:
        for word in (given := own_arguments() if arguments is None else arguments):
            if (written := os.fsencode(word)) != word.encode(errors="replace"):
                raise UserError(f"{written!r} is not UTF-8, as all names here have to be: rename it.")
        args = tyro.cli(kind, prog=program, args=given)
        for name, value in vars(args).items():
            setattr(args, name, without_tilde(value))
        check_ranges(args)
    except UserError as mistake:
        sys.exit(print_mistake(mistake))
    return args


def words(options: Mapping[str, Any]) -> list[str]:
    """Return the command line of options by name: a list has several values, a bool has none."""
    found = []
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else () if isinstance(value, bool) else (value,)
        found += [f"--{'no-' * (value is False)}{name.replace('_', '-')}", *map(str, values)]
    return found


def words_of(args: Any) -> list[str]:
    """Return the command line of a dataclass of options, without those at their defaults."""
    own = dataclasses.fields(args)
    return words({each.name: value for each in own if (value := getattr(args, each.name)) != each.default})


def own_arguments() -> list[str]:
    """This process's command line.

    From here on it ends without a traceback on signals, until it handles them itself, and when the reader of
    its output leaves.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))
    end_quietly_without_a_reader()
    return sys.argv[1:]


def without_tilde(value: Any) -> Any:
    """The value of an option, in which ~ stands for the home folder, as where a shell has seen it."""
    if isinstance(value, tuple):
        return tuple(map(without_tilde, value))
    # Not Path.expanduser, which raises where there is no such user.
    return type(value)(os.path.expanduser(value)) if isinstance(value, (str, Path)) else value  # noqa: PTH111


def check_ranges(args: Any) -> None:
    """Check a dataclass of options against the pydantic constraints in its annotations.

    Raises:
        UserError: names the first option that is out of its range, and the range.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        try:
            pydantic.TypeAdapter(hint).validate_python(getattr(args, name))
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Input ")
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {problem}.") from error


def run_to_checkpoint(run: Callable[[Callable[[], bool]], object], unit: str, smaller: str) -> int:
    """Run what saves where it is and can go on from there.

    Args:
        run: takes a function that it is to ask after each unit whether to stop there.
        unit: what is finished first, such as `iteration`.
        smaller: options that make it need less memory.

    Returns:
        The exit code: 0, 2 after a user's mistake, 130 or 143 after a signal.
    """
    received: list[int] = []
    stopping = False

    def interrupted() -> bool:
        nonlocal stopping
        stopping = stopping or bool(received)
        return stopping

    def stop(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        # Not print: it may have been interrupted in the middle of a write of its own.
        os.write(2, f"\nStopping after this {unit}; once more to stop at once and lose it.\n".encode())

    def fail(failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):  # TensorBoard's thread, whose error comes here as well
            threading.__excepthook__(failure)

    threading.excepthook = fail
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        run(interrupted)
    except UserError as mistake:
        return print_mistake(mistake)
    except OSError as error:  # of TensorBoard's files
        end_if_unread()
        return print_mistake(
            UserError(f"{error.strerror or error}. Mend that, then run the same command again.")
        )
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or re.search("(?i)alloc|out of memory", str(error))):
            raise
        return print_mistake(UserError(f"out of memory: choose a smaller {smaller}."))
    except KeyboardInterrupt:
        stopping = True
    if stopping:
        print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 128 + (*received, signal.SIGINT)[0]
    return 0


def run_at_once(run: Callable[[], object], stopped: str = "Nothing was written.") -> int:
    """Run what a signal ends at once.

    Args:
        run: does all of it.
        stopped: what is said of the work then.

    Returns:
        The exit code: 0, 2 after a user's mistake, 130 or 143 after a signal.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        run()
    except UserError as mistake:
        return print_mistake(mistake)
    except KeyboardInterrupt:
        print(f"\nStopped. {stopped}", file=sys.stderr)
        return 128 + (*received, signal.SIGINT)[0]
    return 0


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A command line's own arguments (None: the process's), and those after `--`, which are for others."""
    given = own_arguments() if arguments is None else list(arguments)
    if "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]
