"""Data -> files written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from camal_rl.errors import UserError


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all: who reads `path`, at any moment, finds the old content or the new.

    Raises:
        UserError: the disk is full, or the folder can't be written; the old file is still there.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes | memoryview]) -> None:
    """Write several files, each as `write_whole` does, and none of them before all are on the disk.

    Folders are made where they are missing.

    Raises:
        UserError: the disk is full, or a folder can't be written; all old files are still there.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, data in files.items():
            if path.is_dir():  # or its rename would fail when others are done
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            path.parent.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        space = "Free some space or" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that, or"
        raise UserError(f"can't write {path}: {error.strerror}. {space} choose another folder.") from error
    finally:
        for written in temporary.values():
            with suppress(OSError):
                written.unlink()


def make_folder(folder: Path, option: str = "--output") -> None:
    """Make a folder, which `option` named, and those above it, where they are missing.

    Raises:
        UserError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't make {folder}: {error.strerror}. Choose another {option}.") from error


def checksum(content: bytes | memoryview) -> str:
    """The text that stands for a file in args.json."""
    return f"sha256={hashlib.sha256(content).hexdigest()}"
