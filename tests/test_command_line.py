"""How long commands end: after a signal, a mistake, a full disk or memory."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from camal_rl.errors import UserError
from camal_rl.run.command_line import run_at_once, run_to_checkpoint


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
