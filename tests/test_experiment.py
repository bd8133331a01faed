"""The matrix: what is planned, done, done again and reported; and, on the engine, from command to scores."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, run

from camal_rl import experiment
from camal_rl.errors import UserError
from camal_rl.experiment import Matrix
from camal_rl.game import shift
from camal_rl.run import machine, runner
from camal_rl.run.runner import Cell, Outcome, Runner

TRAIN = ("--total-timesteps", "2048", "--reward", "scale")


def matrix_of(folder: Path, **changes: object) -> Matrix:
    usual = Matrix(
        ("Basic", "TakeCover"), ("camal", "vanilla"), (1, 2), folder / "runs", TRAIN, ("--episodes", "3")
    )
    return usual._replace(**changes)  # type: ignore[arg-type]


SETTINGS = {
    "episodes": 3,
    "seed": 0,
    "greedy": False,
    "max_steps": 2100,
    "shift": [],
    "faithfulness_frames": 1000,
    "faithfulness_stack": "all",
    "attention": "gradcam",
}


def write_scores(cell: Cell, **changes: object) -> None:
    """What an evaluation of this cell would write, as far as it is read."""
    scores = {
        "steps": cell.steps,
        "training": cell.trained,
        "settings": SETTINGS,
        "return": {"mean": 1.5},
        "iou": 0.25,
    }
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "scores.json").write_text(json.dumps(scores | changes))


class Fake:
    """Stands in for the two processes of a cell: notes what was called, and writes what they would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cells: list[Cell]) -> None:
        self.calls: list[tuple[str, str]] = []
        self.codes: dict[tuple[str, str], list[int]] = {}
        """Exit codes of the coming calls, 0 where there is none."""
        self.cells = {cell.folder: cell for cell in cells}
        self.most = self.now = 0
        self.working: set[str] = set()
        self.lock = threading.Lock()
        monkeypatch.setattr(Runner, "_process", lambda runner, *arguments: self.process(runner, *arguments))

    def process(self, runner: Runner, cell: Cell, module: str, options: tuple[str, ...], log: object) -> int:
        folder, title = cell.folder, cell.title
        with self.lock:
            assert title not in self.working, "two processes in one folder"
            self.working.add(title)
            self.calls.append((module, title))
            self.now += 1
            self.most = max(self.most, self.now)
        log.write(f"$ python -m camal_rl.{module}\nsome words\rthe last words\n".encode())  # type: ignore[attr-defined]
        log.flush()  # type: ignore[attr-defined]
        time.sleep(0.05)
        codes = self.codes.get((module, title), [])
        code = codes.pop(0) if codes else 0
        if code == 0 and module == "evaluate":
            write_scores(self.cells[folder])
        if module == "evaluate" and "--compare" in options:
            codes = self.codes.get(("compare", title), [])
            code = codes.pop(0) if codes else code
            if code == 0:
                other = Path(options[options.index("--compare") + 1]).parts[-2]
                (folder / "media").mkdir(exist_ok=True)
                (folder / "media" / f"evaluation-versus-{other}-seed-1.png").touch()
        with self.lock:
            self.working.remove(title)
            self.now -= 1
        return code


@pytest.mark.slow
def test_the_papers_matrix_is_the_default() -> None:
    args, train = experiment.parse_args([])
    matrix = experiment.read_matrix(args, train)
    assert matrix.envs == ("Basic", "DefendLine", "DefendCenter", "TakeCover")
    assert matrix.methods == ("camal", "vanilla")
    assert matrix.seeds == (1, 2, 3, 4, 5)
    assert len(experiment.cells(matrix)) == 40


def test_options_after_the_dashes_go_to_every_training(tmp_path: Path) -> None:
    words = ["--envs", "Basic", "--seeds", "2", "--runs-dir", str(tmp_path), "--", *TRAIN, "--no-clip-vloss"]
    planned = experiment.cells(experiment.read_matrix(*experiment.parse_args(words)))
    assert [cell.title for cell in planned] == [
        f"Basic/{method}/seed{seed}" for seed in (1, 2) for method in ("camal", "vanilla")
    ]
    for cell in planned:
        assert cell.steps == 2048
        assert cell.trained["ppo"]["clip_vloss"] is False
        assert cell.trained["environment"]["reward"] == "scale"
        assert cell.folder.is_relative_to(tmp_path)


def test_a_matrix_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(
        'envs = ["Basic"]\nmethods = ["suppress", "camal"]\nseeds = [3, 7]\nruns_dir = "elsewhere"\n'
        '[train]\ntotal_timesteps = 4096\nclip_vloss = false\nframe_size = [84, 84]\nreward = "scale"\n'
        "[evaluate]\nepisodes = 9\ngreedy = true\n"
    )
    matrix = experiment.read_matrix(*experiment.parse_args(["--matrix", str(file)]))
    assert matrix == Matrix(
        ("Basic",),
        ("suppress", "camal"),
        (3, 7),
        Path("elsewhere"),
        ("--total-timesteps", "4096", "--no-clip-vloss", "--frame-size", "84", "84", "--reward", "scale"),
        ("--episodes", "9", "--greedy"),
    )
    assert [cell.steps for cell in experiment.cells(matrix)] == [4096] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("envs = ", "can't read the matrix"),
        ("environments = []", "unknown key environments; valid are envs, methods, seeds"),
        ('envs = "Basic"', "envs = 'Basic' is of the wrong kind"),
        ("envs = [1]", "lists of strings"),
        ("seeds = true", "seeds = True is of the wrong kind"),
        ('seeds = ["1"]', "seeds a number or a list of them"),
        ("envs = []", "--envs: name at least one"),
        ("seeds = [1, 1]", "--seeds: 1 1 names one twice"),
        ('envs = ["Basik"]', "did you mean Basic"),
        ("[train]\nseed = 3", "--seed can't be one of the options of train:"),
        ('[evaluate]\noutput = "x"', "--output can't be one of the options of evaluate:"),
        (f'envs = ["Basic", "{ROOT}/envs/Basic.toml"]', "both called Basic, and so would share the folder"),
        ("[train]\nnum_envs = 0", "--num-envs 0"),
        ("[evaluate]\nepisodes = 0", "--episodes 0"),
    ],
)
def test_a_mistake_in_the_matrix_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "matrix.toml"
    file.write_text(f'runs_dir = "{tmp_path}/runs"\n{text}' if "runs_dir" not in text else text)
    with pytest.raises(UserError, match=re.escape(words)):
        experiment.cells(experiment.read_matrix(*experiment.parse_args(["--matrix", str(file)])))
    assert not (tmp_path / "runs").exists()


def test_a_file_and_options_cannot_both_say_what_is_done(tmp_path: Path) -> None:
    for words in (["--seeds", "2"], ["--", "--reward", "raw"], ["--runs-dir", "elsewhere"]):
        with pytest.raises(UserError, match="says what is done: leave out"):
            experiment.read_matrix(*experiment.parse_args(["--matrix", str(tmp_path / "m.toml"), *words]))
    with pytest.raises(UserError, match=r"can't read the matrix .*m\.toml: No such file"):
        experiment.read_matrix(*experiment.parse_args(["--matrix", str(tmp_path / "m.toml")]))


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    matrix = matrix_of(tmp_path)
    (cell, *_) = experiment.cells(matrix)
    cell.folder.mkdir(parents=True)
    (cell.folder / "args.json").write_text(
        json.dumps({"version": "0", **cell.trained, "ppo": {"gamma": 0.5}})
    )
    with pytest.raises(UserError, match=r"holds a run with other arguments.*gamma was 0\.5, now 0\.99"):
        experiment.cells(matrix)


@pytest.mark.slow
def test_only_what_is_trained_and_evaluated_as_wanted_counts_as_done(tmp_path: Path) -> None:
    cell = experiment.cells(matrix_of(tmp_path))[0]
    assert not runner.is_done(cell)
    write_scores(cell)
    assert runner.is_done(cell)
    for changes in (
        {"steps": 1024},
        {"settings": {"episodes": 3}},
        *(
            {"settings": SETTINGS | {name: value}}
            for name, value in {
                "episodes": 4,
                "seed": 1,
                "greedy": True,
                "max_steps": 9,
                "faithfulness_frames": 0,
                "faithfulness_stack": "newest",
                "attention": "layercam",
            }.items()
        ),
        {"training": cell.trained | {"ppo": {}}},
        {"training": None},
    ):
        write_scores(cell, **changes)
        assert not runner.is_done(cell)
    (cell.folder / "scores.json").write_text("{")
    assert not runner.is_done(cell)
    machine = {"machine": {"precision": "bf16", "device_type": "cuda"}}
    write_scores(cell, training=cell.trained | machine)  # trained elsewhere
    assert runner.is_done(cell)
    every = cell._replace(evaluate=(*cell.evaluate, "--shift"))
    write_scores(cell, settings=SETTINGS | {"shift": ["flat"]})
    assert runner.is_done(cell)
    assert not runner.is_done(every)  # without a name, all of them
    write_scores(cell, settings=SETTINGS | {"shift": list(shift.SHIFTS)})
    assert runner.is_done(every)


@pytest.mark.slow
def test_two_other_methods_are_shown_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), methods=("camal", "vanilla", "suppress"), seeds=(1,))
    Fake(monkeypatch, experiment.cells(matrix))  # which refuses two processes in one folder
    assert experiment.run(matrix, jobs=3, retries=0) == 0
    shown = sorted(path.name for path in (matrix.runs_dir / "Basic/camal/seed1/media").iterdir())
    assert shown == ["evaluation-versus-suppress-seed-1.png", "evaluation-versus-vanilla-seed-1.png"]


def test_a_cell_that_cannot_be_written_is_reported_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), seeds=(1,))
    Fake(monkeypatch, experiment.cells(matrix))
    (matrix.runs_dir / "Basic").mkdir(parents=True)
    (matrix.runs_dir / "Basic/vanilla").touch()
    assert experiment.run(matrix, jobs=1, retries=0) == 1
    output, shown = capsys.readouterr()
    assert "1 of 2 runs are done" in output
    assert re.search(r"failed  Basic/vanilla/seed1 after 0:00: .*vanilla.*: Not a directory", shown)


def test_scores_that_are_not_what_was_asked_for_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), seeds=(1,), methods=("camal",))
    monkeypatch.setattr(Runner, "_process", lambda *_: 0)
    assert experiment.run(matrix, jobs=1, retries=0) == 1
    assert "its scores.json is not what was asked for" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_that_fail_are_reported_and_leave_the_runs_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(
        tmp_path, envs=("Basic",), seeds=(1,), evaluate=("--episodes", "3", "--video-episodes", "0")
    )
    fake = Fake(monkeypatch, experiment.cells(matrix))
    fake.codes = {("compare", "Basic/camal/seed1"): [1, 0]}
    assert experiment.run(matrix, jobs=1, retries=0) == 1
    output, shown = capsys.readouterr()
    assert "2 of 2 runs are done" in output
    assert "failed  Basic/camal/seed1" in shown
    fake.calls.clear()
    assert experiment.run(matrix, jobs=1, retries=0) == 0
    assert fake.calls == [("ppo", "Basic/camal/seed1"), ("evaluate", "Basic/camal/seed1")]
    fake.calls.clear()
    assert experiment.run(matrix, jobs=1, retries=0) == 0
    assert fake.calls == []  # no video was asked for, and the picture is there
    (matrix.runs_dir / "Basic/vanilla/seed1/scores.json").unlink()
    assert experiment.run(matrix, jobs=1, retries=0) == 0
    assert ("evaluate", "Basic/camal/seed1") in fake.calls  # beside what it is now


@pytest.mark.slow
def test_every_cell_is_trained_evaluated_and_shown_beside_the_other_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path)
    planned = experiment.cells(matrix)
    fake = Fake(monkeypatch, planned)
    assert experiment.run(matrix, jobs=2, retries=1) == 0
    assert fake.most == 2
    for cell in planned:
        assert fake.calls.index(("ppo", cell.title)) < fake.calls.index(("evaluate", cell.title))
    again = [title for _, title in fake.calls[2 * len(planned) :]]
    assert sorted(again) == ["Basic/camal/seed1"] * 2 + ["TakeCover/camal/seed1"] * 2
    record = json.loads((tmp_path / "runs/experiment.json").read_text())
    assert record["envs"] == ["Basic", "TakeCover"]
    assert record["train"] == list(TRAIN)
    output, shown = capsys.readouterr()
    assert "8 of 8 runs are done. Report: python -m camal_rl.report" in output
    assert "done    Basic/camal/seed1 in 0:00: return 1.50, IoU 0.250" in shown

    fake.calls.clear()
    assert experiment.run(matrix, jobs=2, retries=1) == 0  # nothing is done twice
    assert fake.calls == []
    (planned[3].folder / "scores.json").unlink()
    assert experiment.run(matrix, jobs=2, retries=1) == 0  # only what is missing
    beside = [("ppo", "TakeCover/camal/seed1"), ("evaluate", "TakeCover/camal/seed1")]
    assert fake.calls == [("ppo", planned[3].title), ("evaluate", planned[3].title), *beside]


@pytest.mark.slow
def test_a_cell_that_fails_is_tried_again_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",))
    fake = Fake(monkeypatch, experiment.cells(matrix))
    fake.codes = {
        ("ppo", "Basic/camal/seed1"): [1],  # once
        ("evaluate", "Basic/vanilla/seed1"): [1, -9],  # always
        ("ppo", "Basic/vanilla/seed2"): [2],  # a mistake, which another try would not mend
    }
    assert experiment.run(matrix, jobs=1, retries=1) == 1
    assert fake.calls.count(("ppo", "Basic/camal/seed1")) >= 2
    assert fake.calls.count(("evaluate", "Basic/vanilla/seed1")) == 2
    assert fake.calls.count(("ppo", "Basic/vanilla/seed2")) == 1
    output, shown = capsys.readouterr()
    assert "2 of 4 runs are done" in output
    lines = [line for line in shown.splitlines() if line.startswith("failed")]
    assert len(lines) == 4  # when it happened, and in the end
    for title in ("Basic/vanilla/seed1", "Basic/vanilla/seed2"):
        log = matrix.runs_dir / title / "experiment.log"
        assert any(title in line and f"the last words ({log})" in line for line in lines)


def test_progress_is_read_from_the_trainers_bar(tmp_path: Path) -> None:
    cell = experiment.cells(matrix_of(tmp_path))[0]
    runner = Runner(0)
    assert runner.progress() == {}
    runner.running[cell.folder] = (cell, "ppo", 30)
    assert runner.progress() == {cell.title: None}
    cell.folder.mkdir(parents=True)
    log = runner.log_of(cell)
    log.write_text(" 90%|  | of an earlier attempt\n$ python -m camal_rl.ppo --env Basic\n")
    assert runner.progress() == {cell.title: None}
    with log.open("a") as file:
        file.write("  0%|   | 0/2k steps\r 50%|█  | 1k/2k steps")
    assert runner.progress() == {cell.title: pytest.approx(0.45)}
    with log.open("a") as file:
        file.write("\n$ python -m camal_rl.evaluate runs\n" + "episodes:  10%|█" * 1000)
    runner.running[cell.folder] = (cell, "evaluate", 100)
    assert runner.progress() == {cell.title: pytest.approx(0.9)}


def test_time_left_counts_what_was_seen_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    cell = experiment.cells(matrix_of(tmp_path))[0]
    with runner.Display(total=10, done=4) as display:  # 4 by an earlier process
        assert display.left({"a": None, "b": None}) is None
        clock[0] += 5
        assert display.left({"a": 0.6, "b": 0.0}) is None  # a went on from a checkpoint
        clock[0] += 55
        # 0.3 + 0.3 of a cell in 60 s; 6 - 0.9 - 0.3 are left.
        assert display.left({"a": 0.9, "b": 0.3}) == pytest.approx(60 * 4.8 / 0.6)
        display.ended(Outcome(cell._replace(folder=Path("x/y/a/b/c")), "failed", 1, "why"))
        assert display.left({"a": 0.9, "b": 0.3}) == pytest.approx(60 * 3.8 / 0.6)
        display.show({"a": 0.9, "b": None})
    write_scores(cell)
    with runner.Display(total=2, done=0) as display:
        display.left({cell.title: 0.5})
        clock[0] += 10
        display.ended(Outcome(cell, "done", 1, ""))
        assert display.left({}) == pytest.approx(10 * 1 / 0.5)


@pytest.mark.slow
def test_stopping_leaves_the_rest_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = matrix_of(tmp_path)
    fake = Fake(monkeypatch, experiment.cells(matrix))
    stopping = threading.Event()
    fake.codes = {("ppo", "Basic/vanilla/seed1"): [130]}
    real = fake.process

    def stop_in_the_second(runner: Runner, *arguments: object) -> int:
        if len(fake.calls) == 2:
            stopping.set()
        return real(runner, *arguments)

    monkeypatch.setattr(fake, "process", stop_in_the_second)
    assert experiment.run(matrix, jobs=1, retries=1, stopped=stopping) == 130
    assert len(fake.calls) == 3


def test_jobs_are_bounded_by_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 6)
    for memory, jobs in ((None, 6), (64 * 2**30, 6), (4 * 2**30, 2), (1, 1)):
        monkeypatch.setattr(machine, "available_memory", lambda memory=memory: memory)
        assert runner.bearable_jobs() == jobs


def test_a_line_on_how_a_cell_ended(tmp_path: Path) -> None:
    cell = experiment.cells(matrix_of(tmp_path))[0]
    write_scores(cell, iou=None)
    assert runner.describe(Outcome(cell, "done", 62.4, "")).endswith("in 1:02: return 1.50, IoU none")
    assert runner.describe(Outcome(cell, "stopped", 1, "")) == "stopped Basic/camal/seed1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "--seeds 0: give a number of at least 1"),
        (["--jobs", "-1"], "--jobs -1"),
        (["--gpus", "-1"], "--gpus -1"),
        (["--gpus", "1"], "give --ray too"),
        (["--envs", "Nowhere"], "no environment named 'Nowhere'"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_line_and_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    done = run("-m", "camal_rl.experiment", *words, folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


SMALL_MATRIX = """
envs = ["Basic"]
seeds = 1
[train]
total_timesteps = 768
num_envs = 4
num_steps = 32
update_epochs = 1
render_resolution = "160x120"
[evaluate]
episodes = 3
faithfulness_frames = 20
"""


def small_matrix(folder: Path) -> list[str]:
    (folder / "small.toml").write_text(SMALL_MATRIX)
    return [sys.executable, "-m", "camal_rl.experiment", "--matrix", "small.toml"]


def started_matrix(folder: Path) -> "subprocess.Popen[str]":
    """The small matrix's process, when its first training has begun to log."""
    process = subprocess.Popen(
        small_matrix(folder),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(folder.rglob("events*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.engine
def test_a_small_matrix_on_the_engine_stopped_and_started_again(tmp_path: Path) -> None:
    process = started_matrix(tmp_path)
    process.send_signal(2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopping: every run saves where it is" in errors
    assert not list(tmp_path.rglob("scores.json"))
    assert list(tmp_path.rglob("checkpoint.pt"))
    done = subprocess.run(
        small_matrix(tmp_path),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are done" in done.stdout
    for method in ("camal", "vanilla"):
        scores = json.loads((tmp_path / f"runs/Basic/{method}/seed1/scores.json").read_text())
        assert scores["steps"] == 768
        assert len(scores["episodes"]) == 3
    log = (tmp_path / "runs/Basic/camal/seed1/experiment.log").read_text()
    assert (
        log.count("$ python -m camal_rl.ppo --env Basic --method camal") == 3
    )  # stopped, done, beside the other
    assert (tmp_path / "runs/Basic/camal/seed1/media/evaluation-versus-vanilla-seed-1.mp4").exists()


@pytest.mark.engine
@pytest.mark.parametrize(("times", "code"), [(1, 143), (2, 143)])
def test_sigterm_ends_the_matrix_once_saved_and_twice_at_once(tmp_path: Path, times: int, code: int) -> None:
    process = started_matrix(tmp_path)
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert ("Stopped at once." in errors) == (times == 2)
    if times == 2:
        assert not list(tmp_path.rglob("checkpoint.pt"))
