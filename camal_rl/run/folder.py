"""The folder of a run, `<runs-dir>/<env>/<method>/seed<k>/`: what defines it and where it stands.

A folder belongs to one set of arguments: the same ones go on where the run stopped, others are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
import vizdoom

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.game.definition import Definition
from camal_rl.run.files import make_folder, write_whole

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_VERSION = 3
FREE_OPTIONS = frozenset(
    (
        *("runs_dir", "data_dir", "checkpoint_every", "image_every", "measure_every", "test_every"),
        *("device", "torch_threads", "detect_anomaly"),
    )
)
"""Options, of agents and of classifiers, that change where and how fast a run is done, or what is kept of it,
but not what is learned."""


def describe(options: Mapping[str, Mapping[str, Any]], definition: Definition) -> dict[str, dict[str, Any]]:
    """All that defines a run, in JSON's types: its options by group, and its environment.

    The environment counts by what it says, not by where its file lies.
    """
    described = without_free_options(options)
    described["run"]["env"] = definition.name
    described["definition"] = dataclasses.asdict(definition) | {
        "path": definition.path.name,
        "scenario": definition.scenario.name,
        "vizdoom": vizdoom.__version__,  # another one may not replay the same
    }
    return plain(described)


def without_free_options(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options by group, but for `FREE_OPTIONS`."""
    return {
        group: {name: value for name, value in one.items() if name not in FREE_OPTIONS}
        for group, one in options.items()
    }


def plain(described: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same as it is read from JSON."""
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(described, default=str))
    return found


AGENTS_GROUPS = ("run", "environment", "ppo", "attention", "machine", "definition")
"""Of what describes an agent's run."""


def read_args_file(folder: Path, needed: Sequence[str] = AGENTS_GROUPS) -> dict[str, dict[str, Any]]:
    """What `write_args_file` wrote: the description of a run, which has these groups.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = folder / "args.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no run (there is no args.json): give a folder such as runs/Basic/camal/seed1."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {file}: {' '.join(str(error).split())}.") from error
    groups = {name: group for name, group in content.items() if name != "version"} if content else {}
    if not all(isinstance(groups.get(name), dict) for name in needed):
        raise UserError(f"{file} is not a run's arguments: it needs the groups {', '.join(needed)}.")
    return groups


PATIENCE = 10.0
"""Seconds to wait for another process, which may just be saving."""
RETRY = 0.1
"""Seconds between two looks whether it has ended."""
MOST_MISSED = 100
"""Times in a row that a folder is gone before anything is put there, after which it counts as impossible."""


@contextmanager
def lock(folder: Path, purpose: str) -> Iterator[None]:
    """Keep other processes from doing the same in a run folder, which is made where it is missing.

    The operating system lets go of the lock when a process ends, however it ends. At the end the lock's file
    is removed, and so are the folders that were made for it and in which nothing else was put.

    Args:
        purpose: what is done, such as `train`; it names the lock and stands in the message.

    Raises:
        UserError: another process does it, or the folder can't be written.
    """
    if fcntl is None:
        yield
        return
    path = folder / f".{purpose}.lock"
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        file = _locked(
            path, f"another process does the same ({purpose}) in {folder}: wait for it, or end it."
        )
    except OSError as error:
        _remove_empty(made)
        raise UserError(f"can't make {folder}: {error.strerror}. Choose another folder.") from error
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            _remove_empty(made)


def _locked(path: Path, refusal: str) -> BinaryIO:
    """The file, open and locked. OSError where it can't be made; UserError where another process keeps it."""
    deadline = time.monotonic() + PATIENCE
    missed = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except (FileExistsError, FileNotFoundError):
            # Whoever had the lock may have removed the folder, empty, at this very moment.
            missed += 1
            if missed == MOST_MISSED:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            if time.monotonic() > deadline:
                raise UserError(refusal) from error
            time.sleep(RETRY)
            continue
        except OSError:  # a file system without locks
            return file
        # Whoever had it before has removed its file: a lock on that one would keep nobody away.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


GAME = ("scenario", "frame_skip", "target_names", "target_categories")
"""What of an environment's definition decides what is played and what a target is."""


def check_definition(
    folder: Path, described: Mapping[str, Mapping[str, Any]], definition: Definition
) -> None:
    """Refuse an environment that is not the one a run was trained on, whatever its file is called.

    Raises:
        UserError: the message shows every difference.
    """
    before, now = described["definition"], describe({"run": {}}, definition)["definition"]
    differences = [
        f"{name} was {before.get(name)}, now {now[name]}" for name in GAME if before.get(name) != now[name]
    ]
    if differences:
        raise UserError(
            f"{folder} was trained on another environment: {'; '.join(differences)}. "
            "Give the TOML file it was trained on with --env."
        )
    if before.get("vizdoom") != now["vizdoom"]:
        print(
            f"camal_rl: {folder} was trained with ViZDoom {before.get('vizdoom')}, and this is "
            f"{now['vizdoom']}: its game may differ.",
            file=sys.stderr,
        )


def check_args_file(folder: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder that holds a run with other arguments.

    Raises:
        UserError: the message shows every difference.
    """
    file = folder / "args.json"
    if not file.exists():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        before = {
            name: value for group, one in content.items() if group != "version" for name, value in one.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not a run's arguments: move {folder} away to start anew.") from error
    now = {name: value for one in described.values() for name, value in one.items()}
    absent = "nothing"
    differences = [
        f"{name} was {before.get(name, absent)}, now {now.get(name, absent)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, absent) != now.get(name, absent)
    ]
    if differences:
        raise UserError(
            f"{folder} holds a run with other arguments: {'; '.join(differences)}. "
            "Choose another --runs-dir or --seed, or move that folder away."
        )


def write_args_file(folder: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Write args.json, making the folder where it is missing.

    Raises:
        UserError: the folder can't be made or written.
    """
    make_folder(folder, "--runs-dir")
    content = {"version": __version__, **described}
    write_whole(folder / "args.json", (json.dumps(content, indent=2) + "\n").encode())


def remove_remains(
    folder: Path, written: Sequence[str] = ("checkpoint.pt", "args.json", "media/attention.png")
) -> None:
    """Remove what is left of files that a trainer, which writes these, was killed in the middle of writing.

    Only under the lock on training.
    """
    for name in written:
        path = folder / name
        for temporary in path.parent.glob(f".{path.name}.*"):
            with suppress(OSError):
                temporary.unlink()


CHECKSUM = b"sha256="
"""What the comment of a checkpoint, a ZIP file, begins with: the checksum of all bytes before it."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write all that a run needs to go on: tensors and plain values, whole or not at all.

    The file is torch's, a ZIP archive, and `torch.load` reads it; its comment holds a checksum.

    Raises:
        UserError: the disk is full or the folder can't be written; the checkpoint before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"version": CHECKPOINT_VERSION, **state}, buffer)
    length = len(CHECKSUM) + 2 * hashlib.sha256().digest_size
    # An archive without a comment ends with the comment's length, zero. Nothing is copied: it may be large.
    buffer.getbuffer()[-2:] = length.to_bytes(2, "little")
    buffer.write(CHECKSUM + hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    write_whole(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read what `save_checkpoint` wrote, None where there is none; nothing in the file can run code.

    Raises:
        UserError: not a checkpoint, a damaged one, or one of another version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}.") from error
    data, mark, checksum = content.rpartition(CHECKSUM)
    whole = bool(mark) and hashlib.sha256(data).hexdigest().encode() == checksum
    try:
        if mark and not whole:
            raise ValueError("its checksum is another")
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version = checkpoint["version"]
        if version == CHECKPOINT_VERSION and not whole:
            raise ValueError("it has no checksum")
    except Exception as error:  # a damaged file makes torch raise all kinds
        raise UserError(
            f"{path} is damaged or no checkpoint: move it away to start anew, or bring back a copy of it."
        ) from error
    if version != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has version {version}, and this camal_rl reads version {CHECKPOINT_VERSION}: "
            "use the camal_rl that wrote it, or move it away to start anew."
        )
    return checkpoint
