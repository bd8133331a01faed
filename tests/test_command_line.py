"""How long commands end: after a signal, a mistake, a full disk or memory."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from conftest import ROOT

from camal_rl.errors import UserError
from camal_rl.run.command_line import Switch, option, parse, run_at_once, run_to_checkpoint


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = threading.excepthook
    yield
    threading.excepthook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_unit_and_the_way_on_is_told(
    number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(interrupted: Callable[[], bool]) -> None:
        asked.append(interrupted())
        os.kill(os.getpid(), number)
        asked.append(interrupted())

    assert run_to_checkpoint(run, "epoch", "--batch-size") == code
    assert asked == [False, True]
    said = capfd.readouterr().err
    assert "Stopping after this epoch" in said
    assert "The same command goes on" in said


def test_a_signal_in_the_last_unit_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def run(interrupted: Callable[[], bool]) -> None:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)  # and it is not asked again, because all is done

    assert run_to_checkpoint(run, "epoch", "--batch-size") == 0
    assert "Stopped" not in capfd.readouterr().err


def test_a_second_signal_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def run(interrupted: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    assert run_to_checkpoint(run, "epoch", "--batch-size") == 143
    assert "The same command goes on" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("no such file."), "camal_rl: no such file.\n"),
        (OSError(28, "No space left on device"), "No space left on device. Mend that"),
        (MemoryError(), "out of memory: choose a smaller --batch-size."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: Exception, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_to_checkpoint(raising(error), "epoch", "--batch-size") == 2
    said = capfd.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_bug_is_a_traceback() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run_to_checkpoint(raising(RuntimeError("shape mismatch")), "epoch", "--batch-size")


def test_what_a_signal_ends_at_once_says_what_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_at_once(lambda: os.kill(os.getpid(), signal.SIGTERM), "No file is half written.") == 143
    assert capfd.readouterr().err == "\nStopped. No file is half written.\n"
    assert run_at_once(raising(UserError("no."))) == 2
    assert capfd.readouterr().err == "camal_rl: no.\n"
    assert run_at_once(lambda: None) == 0


@dataclass
class Paths:
    """Options of all the kinds that hold paths."""

    folder: Path = Path("a")
    file: Path | None = None
    env: str = "b"
    envs: tuple[str, ...] = ("c", "d")
    output: Annotated[Path | None, option("DIR")] = None
    quick: Switch = False


def test_the_home_folder_may_be_written_as_a_tilde_in_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me")
    words = ["--folder", "~/runs", "--file", "~", "--env", "~/x.toml", "--envs", "a~", "~/y.toml"]
    args = parse(Paths, "program", words)
    assert args == Paths(Path("/me/runs"), Path("/me"), "/me/x.toml", ("a~", "/me/y.toml"))
    assert parse(Paths, "program", []) == Paths()


def test_help_tells_defaults_in_words_of_users(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Paths, "program", ["--help"])
    lines = [" ".join(line.strip(" │").split()) for line in capsys.readouterr().out.splitlines()]
    assert "--output DIR" in lines
    assert "--quick, --no-quick (default: off)" in lines


def test_a_path_that_is_not_utf_8_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        parse(Paths, "program", ["--folder", os.fsdecode(b"runs-\xff")])
    assert refusal.value.code == 2
    message = "camal_rl: b'runs-\\xff' is not UTF-8, as all names here have to be: rename it.\n"
    assert capsys.readouterr().err == message


READER_LEAVES = """
from dataclasses import dataclass
from camal_rl.run.command_line import parse, run_at_once, run_to_checkpoint

@dataclass
class Args:
    number: int = 1

parse(Args, "program")
{work}
"""


@pytest.mark.parametrize(
    "work",
    [
        "'--help'",
        "print('few words')",
        "run_at_once(lambda: print('many words' * 10000))",
        "run_to_checkpoint(lambda _: print('many words' * 10000), 'a', 'b')",
    ],
)
def test_a_reader_who_has_enough_ends_a_command_without_a_word(work: str) -> None:
    options = ["--help"] if "help" in work else []
    assert unread("-c", READER_LEAVES.format(work=work), *options) == (141, b"")


def test_so_does_a_command_that_takes_options_of_another_one() -> None:
    assert unread("-m", "camal_rl.experiment", "--help") == (141, b"")


def unread(*arguments: str) -> tuple[int, bytes]:
    """Exit code and error output of a Python process whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    return done.returncode, done.stderr
