"""Each part of the benchmark in small: on fakes what it compares, on the engine that it measures anything."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, processes_of, wait_until

from camal_rl import benchmark_parts, benchmark_tables
from camal_rl.benchmark_parts import Settings, common, lines_of
from camal_rl.benchmark_tables import ACCOUNTS
from camal_rl.benchmark_training import WARMUP
from camal_rl.errors import UserError

MACHINE = {"cores": 2}
OPTIONS = ("--env", "Basic", "--device", "cpu", "--precision", "fp32", "--torch-threads", "1")
SIZES = ("--num-envs", "2", "--num-steps", "8", "--num-minibatches", "2", "--update-epochs", "1")
TINY = Settings((*OPTIONS, *SIZES), repetitions=2, iterations=1)
ONCE = TINY._replace(repetitions=1)


@pytest.fixture(autouse=True)
def small_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_parts, "RENDERED", (SMALL,))


# An iteration at a time


class FakeTurns:
    """Stands in for a training in a process of its own."""

    def __init__(self, settings: Settings, *options: str, details: bool = False) -> None:
        self.name = " ".join(options)
        self.details = details
        self.done = 0

    def __enter__(self) -> "FakeTurns":
        return self

    def __exit__(self, *error: object) -> None:
        TURNS.append(f"{self.name} ended")

    def advance(self) -> dict[str, Any]:
        TURNS.append(self.name)
        self.done += 1
        inside = {"rollout/environments": 0.5, "update/forward": 1.0} if self.details else {}
        seconds = {"": 0.1, "rollout": 0.5, "gae": 0.1, "update": 1.0, **inside}
        return {"seconds": seconds, "projection": 0.1 * self.done, "rollout_cpu": 10.0 * self.done}


TURNS: list[str] = []


@pytest.fixture
def fake_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    TURNS.clear()
    monkeypatch.setattr(benchmark_parts, "TakingTurns", FakeTurns)


def test_overhead_measures_both_methods_by_turns(fake_turns: None) -> None:
    result = benchmark_parts.overhead(TINY._replace(iterations=3))
    assert result["batch_size"] == 16
    assert [len(repetition[method]) for repetition in result["seconds"] for method in repetition] == [3] * 4
    still = "--learning-rate 0 --measure-every 0"
    camal, vanilla = (f"--method {method} {still}" for method in ("camal", "vanilla"))
    pair = [camal, vanilla, vanilla, camal]
    assert TURNS[:12] == pair * 3
    assert sorted(TURNS[12:]) == [f"{camal} ended", f"{vanilla} ended"]
    assert ACCOUNTS["overhead"](result, MACHINE).findings[0].value == (0, 0, 0)


def test_rollouts_are_measured_beside_the_raw_engine(fake_turns: None, fake_engine: None) -> None:
    result = benchmark_parts.rollout(TINY)
    (one,) = result["resolutions"]
    assert one["render_resolution"] == SMALL
    for repetition in one["seconds"]:
        assert {side: len(values) for side, values in repetition.items()} == dict.fromkeys(
            benchmark_tables.SIDES, TINY.iterations
        )
        assert all(value > 0 for values in repetition.values() for value in values)
    shares = [finding.value.median for finding in ACCOUNTS["rollout"](result, MACHINE).findings]
    assert shares[-1] == pytest.approx(1), "what the first iteration had used is left out"


def test_a_profile_is_of_details(fake_turns: None) -> None:
    result = benchmark_parts.profile(TINY)
    assert len(result["seconds"]) == 2
    assert benchmark_tables.shares(result["seconds"][0])["update: forward"] == 1


@pytest.mark.slow
def test_extraction_measures_all_ways_at_all_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_parts, "BATCH_SIZES", (1, 2))
    result = benchmark_parts.extraction(TINY)
    for way in benchmark_parts.EXTRACTIONS:
        assert {size: len(values) for size, values in result["seconds"][way].items()} == {"1": 2, "2": 2}
    assert ACCOUNTS["extraction"](result, MACHINE).tables[0].rows


# Processes


def turns_of(code: str, monkeypatch: pytest.MonkeyPatch) -> benchmark_parts.TakingTurns:
    monkeypatch.setattr(benchmark_parts, "worker", lambda how, options: python(code))
    return benchmark_parts.TakingTurns(TINY)


def test_a_training_waits_until_it_is_told_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import itertools, json\nprint('hello')\nfor number in itertools.count():\n"
        "    print(json.dumps({'number': number}), flush=True); input()"
    )
    with turns_of(code, monkeypatch) as one:
        assert [one.advance()["number"] for _ in range(2)] == [WARMUP, WARMUP + 1]


@pytest.mark.parametrize("lines", [0, 1, WARMUP])
def test_a_training_that_ends_too_early_is_quoted(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys\nfor _ in range({lines}): print('{{}}')\nsys.exit('camal_rl: no engine today.')"
    with pytest.raises(UserError, match=r"failed: no engine today\.$"), turns_of(code, monkeypatch) as one:
        one.advance()


def test_a_training_that_ended_before_it_was_asked_is_quoted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that it did not read would break the pipe once more when that is closed."""
    code = f"import sys\nfor _ in range({WARMUP}): print('{{}}')\nsys.exit('camal_rl: no engine today.')"
    with turns_of(code, monkeypatch) as one:
        one._process.wait()
        with pytest.raises(UserError, match=r"failed: no engine today\.$"):
            one.advance()


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_lines_of_json_come_with_their_place_and_all_else_is_left_out() -> None:
    lines = list(lines_of([python("print('hello'); print('{\"a\": 1}')"), python("print('{\"a\": 2}')")]))
    assert sorted(lines, key=lambda line: line[0]) == [(0, {"a": 1}), (1, {"a": 2})]


def test_a_process_that_fails_is_quoted_with_its_last_line() -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('camal_rl: choose another.')"
    with pytest.raises(UserError, match=r"failed: choose another\.$"):
        list(lines_of([python(code)]))


def test_a_process_that_fails_silently_is_named() -> None:
    with pytest.raises(UserError, match=r"failed: it said nothing\.$"):
        list(lines_of([python("raise SystemExit(3)")]))


def test_a_command_that_is_not_there_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"can't start nowhere/python: No such file"):
        list(lines_of([("nowhere/python",)]))


def test_processes_and_their_children_end_when_no_more_lines_are_wanted() -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'input()'],"
        " stdin=subprocess.PIPE); print('{\"id\": %d}' % child.pid, flush=True); time.sleep(600)"
    )
    with closing(lines_of([python(code)])) as lines:
        _, line = next(lines)

    def gone() -> bool:
        try:
            return Path(f"/proc/{line['id']}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    assert wait_until(gone)


def stamp(resumed: float) -> dict[str, float]:
    return {"ended": resumed, "resumed": resumed}


def test_what_trainings_have_in_common_begins_when_the_last_is_warm() -> None:
    fast = [stamp(time) for time in (1, 2, 3, 4, 5)]
    slow = [stamp(time) for time in (2.5, 3.5, 6)]
    assert common([fast, slow[:1]]) == []
    assert common([fast, slow]) == [fast[3:], slow[1:]]
    assert common([fast]) == [fast[1:]]


# Parts that need processes, on fakes


Stamps = list[dict[str, float]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[Sequence[str]]]:
    """Options of the trainings that were asked for; each gives two stamps a second apart."""
    asked: list[list[Sequence[str]]] = []

    def trainings(settings: Settings, runs: list[Sequence[str]], with_memory: bool = False) -> list[Stamps]:
        asked.append(runs)
        return [[stamp(place) | {"cpu": place} for place in (0.0, 1.0)] for _ in runs]

    monkeypatch.setattr(benchmark_parts, "trainings", trainings)
    return asked


def test_runs_differ_in_their_seeds(
    trained: list[list[Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_parts, "RUNS", (1, 2))
    result = benchmark_parts.runs(ONCE)
    assert [len(runs) for runs in trained] == [1, 1, 2, 2]
    assert trained[3] == [
        ("--torch-threads", "2", "--seed", "1"),
        ("--torch-threads", "2", "--seed", "2"),
    ]
    # A step takes 1 / 16 CPU seconds: two cores can do 32 a second, and two runs do 16 each.
    assert ACCOUNTS["runs"](result, MACHINE).findings[0].value.median == 100


def test_peers_are_measured_in_turns_on_the_same_work(
    trained: list[list[Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def fake_lines(commands: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        (command,) = commands
        order.append(command)
        yield 0, {"sps": 4.0, "versions": {"stable-baselines3": "2", "torch": "2"}}

    monkeypatch.setattr(benchmark_parts, "lines_of", fake_lines)
    result = benchmark_parts.peers(TINY, {"stable-baselines3": "there/python"})
    names = [row["name"] for row in result["measured"]]
    assert names == ["camal_rl", "camal_rl", "stable-baselines3", "stable-baselines3"] * 2
    assert [row["torch_threads"] for row in result["measured"]] == [1, 2, 1, 2] * 2
    python, script, peer, *options = order[0]
    assert (python, peer) == ("there/python", "stable-baselines3")
    assert Path(script).is_file()
    asked = dict(zip(options[::2], options[1::2], strict=True))
    assert asked["--num-envs"] == "2"
    assert asked["--num-steps"] == "8"
    assert asked["--render-resolution"] == SMALL
    assert asked["--torch-threads"] == "1"
    assert Path(asked["--scenario"]).is_file()
    for shown in result["commands"].values():
        assert "--scenario basic.cfg" in shown
        assert str(Path(script).parent) not in shown
    assert ACCOUNTS["peers"](
        {"measured": [row | {"render_resolution": "320x240"} for row in result["measured"]]}, MACHINE
    ).findings[0].value.median == pytest.approx(4)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["rllib=x"], r"--peers rllib=x: give NAME=PYTHON.*sample-factory, stable-baselines3"),
        (["sample-factory"], r"--peers sample-factory: give NAME=PYTHON"),
        (["sample-factory=nowhere/python"], r"'nowhere/python' is not a Python that can be started"),
        ([f"sample-factory={Path(__file__).parent}"], r"is not a Python that can be started"),
        ([f"sample-factory={sys.executable}"], r"it has no sample-factory\. To install it: python3 -m venv"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_refused(named: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark_parts.check_peers(named)


def test_a_peer_named_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark_parts.subprocess, "run", lambda *a, **o: type("Done", (), {"returncode": 0})
    )
    assert benchmark_parts.check_peers(["sample-factory=a"]) == {"sample-factory": "a"}
    with pytest.raises(UserError, match="sample-factory is named twice"):
        benchmark_parts.check_peers(["sample-factory=a", "sample-factory=b"])


def test_the_machine_is_described() -> None:
    machine = benchmark_parts.machine(TINY)
    assert machine["device"] == "cpu"
    assert machine["precision"] == "fp32"
    assert machine["torch_threads"] == 1
    assert machine["cores"] >= 1
    assert "torch" in benchmark_tables.describe(machine)


# On the real engine


@pytest.mark.engine
def test_overhead_on_the_engine() -> None:
    assert ACCOUNTS["overhead"](benchmark_parts.overhead(ONCE), MACHINE).findings


@pytest.mark.engine
def test_rollout_on_the_engine() -> None:
    result = benchmark_parts.rollout(ONCE)
    assert ACCOUNTS["rollout"](result, MACHINE).findings[0].value.median < 200


@pytest.mark.engine
def test_every_row_of_where_the_time_goes_is_found() -> None:
    (seconds,) = benchmark_parts.profile(ONCE)["seconds"]
    assert all(value > 0 for value in benchmark_tables.shares(seconds).values())


@pytest.mark.engine
def test_runs_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_parts, "RUNS", (1, 2))
    monkeypatch.setattr(benchmark_parts, "THREADS", (1,))
    result = benchmark_parts.runs(ONCE)
    assert [len(one["stamps"]) for one in result["measured"]] == [1, 2]
    assert all(len(stamps) >= 2 for one in result["measured"] for stamps in one["stamps"])
    assert 0 < ACCOUNTS["runs"](result, MACHINE).findings[0].value.median < 1000


@pytest.mark.engine
def test_scaling_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_parts, "NUM_ENVS", (1,))
    monkeypatch.setattr(benchmark_parts, "FRAME_SIZES", ((60, 80),))
    monkeypatch.setattr(benchmark_parts, "RENDER_RESOLUTIONS", (SMALL,))
    monkeypatch.setattr(benchmark_parts, "LENGTHS", (2, 4))
    result = benchmark_parts.scaling(ONCE)
    assert [one["varied"] for one in result["measured"]] == ["num_envs", "frame_size", "render_resolution"]
    account = ACCOUNTS["scaling"](result, MACHINE)
    for row in account.tables[0].rows:
        assert float(row[4].split()[0]) > 100, "a trainer with torch takes more than 100 MiB"
    assert [row[0] for row in account.tables[1].rows] == ["2", "4"]
    wait_until(lambda: not processes_of(str(os.getpid())))


@pytest.mark.engine
def test_startup_on_the_engine() -> None:
    began = time.monotonic()
    (seconds,) = benchmark_parts.startup(ONCE)["seconds"]
    assert seconds["help"] > 0
    assert 0 < seconds["inference"] < seconds["gradient_step"] < seconds["one_iteration"]
    assert seconds["one_iteration"] <= time.monotonic() - began


@pytest.mark.engine
def test_a_training_that_cannot_be_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"failed: --num-minibatches 0"):
        benchmark_parts.trainings(ONCE, [("--num-minibatches", "0")])
