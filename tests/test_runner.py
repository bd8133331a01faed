"""Cells: what counts as done, how they are run, tried again, stopped and shown."""

import itertools
import json
import sys
import threading
import time
from pathlib import Path

import pytest

from camal_rl.game.definition import load_definition
from camal_rl.run import machine, runner
from camal_rl.run.runner import Cell, Outcome, Runner, learned, run_here

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
TRAINED = learned(
    {"args": {"gamma": 0.99, "method": "camal"}, "definition": load_definition("Basic").described()}
)


def cells_in(folder: Path) -> list[Cell]:
    """Two methods, two seeds."""
    return [
        Cell(folder / f"runs/Basic/{method}/seed{seed}", ("--seed", "1"), (), 2048, TRAINED, SETTINGS)
        for seed in (1, 2)
        for method in ("camal", "vanilla")
    ]


def write_scores(cell: Cell, **changes: object) -> None:
    """Write what an evaluation of this cell would, as far as it is read."""
    scores = {
        "steps": cell.steps,
        "training": cell.trained,
        "settings": cell.settings,
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
        monkeypatch.setattr(Runner, "_process", lambda runner, *arguments: self.process(*arguments))

    def process(self, cell: Cell, module: str, options: tuple[str, ...], log: object) -> int:
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


def test_only_what_is_trained_and_evaluated_as_wanted_counts_as_done(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]
    assert not runner.is_done(cell)
    write_scores(cell)
    assert runner.is_done(cell)
    others = {
        "episodes": 4,
        "seed": 1,
        "greedy": True,
        "max_steps": 9,
        "faithfulness_frames": 0,
        "faithfulness_stack": "newest",
        "attention": "layercam",
    }
    for changes in (
        {"steps": 1024},
        {"settings": {"episodes": 3}},
        *({"settings": SETTINGS | {name: value}} for name, value in others.items()),
        {"training": TRAINED | {"args": {}}},
        {"training": TRAINED | {"definition": {}}},
        {"training": {"args": 3}},
        {"training": None},
    ):
        write_scores(cell, **changes)
        assert not runner.is_done(cell)
    (cell.folder / "scores.json").write_text("{")
    assert not runner.is_done(cell)


def test_a_run_counts_wherever_it_was_trained(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]
    elsewhere = {"precision": "bf16", "device_type": "cuda"}
    write_scores(cell, training={"version": "2", **TRAINED, "args": TRAINED["args"] | elsewhere})
    assert runner.is_done(cell)


def test_another_scale_of_returns_leaves_a_run_done(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]
    told_otherwise = TRAINED["definition"] | {"random_return": -152.0, "random_source": "of old"}
    write_scores(cell, training=TRAINED | {"definition": told_otherwise})
    assert runner.is_done(cell)
    write_scores(cell, training=TRAINED | {"definition": told_otherwise | {"reward_scale": 7.0}})
    assert not runner.is_done(cell)


def test_an_evaluation_may_have_more_visual_changes_than_wanted_but_not_fewer(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]
    shifted = cell._replace(settings=SETTINGS | {"shift": ["flat", "dark"]})
    write_scores(cell, settings=SETTINGS | {"shift": ["flat"]})
    assert runner.is_done(cell)
    assert not runner.is_done(shifted)
    write_scores(cell, settings=SETTINGS | {"shift": ["dark", "flat", "noise"]})
    assert runner.is_done(shifted)


@pytest.mark.slow
def test_a_process_is_started_logged_and_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cells_in(tmp_path)[0]
    cell.folder.mkdir(parents=True)
    with cell.log.open("ab") as log:
        code = Runner(0)._process(cell, "experiment", ["--no-such-option"], log)
    assert code == 2
    assert cell.log.read_text().startswith("$ python -m camal_rl.experiment --no-such-option\n")
    assert "no-such-option" in cell.log.read_text().split("\n", 1)[1]
    monkeypatch.setattr(runner, "_LAUNCH", "import time; time.sleep(60)")
    stopping, killing = Runner(0, lambda: True), Runner(0)
    killing.killing.set()
    with cell.log.open("ab") as log:
        assert stopping._process(cell, "ppo", [], log) == -15
        assert killing._process(cell, "ppo", [], log) == -9


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell children of a parent's end")
def test_a_process_that_comes_after_its_parents_end_does_nothing(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", runner._LAUNCH, "1", "camal_rl.experiment", "--help"]
    done = runner.subprocess.run(arguments, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, b"")


def test_cells_run_side_by_side_and_a_failed_one_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = cells_in(tmp_path)
    fake = Fake(monkeypatch, planned)
    fake.codes = {
        ("ppo", "Basic/camal/seed1"): [1],  # once
        ("evaluate", "Basic/vanilla/seed1"): [1, -9],  # always
        ("ppo", "Basic/vanilla/seed2"): [2],  # a mistake, which another try would not mend
    }
    outcomes = run_here(planned, 4, 2, Runner(1))
    assert fake.most == 2
    assert {outcome.cell.title: outcome.status for outcome in outcomes} == {
        "Basic/camal/seed1": "done",
        "Basic/vanilla/seed1": "failed",
        "Basic/camal/seed2": "done",
        "Basic/vanilla/seed2": "failed",
    }
    assert fake.calls.count(("ppo", "Basic/camal/seed1")) == 2
    assert fake.calls.count(("evaluate", "Basic/vanilla/seed1")) == 2
    assert fake.calls.count(("ppo", "Basic/vanilla/seed2")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert len(lines) == 2
    for title in ("Basic/vanilla/seed1", "Basic/vanilla/seed2"):
        log = tmp_path / "runs" / title / "experiment.log"
        assert any(title in line and f"the last words ({log})" in line for line in lines)


def test_a_cell_that_cannot_be_written_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[1]
    (tmp_path / "runs/Basic").mkdir(parents=True)
    (tmp_path / "runs/Basic/vanilla").touch()
    outcome = Runner(0).run(cell)
    assert outcome.status == "failed"
    assert outcome.message == f"{cell.folder}: Not a directory"


def test_scores_that_are_not_what_was_asked_for_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "_process", lambda *_: 0)
    outcome = Runner(0).run(cells_in(tmp_path)[0])
    assert outcome.status == "failed"
    assert "its scores.json is not what was asked for" in outcome.message


def test_stopping_leaves_the_rest_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = cells_in(tmp_path)
    fake = Fake(monkeypatch, planned)
    fake.codes = {("ppo", "Basic/vanilla/seed1"): [130]}
    outcomes = run_here(planned, 4, 1, Runner(1, lambda: len(fake.calls) == 3))
    assert [outcome.status for outcome in outcomes] == ["done", "stopped", "stopped", "stopped"]
    assert len(fake.calls) == 3


def test_ctrl_c_once_more_ends_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Runner(0)
    monkeypatch.setattr(Runner, "_process", lambda running, *_: -9 if running.killing.wait(10) else 0)
    pauses = itertools.count()
    pause = time.sleep

    def interrupted(seconds: float) -> None:
        pause(seconds)
        if threading.current_thread() is threading.main_thread() and next(pauses) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_here(cells_in(tmp_path)[:1], 1, 1, running)
    assert time.monotonic() - began < 5


def test_progress_is_read_from_the_bars_of_training_and_evaluation(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]._replace(steps=20_600, settings=SETTINGS | {"shift": ["hud"]})
    everything = 20_600 + 2 * 3 * 150 + 1000 * 20  # training, three episodes twice, faithfulness
    running = Runner(0)
    assert running.progress() == {}
    running.running[cell.folder] = (cell, "ppo", 30)
    assert running.progress() == {cell.title: None}
    cell.folder.mkdir(parents=True)
    cell.log.write_text(" 90%|  | of an earlier attempt\n$ python -m camal_rl.ppo --env Basic\n")
    assert running.progress() == {cell.title: None}
    for text, module, steps in (
        ("  0%|   | 0/2k steps\r 50%|█  | 1k/2k steps", "ppo", 10_300),
        ("\n$ python -m camal_rl.evaluate runs\n", "evaluate", 20_600),
        ("episodes:   0%|  \repisodes:  50%|█ ", "evaluate", 20_825),
        ("\repisodes: 100%|██\nshift hud: 100%|██\n", "evaluate", 21_500),
        ("\rfaithfulness:  17%|█ ", "evaluate", 24_900),
        ("\rfaithfulness: 100%|██\nvideo frames: 40", "evaluate", everything),
    ):
        with cell.log.open("a") as file:
            file.write(text)
        running.running[cell.folder] = (cell, module, 30)
        assert running.progress() == {cell.title: pytest.approx(steps / everything)}
    running.running[cell.folder] = (cell._replace(train=()), "evaluate", cell.log.stat().st_size)
    assert running.progress() == {cell.title: 0}  # what is only shown again begins anew


def test_time_left_counts_what_was_seen_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    cell = cells_in(tmp_path)[0]
    with runner.Display(total=10, done=4) as display:  # 4 by an earlier process
        display.show({"a": None, "b": None})
        assert "| ? left, 4/10 runs, a 0%, b 0%" in str(display.bar)
        clock[0] += 5
        display.show({"a": 0.6, "b": 0.0})  # a went on from a checkpoint
        assert "| ? left, 4/10 runs, a 60%, b 0%" in str(display.bar)
        clock[0] += 55.001
        display.show({"a": 0.9, "b": 0.3})
        # 0.3 + 0.3 of a cell in 60 s; 6 - 0.9 - 0.3 are left: 60 * 4.8 / 0.6 s.
        assert "| 08:00 left" in str(display.bar)
        display.ended(Outcome(cell._replace(folder=Path("x/y/a/b/c")), "failed", 1, "why"))
        display.show({"a": 0.9, "b": 0.3})
        assert "| 06:20 left, 4/10 runs" in str(display.bar)  # 60 * 3.8 / 0.6
    write_scores(cell)
    with runner.Display(total=2, done=0) as display:
        display.show({cell.title: 0.5})
        clock[0] += 10.001
        display.ended(Outcome(cell, "done", 1, ""))
        display.show({})
        assert "| 00:20 left, 1/2 runs" in str(display.bar)  # 10 * 1 / 0.5
    with runner.Display(total=2, done=0) as display:
        display.show({cell.title: 0.5})
        clock[0] += 10.001
        display.show({cell.title: 0.7})
        display.ended(Outcome(cell, "stopped", 1, ""))
        display.show({})
        assert "| ? left, 0/2 runs" in str(display.bar)  # not the negative time until 0.5 is reached again


def test_jobs_are_bounded_by_cores_and_memory_the_gpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 6)
    for memory, jobs in ((None, 6), (64 * 2**30, 6), (4 * 2**30, 2), (1, 1)):
        monkeypatch.setattr(machine, "available_memory", lambda memory=memory: memory)
        assert runner.bearable_jobs(None) == jobs
    monkeypatch.setattr(machine, "available_memory", lambda: 64 * 2**30)
    assert runner.bearable_jobs(8 * 2**30) == 5


def test_a_line_on_how_a_cell_ended(tmp_path: Path) -> None:
    cell = cells_in(tmp_path)[0]
    write_scores(cell, iou=None)
    ended = Outcome(cell, "done", 62.4, "")
    assert runner.describe(ended) == "done    Basic/camal/seed1 in 1:02: return 1.50, IoU none"
    assert runner.describe(ended._replace(status="stopped")) == "stopped Basic/camal/seed1"
    again = cell._replace(train=(), evaluate=("--compare", "runs/Basic/vanilla/seed1"))
    shown = "shown   Basic/camal/seed1 beside Basic/vanilla/seed1 in 1:02"
    assert runner.describe(ended._replace(cell=again)) == shown
