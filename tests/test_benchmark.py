"""The benchmark: that the right things are measured, on fakes, and what becomes of the numbers."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, blank_figure, small_args
from conftest import run as run_python

from camal_rl import benchmark, ppo
from camal_rl.benchmark import Args, Cases, Loop, Plan
from camal_rl.errors import UserError
from camal_rl.run import command_line


@pytest.fixture
def plan(tmp_path: Path, fake_engine: None) -> Plan:
    """A plan that takes no time, on games that are not real."""
    base = small_args(tmp_path, num_envs=2, num_steps=8, num_minibatches=1, update_epochs=1)
    tiny = Plan(
        base, repetitions=2, turns=2, resolutions=(SMALL,), games=(2,), runs=(1, 2), batch_sizes=(1, 2)
    )
    return tiny._replace(num_envs=(1, 2), frame_sizes=((60, 60),), length=6)


# ------------------------------------------------------------------------------------------- how to measure


def test_ways_take_turns_in_both_orders_and_a_repetition_is_the_median_of_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, called = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    durations = {"a": iter([100, 1, 2, 9, 4, 6, 5]), "b": itertools.repeat(3)}

    def work(name: str) -> None:
        called.append(name)
        now[0] += next(durations[name])

    ways = {name: lambda name=name: work(name) for name in durations}
    values = benchmark.take_turns(ways, Plan(ppo.Args(), repetitions=2, turns=3))
    assert "".join(called) == "ab" + "baabba" * 2, "the first call of each does not count"
    assert values == {"a": [2000.0, 5000.0], "b": [3000.0, 3000.0]}


def test_the_words_of_options_are_read_as_the_same_options(tmp_path: Path) -> None:
    args = small_args(tmp_path, anneal_lr=False, bootstrap_truncated=True, learning_rate=0.5)
    words = command_line.words_of(args)
    assert ppo.parse_args(words) == args
    assert "--seed" not in words, "it is the usual one"


def test_memory_counts_a_process_and_its_children() -> None:
    code = "import sys; taken = bytearray(200 * 2**20); print('ready', flush=True); sys.stdin.read()"
    alone = benchmark.memory(os.getpid())
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout.readline() == b"ready\n"
        assert 200 < benchmark.memory(child.pid) < 300
        assert 150 < benchmark.memory(os.getpid()) - alone < 350
    assert benchmark.memory(child.pid) == 0, "it has ended"


def test_methods_are_compared_on_the_same_games(plan: Plan) -> None:
    with ExitStack() as stack:
        options = [dataclasses.replace(plan.base, method=m, learning_rate=0.0) for m in benchmark.METHODS]
        camal, vanilla = loops = [Loop(args, stack) for args in options]
        for loop in loops * 3:
            loop.iterate()
        assert torch.equal(camal.store.images, vanilla.store.images)
        assert torch.equal(camal.store.actions, vanilla.store.actions)
        assert camal.batch.mask_weights.any()
        assert not vanilla.batch.mask_weights.any()


def test_the_loop_that_is_measured_plays_and_learns(plan: Plan) -> None:
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        loop = Loop(plan.base, stack)
        before = loop.agent.fc.weight.clone()
        loop.iterate()
        assert not torch.equal(loop.agent.fc.weight, before)
        assert [game.steps for game in loop.envs.envs] == [plan.base.num_steps] * 2
    assert torch.get_num_threads() == threads


# ------------------------------------------------------------------------------------------------- the parts


def assert_complete(cases: Cases, names: list[str], ways: set[str], repetitions: int = 2) -> None:
    assert list(cases) == names
    for values in cases.values():
        assert set(values) == ways
        assert all(len(column) == repetitions and min(column) > 0 for column in values.values())


def test_overhead_is_that_of_iterations_and_of_updates(plan: Plan) -> None:
    cases = benchmark.overhead(plan)
    assert_complete(cases, ["iterate, 2 games", "update, 2 games"], {"camal", "vanilla"})


def test_rollouts_are_measured_beside_raw_engines(plan: Plan) -> None:
    cases = benchmark.rollout(plan)
    assert_complete(cases, [f"2 games rendered at {SMALL}"], {"raw engine", "rollout"})


def test_raw_engines_play_every_step_in_every_game(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        loop = Loop(plan.base, stack, benchmark.play_raw)
        envs: Any = loop.envs
        tics: list[int] = []
        act = type(envs.envs[0].game).make_action
        monkeypatch.setattr(
            type(envs.envs[0].game), "make_action", lambda *given: tics.append(given[2]) or act(*given)
        )
        loop.play()
        assert tics == [envs.definition.frame_skip] * 16


WAYS = ["no attention", "one pass a sample", "one pass (Eq. 4)", "closed form"]


def test_ways_of_extraction_differ_in_time_alone() -> None:
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    images = torch.randint(256, (3, 4, 52, 60), dtype=torch.uint8)
    mask_weights = torch.rand(3, 2, *agent.map_shape[1:])
    gradients = []
    for way in WAYS:
        benchmark.extract(agent, images, mask_weights, way)
        gradients.append(agent.conv3.weight.grad.clone())
    without, *others = gradients
    assert not torch.allclose(without, others[0])
    for gradient in others[1:]:
        torch.testing.assert_close(gradient, others[0], rtol=1e-3, atol=1e-6)


def test_extraction_is_measured_for_every_batch_size(plan: Plan) -> None:
    assert_complete(benchmark.extraction(plan), ["batch of 1", "batch of 2"], set(WAYS))


Trained = list[tuple[ppo.Args, int]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What `train` was asked for; it trains nothing and says 100 SPS, and memory that falls from 30 to 10."""
    asked: Trained = []
    told = (100.0, [30.0, 30.0, 20.0, 20.0, 10.0, 10.0])
    monkeypatch.setattr(
        benchmark, "train", lambda args, iterations, warmup=2: asked.append((args, iterations)) or told
    )
    return asked


def test_trainings_at_once_have_seeds_of_their_own_and_their_speeds_add_up(
    plan: Plan, trained: Trained
) -> None:
    cases = benchmark.runs(plan._replace(base=dataclasses.replace(plan.base, torch_threads=2)))
    ways = ((1, 1), (1, 2), (2, 1))
    expected = {f"{count} at once, torch threads: {n}": {"SPS": [100.0 * count] * 2} for count, n in ways}
    assert cases == expected
    assert {(args.seed, args.torch_threads) for args, _ in trained} == {(0, 1), (0, 2), (1, 1)}


def test_scaling_varies_one_size_at_a_time_and_watches_a_long_training(plan: Plan, trained: Trained) -> None:
    cases = benchmark.scaling(plan._replace(resolutions=(SMALL, "200x150")))
    on_cores = [f"8 games, {number} cores, {way}" for number in (1, 2) for way in ("threads", "processes")]
    varied = ["1 games", "2 games", *on_cores, "frames of 60x60", "rendered at 200x150"]
    thirds = [f"6 iterations, third {third}" for third in (1, 2, 3)]
    assert list(cases) == varied + thirds
    assert all(cases[case] == {"SPS": [100.0] * 2, "MiB": [30.0] * 2} for case in varied)
    assert [cases[case]["MiB"] for case in thirds] == [[30.0], [20.0], [10.0]]
    long, iterations = trained[-1]
    assert (long.checkpoint_every, long.measure_every, iterations) == (1, 1, 6)


def test_starting_is_timed_to_the_end_of_one_gradient_step(
    plan: Plan, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command))
    ways = {"--help", "first gradient step, and end"}
    assert_complete(benchmark.startup(plan), ["python -m camal_rl.ppo"], ways)
    assert asked[0][1:] == ["-m", "camal_rl.ppo", "--help"]
    args, iterations = trained[0]
    assert (args.batch_size, args.minibatch_size, args.update_epochs, iterations) == (4, 4, 1, 1)


@pytest.mark.slow
def test_classifiers_are_measured_with_both_methods(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from camal_rl.vision import models

    monkeypatch.setattr(benchmark, "IMAGES", 2)
    monkeypatch.setattr(models, "ARCHITECTURES", {"resnet18": models.ARCHITECTURES["resnet18"]})
    cases = benchmark.vision(plan._replace(repetitions=1, turns=1))
    assert_complete(cases, ["resnet18"], {"camal", "vanilla"}, repetitions=1)


def test_a_training_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "words_of", lambda args: ["--num-envs", "0"])
    with pytest.raises(UserError, match=r"^a training failed: --num-envs 0: should be greater"):
        benchmark.train(ppo.Args(), 1)


# ------------------------------------------------------------------------------------------- tables and files

COST: Cases = {
    "iteration": {"camal": [12.0, 30.0, 22.0], "vanilla": [10.0, 20.0, 20.0]},
    "update": {"camal": [6.0, 5.0, 7.0], "vanilla": [4.0, 5.0, 7.0]},
}
SIZES: Cases = {name: {"SPS": [600.0], "MiB": [400.4]} for name in ("2 games", "8 games")}
EXTRACTED: Cases = {f"batch of {size}": {"no attention": [1.0], "closed form": [1.1]} for size in (1, 2)}


def test_ratios_are_formed_within_a_repetition() -> None:
    table = benchmark.tabulate("Cost", COST, "vanilla")
    assert table.columns == ["", "camal, ms", "vanilla, ms", "camal / vanilla"]
    assert table.rows == [
        ["iteration", "22 [12 to 30]", "20 [10 to 20]", "1.200 [1.100 to 1.500]"],
        ["update", "6.000 [5.000 to 7.000]", "5.000 [4.000 to 7.000]", "1.000 [1.000 to 1.500]"],
    ]
    table = benchmark.tabulate("Sizes", SIZES)
    assert table.columns == ["", "SPS", "MiB"]
    assert table.rows[1] == ["8 games", "600 [600 to 600]", "400 [400 to 400]"]


@pytest.fixture
def fake_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts, which measure nothing, in the order in which they are measured."""
    measured: list[str] = []
    for name, (_, title, baseline) in benchmark.PARTS.items():
        cases = COST if baseline == "vanilla" else EXTRACTED if name == "extraction" else SIZES
        shown = (title, "" if cases is SIZES else baseline)
        measure = lambda plan, name=name, cases=cases: measured.append(name) or cases  # noqa: E731
        monkeypatch.setitem(benchmark.PARTS, name, (measure, *shown))
    return measured


def args_of(folder: Path, *parts: Any, **changes: Any) -> Args:
    return Args(parts=parts, output=folder / "benchmark", **{"device": "cpu", **changes})


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "benchmark" / "benchmark.json").read_text())["parts"]


def test_without_a_name_all_parts_are_measured_but_the_classifiers(
    tmp_path: Path, fake_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "draw", blank_figure)
    benchmark.run(args_of(tmp_path))
    assert fake_parts == [part for part in benchmark.PARTS if part != "vision"]
    figures = {f"{name}.{kind}" for name in ("extraction", "scaling") for kind in ("png", "svg", "pdf")}
    files = {path.name for path in (tmp_path / "benchmark").iterdir()}
    assert files == {"benchmark.json", "benchmark.md", *figures}


def test_each_part_is_written_with_its_command_and_every_repetition(
    tmp_path: Path, fake_parts: list[str], drawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.run(args_of(tmp_path, "extraction", "overhead", repetitions=3))
    assert fake_parts == ["overhead", "extraction"]
    part = content_of(tmp_path)["overhead"]
    assert part["cases"] == COST
    assert part["command"] == "python -m camal_rl.benchmark overhead --repetitions 3 --device cpu"
    text = (tmp_path / "benchmark" / "benchmark.md").read_text()
    line = "| iteration | 22 [12 to 30] | 20 [10 to 20] | 1.200 [1.100 to 1.500] |"
    assert line in text
    assert "(extraction.png)" in text
    assert part["machine"] in text
    assert f"Python {sys.version.split()[0]}" in part["machine"]
    assert line in capsys.readouterr().out


def test_a_part_measured_later_keeps_the_results_of_the_others(
    tmp_path: Path, fake_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "draw", blank_figure)
    benchmark.run(args_of(tmp_path, "overhead", "scaling"))
    monkeypatch.setitem(benchmark.PARTS, "overhead", (lambda plan: EXTRACTED, "New", ""))
    benchmark.run(args_of(tmp_path, "overhead", quick=True))
    parts = content_of(tmp_path)
    assert parts["scaling"]["cases"] == SIZES
    assert parts["overhead"]["cases"] == EXTRACTED
    assert parts["overhead"]["command"].endswith("overhead --quick --device cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "Basik"}, "did you mean Basic"),
        ({"device": "floppy"}, "--device floppy"),
        ({"repetitions": 0}, "--repetitions 0"),
    ],
)
def test_a_mistake_is_found_before_anything_is_measured(
    tmp_path: Path, fake_parts: list[str], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.run(args_of(tmp_path, **change))
    assert fake_parts == []
    assert not (tmp_path / "benchmark").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1, "parts": {}}', '{"format": 2}'])
def test_a_file_that_is_not_a_benchmarks_is_not_overwritten(
    tmp_path: Path, fake_parts: list[str], content: str
) -> None:
    file = tmp_path / "benchmark" / "benchmark.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match="can't be added to: move it away, or choose another --output"):
        benchmark.run(args_of(tmp_path, "overhead"))
    assert file.read_text() == content
    assert fake_parts == []


@pytest.mark.slow
def test_help_needs_no_torch(tmp_path: Path) -> None:
    told = run_python("-X", "importtime", "-m", "camal_rl.benchmark", "--help", folder=tmp_path)
    assert told.returncode == 0
    assert "--repetitions" in told.stdout
    assert " torch\n" not in told.stderr


@pytest.mark.engine
def test_rollouts_are_measured_on_the_engine(tmp_path: Path) -> None:
    plan = Plan(small_args(tmp_path, num_envs=2, num_steps=8), 1, turns=1, resolutions=(SMALL,), games=(2,))
    ways = {"raw engine", "rollout"}
    assert_complete(benchmark.rollout(plan), [f"2 games rendered at {SMALL}"], ways, 1)


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    options = ("extraction", "--quick", "--output", "out", "--torch-threads", "1")
    told = run_python("-m", "camal_rl.benchmark", *options, folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left where it was started"
    parts = json.loads((tmp_path / "out" / "benchmark.json").read_text())["parts"]
    assert_complete(parts["extraction"]["cases"], [f"batch of {n}" for n in (1, 16, 128)], set(WAYS), 1)


@pytest.mark.engine
def test_a_training_tells_its_speed_and_memory(tmp_path: Path) -> None:
    sps, memory = benchmark.train(small_args(tmp_path), 2)
    assert sps > 1
    assert 100 < max(memory) < 4000
    assert list(tmp_path.iterdir()) == []
