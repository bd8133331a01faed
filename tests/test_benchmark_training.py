"""Clocks, a training told when to go on, the raw engine, and what processes take."""

import io
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same, small_args

from camal_rl import benchmark_training, camal, ppo
from camal_rl.benchmark_training import Clock, PlayedGames, ProjectionCost, RawEngines, replaced, timed
from camal_rl.game.definition import load_definition

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


SIZES = ("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--frame-size", "52", "60")
OPTIONS = [*SIZES, "--render-resolution", "160x120", "--precision", "fp32", "--torch-threads", "1"]


@pytest.fixture
def command(
    fake_engine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[dict[str, Any]]]:
    """Runs the command with so many lines of input; gives what it printed."""

    def run(how: str, *options: str, lines: int = 0) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n" * lines))
        benchmark_training.work(how, [*OPTIONS, *options])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    return run


@pytest.mark.slow
def test_a_training_in_turns_is_the_one_of_ppo(
    tmp_path: Path, command: Callable[..., list[dict[str, Any]]]
) -> None:
    """Timed, and with pauses, a run comes to the same weights as without."""
    length = ("--total-timesteps", "48")
    said = command("details", *length, "--runs-dir", str(tmp_path / "timed"), lines=3)
    assert len(said) == 2, "nobody asks after the last"
    for one in said:
        assert {"rollout/environments", "rollout/forward", "gae", "update/losses", "update/optimizer"} <= set(
            one["seconds"]
        )
        assert all(value >= 0 for value in one["seconds"].values())
    assert "update/attention" in said[0]["seconds"]
    assert 0 < said[0]["projection"] < said[1]["projection"] < said[1]["rollout_cpu"]
    assert not hasattr(benchmark_training._of_thread, "clock")
    ppo.train(ppo.parse_args([*OPTIONS, *length, "--runs-dir", str(tmp_path)]))
    timed, plain = (
        torch.load(folder / "Basic" / "camal" / "seed1" / "checkpoint.pt", weights_only=True)["agent"]
        for folder in (tmp_path / "timed", tmp_path)
    )
    assert_same(plain, timed)


@pytest.mark.slow
def test_vanilla_has_no_attention_to_time(
    tmp_path: Path, command: Callable[..., list[dict[str, Any]]]
) -> None:
    (one,) = command("details", "--method", "vanilla", "--runs-dir", str(tmp_path))
    assert "update/attention" not in one["seconds"]
    assert "update/losses" in one["seconds"]


@pytest.mark.slow
def test_projection_counts_rollouts_only(
    tmp_path: Path, fake_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(seconds)))
    cost = ProjectionCost()
    args = small_args(tmp_path, num_envs=1, num_minibatches=1, total_timesteps=16, measure_every=1)
    with cost.watched():
        ppo.train(args)
    assert cost.seconds == 16, "a second each; those of the measurement are left out"
    assert cost.rollout_seconds > 0


def test_the_raw_engine_plays_in_every_game_and_starts_new_episodes(fake_engine: None) -> None:
    with RawEngines(load_definition("Basic"), 3, "160x120") as raw:
        assert raw.play(30) > 0
        for env in raw.envs:
            assert env.game.tics < 30 * 4, "an episode has at most 12 actions"


def test_games_are_played_without_the_network(fake_engine: None) -> None:
    args = ppo.parse_args(OPTIONS)
    with PlayedGames(args) as played:
        assert played.play(30) > 0
        assert played.envs.masks.any()
        for env in played.envs.envs:
            assert env.game.tics <= 12 * 4, "an episode has at most 12 actions"


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
    tmp_path: Path, command: Callable[..., list[dict[str, Any]]]
) -> None:
    (line,) = command("memory", "--runs-dir", str(tmp_path))
    assert line["ended"] <= line["resumed"]
    assert line["cpu"] > 0
    assert line["pss"] > 0
