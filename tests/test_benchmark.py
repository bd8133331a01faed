"""The benchmark's command line and files; what it measures is another file's."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run as run_python

from camal_rl import benchmark, benchmark_parts
from camal_rl.benchmark import Args
from camal_rl.errors import UserError

STARTED = {"help": 0.5, "inference": 3.0, "gradient_step": 6.0, "one_iteration": 7.0}
TIMES = {"batch_size": 1024, "seconds": [{"rollout": 1.0, "update": 2.0}]}


@pytest.fixture
def fake_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that measure nothing; the order in which they were called."""
    called: list[str] = []

    def fake(part: str, result: dict[str, Any]) -> None:
        monkeypatch.setattr(benchmark_parts, part, lambda settings: called.append(part) or result)

    fake("startup", {"batch_size": 1024, "seconds": [STARTED]})
    fake("profile", TIMES)
    return called


def args_of(folder: Path, *parts: Any, **changes: Any) -> Args:
    return Args(parts=parts, output=folder / "benchmark", device="cpu", precision="fp32", **changes)


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "benchmark" / "benchmark.json").read_text())


def test_without_a_name_all_parts_are_measured_but_those_that_need_more_installed() -> None:
    usual = [part for part in benchmark.PARTS if part not in ("peers", "vision")]
    assert benchmark.chosen_parts(Args()) == usual
    with_peers = benchmark.chosen_parts(Args(peers=("sample-factory=python",)))
    assert with_peers == [part for part in benchmark.PARTS if part != "vision"]
    assert benchmark.chosen_parts(Args(parts=("profile", "overhead"))) == ["overhead", "profile"]


def test_every_part_has_a_function_and_an_account() -> None:
    from camal_rl.benchmark_tables import ACCOUNTS

    assert set(ACCOUNTS) == set(benchmark.PARTS)
    assert all(callable(getattr(benchmark_parts, part)) for part in benchmark.PARTS)


def test_the_command_line_is_read_up_to_the_options_of_training() -> None:
    words = ["overhead", "runs", "--repetitions", "3", "--peers", "sample-factory=a", "--", "--num-envs", "2"]
    args, train = benchmark.parse_args(words)
    assert args.parts == ("overhead", "runs")
    assert args.repetitions == 3
    assert args.peers == ("sample-factory=a",)
    assert train == ["--num-envs", "2"]


def test_the_settings_are_options_of_training(tmp_path: Path) -> None:
    settings = benchmark.settings_of(args_of(tmp_path, torch_threads=1, iterations=3), ["--num-envs", "4"])
    args = benchmark_parts.training_args(settings, tmp_path, "--method", "vanilla")
    assert (args.run.env, args.run.method, args.run.runs_dir) == ("Basic", "vanilla", tmp_path)
    assert (args.ppo.num_envs, args.machine.torch_threads, args.machine.precision) == (4, 1, "fp32")
    assert settings.iterations == 3


def test_each_part_is_saved_with_machine_command_and_raw_result(
    tmp_path: Path, fake_parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.run(args_of(tmp_path, "profile", "startup"), [])
    assert fake_parts == ["startup", "profile"]
    parts = content_of(tmp_path)["parts"]
    assert parts["startup"]["result"]["seconds"] == [STARTED]
    assert parts["startup"]["machine"]["device"] == "cpu"
    assert parts["startup"]["command"] == "python -m camal_rl.benchmark startup --device cpu --precision fp32"
    text = (tmp_path / "benchmark" / "benchmark.md").read_text()
    assert "start to the first gradient step" in text
    said = capsys.readouterr().out
    assert "--help: 0.50 s (0.50 to 0.50); goal: at most 1 s: met" in said
    assert "gradient step: 6.00 s (6.00 to 6.00); goal: at most 5 s: missed" in said
    assert str(tmp_path / "benchmark" / "benchmark.md") in said


def test_a_part_measured_later_keeps_the_results_of_the_others(
    tmp_path: Path, fake_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark.run(args_of(tmp_path, "startup", "profile"), [])
    quicker = {"batch_size": 1024, "seconds": [STARTED | {"help": 0.25}]}
    monkeypatch.setattr(benchmark_parts, "startup", lambda settings: quicker)
    benchmark.run(args_of(tmp_path, "startup"), [])
    parts = content_of(tmp_path)["parts"]
    assert parts["startup"]["result"] == quicker
    assert parts["profile"]["result"] == TIMES
    assert "Where the time goes" in (tmp_path / "benchmark" / "benchmark.md").read_text()


def test_the_command_names_what_differs_and_no_path_of_this_machine(tmp_path: Path) -> None:
    args = args_of(tmp_path, "peers", "runs", repetitions=3, peers=("sample-factory=/somewhere/python",))
    assert benchmark.command("peers", args, ["--num-envs", "4"]) == (
        "python -m camal_rl.benchmark peers --repetitions 3 --device cpu --precision fp32 "
        "--peers sample-factory=PYTHON -- --num-envs 4"
    )


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"repetitions": 0}, [], "--repetitions 0: give a number of at least 1"),
        ({"iterations": 0}, [], "--iterations 0: give a number of at least 1"),
        ({"torch_threads": -1}, [], "--torch-threads -1: give a number of at least 0"),
        ({"env": "Basik"}, [], "did you mean Basic"),
        ({}, ["--seed", "3"], "--seed can't be one of the options of training"),
        ({}, ["--total_timesteps=3"], "--total-timesteps can't be one of the options"),
        ({}, ["--num-envs", "3", "--num-steps", "3"], "do not divide"),
        ({"peers": ("rllib=x",)}, [], "--peers rllib=x"),
        ({"parts": ("peers",)}, [], "name at least one with --peers. To install them: python3 -m venv"),
    ],
)
def test_a_mistake_is_found_before_anything_is_measured(
    tmp_path: Path, fake_parts: list[str], changes: dict[str, Any], train: list[str], message: str
) -> None:
    args = args_of(tmp_path)
    for name, value in changes.items():
        setattr(args, name, value)
    with pytest.raises(UserError, match=message):
        benchmark.run(args, train)
    assert fake_parts == []
    assert not args.output.exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    args = args_of(tmp_path, "profile")
    args.device = "floppy"
    with pytest.raises(UserError, match="--device floppy"):
        benchmark.run(args, [])


def test_a_peer_without_an_interpreter_is_told_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_parts, "check_peers", lambda named: {"stable-baselines3": "python"})
    stamps = [{"ended": 0.0, "resumed": 0.0}, {"ended": 1.0, "resumed": 1.0}]
    row = {"repetition": 0, "render_resolution": "320x240", "torch_threads": 1}
    measured = [
        row | {"name": "camal_rl", "batch_size": 8, "stamps": [stamps]},
        row | {"name": "stable-baselines3", "sps": 4.0},
    ]
    monkeypatch.setattr(benchmark_parts, "peers", lambda settings, interpreters: {"measured": measured})
    benchmark.run(args_of(tmp_path, "peers", peers=("stable-baselines3=python",)), [])
    said = capsys.readouterr().out
    assert "sample-factory is not measured. To install it: python3 -m venv sample-factory" in said
    assert "CAMAL's SPS over stable-baselines3's, 320x240: 2.00 times" in said


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 0, "parts": {}}', '{"format": 1, "parts": {"x": 1}}']
)
def test_a_file_that_is_not_a_benchmarks_is_not_overwritten(
    tmp_path: Path, fake_parts: list[str], content: str
) -> None:
    file = tmp_path / "benchmark" / "benchmark.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match=r"can't be added to .* choose another --output"):
        benchmark.run(args_of(tmp_path, "profile"), [])
    assert file.read_text() == content
    assert fake_parts == []


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path: Path, fake_parts: list[str]) -> None:
    (tmp_path / "benchmark").write_text("a file")
    with pytest.raises(UserError, match=r"can't make .*choose another --output|Choose another --output"):
        benchmark.run(args_of(tmp_path, "profile"), [])


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_parts_that_are_finished(
    tmp_path: Path,
    fake_parts: list[str],
    handlers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    monkeypatch.setattr(benchmark_parts, "profile", lambda settings: os.kill(os.getpid(), number))
    assert benchmark.main(args_of(tmp_path, "startup", "profile"), []) == code
    assert list(content_of(tmp_path)["parts"]) == ["startup"]
    assert "Finished parts are in" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, handlers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(args_of(tmp_path, repetitions=0), []) == 2
    assert capsys.readouterr().err == "camal_rl: --repetitions 0: give a number of at least 1.\n"


@pytest.mark.slow
def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from camal_rl import benchmark; print('torch' in sys.modules, 'vizdoom' in sys.modules)"
    )
    assert run_python("-c", code, folder=tmp_path).stdout == "False False\n"
    told = run_python("-m", "camal_rl.benchmark", "--help", folder=tmp_path)
    assert told.returncode == 0
    assert "--repetitions" in told.stdout


@pytest.mark.engine
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    sizes = (
        "--num-envs",
        "2",
        "--num-steps",
        "8",
        "--num-minibatches",
        "2",
        "--render-resolution",
        "160x120",
    )
    options = ("profile", "--repetitions", "1", "--iterations", "1", "--output", "out", "--", *sizes)
    told = run_python("-m", "camal_rl.benchmark", *options, folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left where it was started"
    parts = json.loads((tmp_path / "out" / "benchmark.json").read_text())["parts"]
    assert parts["profile"]["command"].endswith(f"-- {' '.join(sizes)}")
    assert "Where the time goes" in (tmp_path / "out" / "benchmark.md").read_text()
    assert sys.executable not in (tmp_path / "out" / "benchmark.json").read_text()
