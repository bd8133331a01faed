"""Vision agents whose attention can be trusted: PPO on ViZDoom with CAMAL attention supervision."""

import errno
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries envs/ inside the package; a checkout and an editable install keep it beside the package.
ENVS_DIR = next(
    (path for path in (_PACKAGE / "envs", _PACKAGE.parent / "envs") if path.is_dir()), _PACKAGE / "envs"
)

SINGLE_THREAD_PRODUCT = 2**18
"""OpenBLAS runs a product of more multiply-adds than this on several threads, which gains nothing at the
sizes of frames and masks, and takes the cores from the game engines."""


class UserError(Exception):
    """A mistake that the user can mend: command lines print it as one line and exit with code 2."""


def print_mistake(mistake: UserError) -> int:
    """Print a mistake as the one line that every command line gives it, and return the exit code for it."""
    print(f"camal_rl: {mistake}", file=sys.stderr)
    return 2


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """A command line's own arguments (None: the process's), and those after `--`, which are for others."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--" not in given:
        return given, []
    place = given.index("--")
    return given[:place], given[place + 1 :]


def refuse_options(own: Iterable[str], options: Sequence[str], kind: str, setter: str) -> None:
    """Refuse options, meant for a command of this kind, that something else sets itself.

    Raises:
        UserError: one of `own`, names without dashes in front, is among them.
    """
    for option in own:
        if any(one.replace("_", "-").split("=")[0] == f"--{option}" for one in options):
            raise UserError(f"--{option} can't be one of the options of {kind}: the {setter} sets it.")


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all: who reads `path`, at any moment, finds the old content or the new.

    Raises:
        UserError: the disk is full, or the folder can't be written; the old file is still there.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write several files, each as `write_whole` does, and none of them before all are on the disk.

    Raises:
        UserError: the disk is full, or a folder can't be written; all old files are still there.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        try:
            for path, data in files.items():
                if path.is_dir():  # or a later rename would fail when others are done
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                with temporary[path].open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            # No signal may come between the renames.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                for path, written in temporary.items():
                    written.replace(path)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            for written in temporary.values():
                written.unlink(missing_ok=True)
            raise
    except OSError as error:
        space = "Free some space or" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that, or"
        raise UserError(f"can't write {path}: {error.strerror}. {space} choose another folder.") from error


def make_folder(folder: Path, option: str = "--output") -> None:
    """Make a folder, and those above it, where they are missing.

    Args:
        option: that chose it, for the message.

    Raises:
        UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make {folder}: {error.strerror}. Choose another {option}.") from error


def register_envs() -> None:
    """Register every `envs/*.toml` with Gymnasium as `camal_rl/<name>-v0`; safe to call again."""
    for path in sorted(ENVS_DIR.glob("*.toml")):
        env_id = f"camal_rl/{path.stem}-v0"
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="camal_rl.doom:DoomEnv",
                vector_entry_point="camal_rl.doom:DoomVectorEnv",
                kwargs={"env": path.stem},
            )


register_envs()
