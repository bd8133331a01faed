"""Files written whole or not at all, and folders that can't be made."""

import os
import re
from pathlib import Path

import pytest

from camal_rl.errors import UserError
from camal_rl.run.files import make_folder, write_together, write_whole


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")
    write_together({tmp_path / "a": b"new", tmp_path / "b": memoryview(b"more")})
    assert contents(tmp_path) == {"a": b"new", "b": b"more"}


@pytest.mark.parametrize(
    ("number", "advice"), [(28, "Free some space or choose"), (5, "Mend that, or choose")]
)
def test_a_failed_write_leaves_the_old_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    written = {tmp_path / name: b"old" for name in "abc"}
    write_together(written)
    calls = []

    def fail_the_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail_the_second)
    message = rf"can't write {re.escape(str(tmp_path / 'b'))}: {os.strerror(number)}\. {advice}"
    with pytest.raises(UserError, match=message):
        write_together(dict.fromkeys(written, b"new"))
    assert contents(tmp_path) == {"a": b"old", "b": b"old", "c": b"old"}


def test_an_interruption_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_folders_are_made_where_they_are_missing(tmp_path: Path) -> None:
    write_whole(tmp_path / "none" / "below" / "a", b"new")
    assert (tmp_path / "none" / "below" / "a").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_place_that_holds_no_file_is_named_before_others_are_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=rf"can't write {re.escape(str(tmp_path / place))}: "):
        write_together({tmp_path / "a": b"new", tmp_path / place: b"new"})
    assert contents(tmp_path) == {"file": b""}


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't make .*: Not a directory\. Choose another --runs-dir\."):
        make_folder(tmp_path / "file" / "below", "--runs-dir")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
