"""Clocks, trainings that take turns, the raw engine, and what processes take."""

import io
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_args

from camal_rl import UserError, benchmark_training, camal, doom, ppo
from camal_rl.benchmark_training import Clock, Projection, RawEngines, Training, quiet, replaced, timed

CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time takes a second."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def test_a_clock_counts_each_second_once_for_the_innermost_label(ticking: None) -> None:
    clock = Clock(CPU)
    clock.start()
    with clock.label("outer"), clock.label("inner"):
        pass
    with clock.label("outer"):
        pass
    # Looks at the time: start, four in the first `with`, two in the second, stop.
    assert clock.stop() == {"": 3, "outer": 3, "outer/inner": 1}


def test_a_clock_started_again_counts_from_zero(ticking: None) -> None:
    clock = Clock(CPU)
    clock.start()
    clock.stop()
    clock.start()
    assert clock.stop() == {"": 1}


def test_only_threads_with_a_clock_are_timed_and_functions_come_back(ticking: None) -> None:
    class Owner:
        @staticmethod
        def work(value: int) -> int:
            return value + 1

    before = Owner.work
    clock = Clock(CPU)
    clock.start()

    def with_clock() -> None:
        benchmark_training._of_thread.clock = clock
        assert Owner.work(1) == 2

    with timed([(Owner, "work", "label")]):
        assert Owner.work(2) == 3
        thread = threading.Thread(target=with_clock)
        thread.start()
        thread.join()
    assert Owner.work is before
    assert set(clock.stop()) == {"", "label"}


def test_what_is_replaced_comes_back_after_an_error() -> None:
    before = camal.METHODS
    with pytest.raises(KeyError), replaced(camal, "METHODS", lambda methods: (*methods, "new")):
        raise KeyError(camal.METHODS[-1])
    assert camal.METHODS is before


def args_of(folder: Path, **options: object) -> ppo.Args:
    return small_args(folder, total_timesteps=1_000_000, **options)


@pytest.mark.slow
def test_trainings_take_turns_and_are_the_ones_of_ppo(tmp_path: Path, fake_engine: None) -> None:
    """Timed and interleaved, a run comes to the same weights as alone."""
    with (
        quiet(),
        timed(benchmark_training.details()),
        Training(args_of(tmp_path, method="camal")) as first,
        Training(args_of(tmp_path, method="vanilla")) as second,
    ):
        seconds = [first.advance(), second.advance(), first.advance()]
    for one in seconds:
        assert {
            "rollout/environments",
            "rollout/forward",
            "gae",
            "update/backward",
            "update/optimizer",
        } <= set(one)
        assert all(value >= 0 for value in one.values())
    assert "update/attention" in seconds[0]
    assert "update/attention" not in seconds[1]
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]
    done = itertools.count(1)
    alone = tmp_path / "alone"
    with quiet():
        ppo.train(args_of(alone, method="camal"), lambda: next(done) >= benchmark_training.WARMUP + 2)
    weights = [
        torch.load(folder / "Basic" / "camal" / "seed1" / "checkpoint.pt", weights_only=True)
        for folder in (tmp_path, alone)
    ]
    assert weights[0]["iteration"] == weights[1]["iteration"]
    for name, weight in weights[0]["agent"].items():
        assert torch.equal(weight, weights[1]["agent"][name])


def test_a_training_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise UserError("no engine today")

    monkeypatch.setattr(doom, "start_engine", refuse)
    with quiet(), pytest.raises(UserError, match="no engine today"), Training(args_of(tmp_path)):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "training"]


@pytest.mark.slow
def test_projection_counts_rollouts_only(
    tmp_path: Path, fake_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    project = camal.mask_weights

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args[0].ndim)
        return project(*args, **options)

    monkeypatch.setattr(camal, "mask_weights", counted)
    seconds = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(seconds)))
    projection = Projection()
    with quiet(), projection.watched(), Training(args_of(tmp_path, num_envs=1)) as one:
        projection.seconds = projection.rollout_seconds = 0
        calls.clear()
        one.advance()
    masks = calls.count(2)  # one by one in the rollout; all together in the measurement
    assert masks == one.args.ppo.num_steps
    assert projection.seconds == masks
    assert projection.rollout_seconds > 0


def test_the_raw_engine_plays_in_every_game_and_starts_new_episodes(fake_engine: None) -> None:
    with RawEngines(doom.load_definition("Basic"), 3, "160x120") as raw:
        assert raw.play(30) > 0
        for env in raw.envs:
            assert env.game.tics < 30 * 4, "an episode has at most 12 actions"


def test_memory_and_cpu_time_include_child_processes() -> None:
    code = "import sys; x = bytearray(50 * 2**20)\nfor i in range(10**6): pass\nprint(); sys.stdin.read()"
    before, cpu = benchmark_training.memory(), benchmark_training.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in benchmark_training.processes()
        during = benchmark_training.memory()
        assert benchmark_training.cpu_seconds() > cpu
        child.communicate()
    assert during["rss"] > before["rss"] + 45 * 2**20
    assert during["peak"] >= during["rss"]
    assert 0 < during["pss"] <= during["rss"]


@pytest.mark.slow
def test_the_command_says_a_line_an_iteration_until_its_input_ends(
    tmp_path: Path,
    fake_engine: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    sizes = ("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--frame-size", "52", "60")
    options = [*sizes, "--render-resolution", "160x120", "--precision", "fp32", "--runs-dir", str(tmp_path)]
    benchmark_training.work(options, with_memory=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(lines) == 1
    assert lines[0]["ended"] <= lines[0]["resumed"]
    assert lines[0]["cpu"] > 0
    assert lines[0]["pss"] > 0
