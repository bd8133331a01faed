"""The matrix: what is planned, done and shown; and, on the engine, from command to scores."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run
from test_runner import Fake, write_scores

from camal_rl import evaluate, experiment
from camal_rl.errors import UserError
from camal_rl.experiment import Matrix
from camal_rl.game import shift

TRAIN = ("--total-timesteps", "2048", "--reward", "scale")


def matrix_of(folder: Path, **changes: object) -> Matrix:
    usual = {
        "envs": ("Basic", "TakeCover"),
        "methods": ("camal", "vanilla"),
        "seeds": (1, 2),
        "runs_dir": folder / "runs",
        "train": TRAIN,
        "evaluate": ("--episodes", "3"),
    }
    return Matrix(**usual | changes)


def matrix_file(folder: Path, text: str) -> list[str]:
    """The options of a command line that name a matrix file with this content."""
    (folder / "matrix.toml").write_text(text)
    return ["--matrix", str(folder / "matrix.toml")]


@pytest.mark.slow
def test_the_papers_environments_and_seeds_are_the_default() -> None:
    args, train = experiment.parse_args([])
    matrix = experiment.read_matrix(args, train)
    assert matrix.envs == ("Basic", "DefendLine", "DefendCenter", "TakeCover")
    assert matrix.methods == ("balanced", "vanilla")
    assert matrix.seeds == (1, 2, 3, 4, 5)
    assert len(experiment.cells(matrix)) == 40


def test_options_after_the_dashes_go_to_every_training(tmp_path: Path) -> None:
    own = ["--envs", "Basic", "--seeds", "2", "--runs-dir", str(tmp_path), "--faithfulness-frames", "0"]
    words = [*own, "--", *TRAIN, "--clip-vloss"]
    planned = experiment.cells(experiment.read_matrix(*experiment.parse_args(words)))
    assert [cell.title for cell in planned] == [
        f"Basic/{method}/seed{seed}" for seed in (1, 2) for method in ("balanced", "vanilla")
    ]
    for cell in planned:
        assert cell.steps == 2048
        assert cell.trained["args"]["clip_vloss"] is True
        assert cell.trained["args"]["reward"] == "scale"
        assert cell.trained["definition"]["name"] == "Basic"
        assert cell.settings["episodes"] == 100
        assert cell.settings["faithfulness_frames"] == 0
        assert cell.folder.is_relative_to(tmp_path)


def test_what_is_evaluated_is_known_before_anything_runs(tmp_path: Path) -> None:
    evaluation = ("--episodes", "9", "--shift")
    (cell,) = experiment.cells(
        matrix_of(
            tmp_path,
            envs=("Basic",),
            methods=("camal",),
            seeds=(1,),
            train=("--attention", "layercam"),
            evaluate=evaluation,
        )
    )
    assert cell.settings["episodes"] == 9
    assert cell.settings["shift"] == list(shift.SHIFTS)  # without a name, all of them
    assert cell.settings["attention"] == "layercam"  # unless told otherwise, the one of training


def test_a_matrix_may_be_a_file(tmp_path: Path) -> None:
    words = matrix_file(
        tmp_path,
        'envs = ["Basic"]\nmethods = ["suppress", "camal"]\nseeds = [3, 7]\nruns_dir = "elsewhere"\n'
        '[train]\ntotal_timesteps = 4096\nclip_vloss = false\nframe_size = [84, 84]\nreward = "scale"\n'
        "[evaluate]\nepisodes = 9\ngreedy = true\n",
    )
    matrix = experiment.read_matrix(*experiment.parse_args(words))
    assert matrix == Matrix(
        envs=("Basic",),
        methods=("suppress", "camal"),
        seeds=(3, 7),
        runs_dir=Path("elsewhere"),
        train=(
            "--total-timesteps",
            "4096",
            "--no-clip-vloss",
            "--frame-size",
            "84",
            "84",
            "--reward",
            "scale",
        ),
        evaluate=("--episodes", "9", "--greedy"),
    )
    assert [cell.steps for cell in experiment.cells(matrix)] == [4096] * 4
    words = matrix_file(tmp_path, "seeds = 3")
    assert experiment.read_matrix(*experiment.parse_args(words)) == Matrix(seeds=(1, 2, 3))


def test_a_variant_is_a_row_of_its_own_with_its_options(tmp_path: Path) -> None:
    own = ["--envs", "Basic", "--methods", "camal", "--seeds", "1", "--runs-dir", str(tmp_path)]
    variants = ["--variants", "weak=--camal-coef 0.1", "other-map=--method suppress --attention layercam"]
    words = [*own, *variants, "--", *TRAIN, "--camal-coef", "3"]
    matrix = experiment.read_matrix(*experiment.parse_args(words))
    cells = experiment.cells(matrix)
    assert [cell.title for cell in cells] == [
        "Basic/camal/seed1",
        "Basic/weak/seed1",
        "Basic/other-map/seed1",
    ]
    names = ("name", "method", "camal_coef", "attention")
    assert [tuple(cell.trained["args"][name] for name in names) for cell in cells] == [
        ("camal", "camal", 3.0, "magnitude"),
        ("weak", "balanced", 0.1, "magnitude"),
        ("other-map", "suppress", 3.0, "layercam"),
    ]
    file = matrix_file(
        tmp_path,
        f'envs = ["Basic"]\nmethods = ["camal"]\nseeds = 1\nruns_dir = "{tmp_path}"\n'
        f"train = {[*TRAIN, '--camal-coef', '3']}\n[variants.weak]\ncamal_coef = 0.1\n"
        '[variants.other-map]\nmethod = "suppress"\nattention = "layercam"\n',
    )
    from_file = experiment.cells(experiment.read_matrix(*experiment.parse_args(file)))
    assert [cell.trained for cell in from_file] == [cell.trained for cell in cells]


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        (["weak"], "--variants weak: give each a name of its own, NAME=OPTIONS"),
        (["a=--gamma 1", "a="], "--variants a=: give each a name of its own"),
        (["a=--env 'Basic"], "--variants a=--env 'Basic: no closing quotation"),
        (["a=--seed 1"], "--seed can't be one of the options of a variant: the matrix sets it"),
        (["camal=--gamma 1"], "--variants: camal is a method: give the variant another name"),
        (["../a=--gamma 1"], "--name ../a: String should match pattern"),
        (["a=--gamma 2"], "--gamma 2.0: should be less than or equal to 1"),
    ],
)
def test_a_mistake_in_a_variant_is_named(
    tmp_path: Path, variants: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((UserError, SystemExit)) as refusal:
        experiment.cells(
            experiment.read_matrix(
                *experiment.parse_args(["--runs-dir", str(tmp_path / "runs"), "--variants", *variants])
            )
        )
    assert words in f"{refusal.value} {capsys.readouterr().err}"
    assert not (tmp_path / "runs").exists()


def test_the_home_folder_may_be_written_as_a_tilde_in_a_matrix_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/me")
    words = matrix_file(tmp_path, 'envs = ["~/mine.toml"]\nruns_dir = "~/runs"')
    matrix = experiment.read_matrix(*experiment.parse_args(words))
    assert (matrix.envs, matrix.runs_dir) == (("/me/mine.toml",), Path("/me/runs"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("envs = ", "not valid TOML"),
        ("environments = []", "line 2: environments: unknown key. Valid keys are envs, methods, variants"),
        ('envs = "Basic"', "line 2: envs: give a list, not 'Basic'"),
        ("envs = [1]", "line 2: envs: input should be a valid string, not 1"),
        (
            'methods = ["camel"]',
            "line 2: methods: input should be 'camal', 'balanced', 'vanilla' or 'suppress'",
        ),
        ("seeds = true", "line 2: seeds: give a list, not True"),
        ('seeds = ["1"]', "line 2: seeds: input should be a valid integer, not '1'"),
        ("envs = []", "line 2: envs: name at least one"),
        ("seeds = 0", "line 2: seeds: name at least one"),
        ("seeds = [1, 1]", "line 2: seeds: 1 1 names one twice"),
        ("train = 3", "line 2: train: give a list, not 3"),
        ('envs = ["Basik"]', "did you mean Basic"),
        ("[train]\nseed = 3", "--seed can't be one of the options of train:"),
        ('[evaluate]\noutput = "x"', "--output can't be one of the options of evaluate:"),
        (f'envs = ["Basic", "{ROOT}/envs/Basic.toml"]', "both called Basic, and so would share the folder"),
    ],
)
def test_a_mistake_in_the_matrix_is_named(tmp_path: Path, text: str, words: str) -> None:
    options = matrix_file(tmp_path, f'runs_dir = "{tmp_path}/runs"\n{text}')
    with pytest.raises(UserError, match=re.escape(words)):
        experiment.cells(experiment.read_matrix(*experiment.parse_args(options)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes", [{"train": ("--num-envs", "0")}, {"evaluate": ("--episodes", "0")}])
def test_options_that_training_or_evaluation_refuses_are_refused_at_once(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises((UserError, SystemExit)):
        experiment.cells(matrix_of(tmp_path, **changes))


def test_a_file_and_options_cannot_both_say_what_is_done(tmp_path: Path) -> None:
    for words, named in ((["--seeds", "2"], "seeds"), (["--", "--reward", "raw"], "what follows --")):
        with pytest.raises(UserError, match=f"says what is done: leave out {named}"):
            experiment.read_matrix(*experiment.parse_args(["--matrix", str(tmp_path / "m.toml"), *words]))
    with pytest.raises(UserError, match=r"can't read .*m\.toml: No such file"):
        experiment.read_matrix(*experiment.parse_args(["--matrix", str(tmp_path / "m.toml")]))


def test_runs_that_go_on_for_more_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), methods=("camal",))
    cell = experiment.cells(matrix)[0]
    cell.folder.mkdir(parents=True)
    shorter = cell.trained | {"args": cell.trained["args"] | {"total_timesteps": 1024}}
    written = {"precision": "fp32", "device_type": "cpu"}
    (cell.folder / "args.json").write_text(json.dumps(shorter | {"args": shorter["args"] | written}))
    fixed = matrix.model_copy(update={"train": (*TRAIN, "--precision", "fp32", "--device", "cpu")})
    assert [planned.steps for planned in experiment.cells(fixed)] == [2048, 2048]
    assert capsys.readouterr().out.splitlines() == [
        f"{cell.folder} goes on for more steps than before; its log says what that means."
    ]


def test_a_run_that_is_done_counts_also_where_another_machine_trained_it(tmp_path: Path) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), methods=("camal",), seeds=(1,))
    (cell,) = experiment.cells(matrix)
    elsewhere = cell.trained["args"] | {"precision": "bf16", "device_type": "elsewhere"}
    trained = cell.trained | {"version": "0", "args": elsewhere}
    cell.folder.mkdir(parents=True)
    (cell.folder / "args.json").write_text(json.dumps(trained))
    with pytest.raises(UserError, match=r"device_type was elsewhere"):  # it could not go on alike
        experiment.cells(matrix)
    write_scores(cell, training=trained)
    assert experiment.cells(matrix) == [cell]


def test_a_folder_of_another_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    matrix = matrix_of(tmp_path)
    (cell, *_) = experiment.cells(matrix)
    cell.folder.mkdir(parents=True)
    (cell.folder / "args.json").write_text(
        json.dumps({"version": "0", "args": cell.trained["args"] | {"gamma": 0.5}, "definition": {}})
    )
    with pytest.raises(UserError, match=r"holds a run with other arguments.*gamma was 0\.5, now 0\.99"):
        experiment.cells(matrix)


@pytest.mark.parametrize("words", [("--video-episodes", "3"), ("--video_episodes=3",)])
def test_the_number_of_videos_of_a_comparison_may_be_chosen(tmp_path: Path, words: tuple[str, ...]) -> None:
    matrix = matrix_of(tmp_path, evaluate=words, seeds=(1,))
    for shown in experiment.comparisons(matrix, experiment.cells(matrix), "vanilla"):
        args = evaluate.parse_args([str(shown.cell.folder), *shown.cell.evaluate])
        assert args.video_episodes == 3


@pytest.mark.slow
def test_two_other_methods_are_shown_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), methods=("camal", "vanilla", "suppress"), seeds=(1,))
    Fake(monkeypatch, experiment.cells(matrix))  # which refuses two processes in one folder
    assert experiment.run(matrix, jobs=3, retries=0) == 0
    shown = sorted(path.name for path in (matrix.runs_dir / "Basic/camal/seed1/media").iterdir())
    assert shown == ["evaluation-versus-suppress-seed-1.png", "evaluation-versus-vanilla-seed-1.png"]


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
    assert fake.calls == [("evaluate", "Basic/camal/seed1")]
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
    assert experiment.run(matrix, jobs=2) == 0
    for cell in planned:
        assert fake.calls.index(("ppo", cell.title)) < fake.calls.index(("evaluate", cell.title))
    again = [title for _, title in fake.calls[2 * len(planned) :]]
    assert sorted(again) == ["Basic/camal/seed1", "TakeCover/camal/seed1"]
    record = json.loads((tmp_path / "runs/experiment.json").read_text())
    assert record["envs"] == ["Basic", "TakeCover"]
    assert record["train"] == list(TRAIN)
    assert "runs_dir" not in record
    output, shown = capsys.readouterr()
    assert "8 of 8 runs are done. Report: python -m camal_rl.report" in output
    assert shown.count("done    Basic/camal/seed1 in 0:00: return 1.50, IoU 0.250") == 1
    assert shown.count("shown   Basic/camal/seed1 beside Basic/vanilla/seed1 in 0:00") == 1

    fake.calls.clear()
    assert experiment.run(matrix, jobs=2) == 0  # nothing is done twice
    assert fake.calls == []
    assert "other code" not in capsys.readouterr().out
    args = {"version": "0", "args": {}, "definition": {}, "code": {"code": ["another"]}}
    (planned[2].folder / "args.json").write_text(json.dumps(args))
    monkeypatch.setattr(experiment, "cells", lambda _: planned)
    assert experiment.run(matrix, jobs=2) == 0
    assert f"by other code of the package than this: {planned[2].title}. To" in capsys.readouterr().out
    (planned[3].folder / "scores.json").unlink()
    assert experiment.run(matrix, jobs=2) == 0  # only what is missing
    beside = ("evaluate", "TakeCover/camal/seed1")
    assert fake.calls == [("ppo", planned[3].title), ("evaluate", planned[3].title), beside]


@pytest.mark.slow
def test_a_cell_that_fails_is_named_in_the_end_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), seeds=(1,))
    fake = Fake(monkeypatch, experiment.cells(matrix))
    fake.codes = {("evaluate", "Basic/vanilla/seed1"): [1]}
    assert experiment.run(matrix, jobs=1, retries=0) == 1
    output, shown = capsys.readouterr()
    assert "1 of 2 runs are done" in output
    assert shown.splitlines()[-1].startswith("failed  Basic/vanilla/seed1 after 0:00: the last words (")


@pytest.mark.slow
def test_an_interrupted_matrix_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(tmp_path, envs=("Basic",), seeds=(1,))
    fake = Fake(monkeypatch, experiment.cells(matrix))
    experiment.run(matrix, jobs=1, interrupted=lambda: len(fake.calls) == 2)
    assert fake.calls == [("ppo", "Basic/camal/seed1"), ("evaluate", "Basic/camal/seed1")]
    assert "runs are done" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "-1"], "--jobs"),
        (["--gpus", "1"], "give --ray too"),
        (["--envs", "Basic", "Basic"], "--envs: Basic Basic names one twice"),
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
total_timesteps = 1280
num_envs = 2
num_steps = 32
update_epochs = 1
measure_every = 0
frame_size = [52, 60]
render_resolution = "160x120"
[evaluate]
episodes = 2
max_steps = 10
video_episodes = 1
faithfulness_frames = 0
"""


def started_matrix(folder: Path, matrix: str = SMALL_MATRIX) -> "subprocess.Popen[str]":
    """The small matrix's process, when its first training has begun to log."""
    (folder / "small.toml").write_text(matrix)
    process = subprocess.Popen(
        [sys.executable, "-m", "camal_rl.experiment", "--matrix", "small.toml", "--jobs", "1"],
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
def test_a_small_matrix_on_the_engine_stopped_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = started_matrix(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Stopping after this iteration of every run" in errors
    assert "Stopped. The same command goes on from the last checkpoint." in errors
    assert not list(tmp_path.rglob("scores.json"))
    assert list(tmp_path.rglob("checkpoint.pt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert experiment.run(experiment.read_matrix(*experiment.parse_args(["--matrix", "small.toml"]))) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().out
    for method in ("balanced", "vanilla"):
        scores = json.loads((tmp_path / f"runs/Basic/{method}/seed1/scores.json").read_text())
        assert scores["steps"] == 1280
        assert len(scores["episodes"]) == 2
    log = (tmp_path / "runs/Basic/balanced/seed1/experiment.log").read_text()
    trainings = log.count("$ python -m camal_rl.ppo --env Basic")
    assert trainings == 2  # stopped, done
    assert (tmp_path / "runs/Basic/balanced/seed1/media/evaluation-versus-vanilla-seed-1.mp4").exists()


@pytest.mark.engine
def test_ctrl_c_twice_ends_the_matrix_at_once(tmp_path: Path) -> None:
    # Its iteration takes many seconds, so that it can't be saved between the two.
    matrix = SMALL_MATRIX.replace("1280", "100_000").replace("num_steps = 32", "num_steps = 8192")
    process = started_matrix(tmp_path, matrix)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Stopped. The same command goes on from the last checkpoint." in errors
    assert not list(tmp_path.rglob("checkpoint.pt"))
