"""A run's folder: what defines it, what it refuses, and that nothing is ever half-written."""

import contextlib
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same, small_args
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import ppo
from camal_rl.errors import UserError
from camal_rl.game.definition import load_definition
from camal_rl.run import folder as run_folder
from camal_rl.run.runner import learned


def described(**options: object) -> dict:
    definition = load_definition("Basic").described()
    return run_folder.describe(ppo.Args(**options), definition=definition)


def test_a_description_is_plain_json_with_the_environment_in_it():
    content = described()
    assert json.loads(json.dumps(content)) == content
    assert content["args"]["env"] == "Basic"
    assert content["args"]["frame_size"] == [84, 84]
    assert content["definition"]["target_names"] == ["Cacodemon"]
    assert content["definition"]["scenario"] == "basic.cfg"


def test_options_that_change_nothing_learned_do_not_define_a_run():
    assert described(runs_dir=Path("elsewhere"), device="cuda", torch_threads=7) == described()
    assert described(seed=2) != described()
    assert run_folder.describe(ppo.Args(), {"seed": 3})["args"]["seed"] == 3


def test_the_same_arguments_are_accepted_and_others_named(tmp_path):
    run_folder.check_args_file(tmp_path, described())  # an empty folder takes any
    run_folder.write_args_file(tmp_path / "run", described())
    run_folder.check_args_file(tmp_path / "run", described())
    with pytest.raises(UserError) as error:
        run_folder.check_args_file(tmp_path / "run", described(ent_coef=0.5, frame_size=(90, 90)))
    assert "ent_coef was 0.01, now 0.5; frame_size was [84, 84], now [90, 90]" in str(error.value)


def test_a_name_of_its_own_gives_a_run_a_folder_of_its_own(fake_engine, tmp_path):
    weak = ppo.train(small_args(tmp_path, total_timesteps=64, name="weak", camal_coef=0.1))
    camal = ppo.train(small_args(tmp_path, total_timesteps=64))
    assert (weak, camal) == (tmp_path / "Basic/weak/seed1", tmp_path / "Basic/camal/seed1")
    for folder, name in ((weak, "weak"), (camal, "camal")):
        assert run_folder.read_args_file(folder)["args"]["name"] == name


@pytest.mark.parametrize("name", ["../weak", ".hidden", "a/b", "-", "two words", 101 * "a"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(UserError, match=f"--name {re.escape(name)}: String should match pattern"):
        ppo.Args(name=name)


def test_another_methods_name_is_refused():
    with pytest.raises(UserError, match="--name vanilla is the name of another method: choose another one"):
        ppo.Args(name="vanilla", method="camal")
    assert ppo.Args(name="vanilla", method="vanilla").name == "vanilla"


def test_args_json_tells_which_code_has_trained_a_run(fake_engine, tmp_path, monkeypatch, capsys):
    once = itertools.chain([True], itertools.repeat(False)).__next__
    folder = ppo.train(small_args(tmp_path), interrupted=once)
    mine = run_folder.code_hash()
    assert run_folder.read_args_file(folder)["code"] == {"code": [mine]}
    assert "code" not in capsys.readouterr().err
    monkeypatch.setattr(run_folder, "code_hash", lambda: "changed")
    ppo.train(small_args(tmp_path))
    assert f"the package's code has changed since {folder} was last trained" in capsys.readouterr().err
    assert run_folder.read_args_file(folder)["code"] == {"code": [mine, "changed"]}
    monkeypatch.undo()
    ppo.train(small_args(tmp_path))
    assert "It was trained by other code of the package than this." in capsys.readouterr().out


def test_a_change_of_code_is_told_once(fake_engine, tmp_path, monkeypatch, capsys):
    ppo.train(small_args(tmp_path), interrupted=itertools.chain([True]).__next__)
    monkeypatch.setattr(run_folder, "code_hash", lambda: "changed")
    capsys.readouterr()
    for told in (1, 0):
        folder = ppo.train(small_args(tmp_path), interrupted=itertools.chain([True]).__next__)
        assert capsys.readouterr().err.count("code has changed") == told
    assert run_folder.read_args_file(folder)["code"]["code"][1:] == ["changed"]


def test_a_run_says_its_name_when_it_begins(fake_engine, tmp_path, capsys):
    ppo.train(small_args(tmp_path, total_timesteps=64, name="weak"))
    assert ": Basic, weak, seed 1, 1 iterations of 64 steps" in capsys.readouterr().out


def test_a_run_that_is_done_by_this_code_does_not_speak_of_other_code(trained_folder, capsys):
    ppo.train(small_args(trained_folder.parents[2]))
    assert "already done" in (said := capsys.readouterr().out)
    assert "code" not in said


def test_the_hash_of_the_code_knows_changes_that_are_in_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "camal_rl"
    shutil.copytree(Path(run_folder.__file__).parents[1], package)
    monkeypatch.setattr(run_folder, "__file__", str(package / "run/folder.py"))
    compute = run_folder.code_hash.__wrapped__
    assert compute() == run_folder.code_hash()
    with (package / "ppo.py").open("a") as file:
        file.write("# a thought\n")
    assert compute() != run_folder.code_hash()


def test_a_run_goes_on_where_only_the_scale_of_returns_is_another(tmp_path):
    before = described()
    before["definition"] |= {"random_return": -152.0, "random_source": "of old"}
    run_folder.write_args_file(tmp_path, before)
    run_folder.check_args_file(tmp_path, described())
    before["definition"]["reward_scale"] = 0.5
    run_folder.write_args_file(tmp_path, before)
    with pytest.raises(UserError, match=r"reward_scale was 0\.5, now 0\.01"):
        run_folder.check_args_file(tmp_path, described())


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"args": 3}', '"text"', "\x00", '{"run": {}, "ppo": {}}']
)
def test_an_args_file_that_is_none_or_of_an_older_version_is_refused(tmp_path, content):
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(UserError, match=r"args\.json is not a run of this camal_rl|can't read .*args\.json"):
        run_folder.check_args_file(tmp_path, described())


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert run_folder.load_checkpoint(path) is None
    run_folder.save_checkpoint(path, {"agent": {"w": torch.arange(3.0)}, "envs": [{"actions": [1, 2]}]})
    checkpoint = run_folder.load_checkpoint(path)
    assert checkpoint["agent"]["w"].tolist() == [0, 1, 2]
    assert checkpoint["envs"] == [{"actions": [1, 2]}]
    assert checkpoint["version"] == run_folder.CHECKPOINT_VERSION


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path):
    path = tmp_path / "checkpoint.pt"
    run_folder.save_checkpoint(path, {"agent": {"w": torch.arange(300.0)}})
    whole = path.read_bytes()
    for damaged in (b"", whole[:10], whole[: len(whole) // 2], b"PK" + b"\0" * 100, whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged or no checkpoint"):
            run_folder.load_checkpoint(path)


def test_a_checkpoint_in_which_one_bit_is_another_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    run_folder.save_checkpoint(path, {"agent": {"w": torch.arange(300.0)}})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(300.0).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["agent"]["w"][1] != 1  # torch alone does not notice
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        run_folder.load_checkpoint(path)


def test_what_a_killed_trainer_left_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "media").mkdir()
    names = ["checkpoint.pt", "args.json", "media/attention.png"]
    remains = [".checkpoint.pt.123", ".args.json.9", "media/.attention.png.77"]
    others = ["checkpoint.pt", ".train.lock", ".scores.json.123", "media/evaluation.png"]
    for name in (*remains, *others):
        (tmp_path / name).write_bytes(b"")
    run_folder.remove_remains(tmp_path, names)
    assert all((tmp_path / name).exists() for name in others)
    assert not any((tmp_path / name).exists() for name in remains)
    run_folder.remove_remains(tmp_path, ["scores.json"])
    assert not (tmp_path / ".scores.json.123").exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    torch.save({"version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="version 99"):
        run_folder.load_checkpoint(tmp_path / "checkpoint.pt")


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save",
    [lambda harm, file: torch.save(harm, file), lambda harm, file: file.write_bytes(pickle.dumps(harm))],
)
def test_nothing_in_a_checkpoint_can_run_code(tmp_path, save):
    save(
        {"version": run_folder.CHECKPOINT_VERSION, "agent": Harm(tmp_path / "harmed")},
        tmp_path / "checkpoint.pt",
    )
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        run_folder.load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "harmed").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't make .* Choose another --runs-dir"):
        run_folder.write_args_file(tmp_path / "file" / "run", described())


HOLD = """
import filelock, sys, time
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended_however(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".train.lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=r"another process does the same \(train\) in .*run: wait for it"),
        run_folder.lock(folder, "train"),
    ):
        pass
    with run_folder.lock(folder, "evaluate"):  # something else may be done meanwhile
        pass
    holder.kill()
    holder.communicate()
    with run_folder.lock(folder, "train"):
        pass


def test_a_lock_waits_for_one_who_is_just_saving(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        held.enter_context(run_folder.lock(tmp_path, "train"))
        threading.Timer(0.3, held.pop_all().close).start()
        with run_folder.lock(tmp_path, "train"):
            pass


def test_a_folder_that_cannot_be_locked_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"can't make .*file/run: Not a directory"),
        run_folder.lock(tmp_path / "file" / "run", "train"),
    ):
        pass


def test_of_many_at_once_one_has_the_lock(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(4):
            with run_folder.lock(tmp_path / "run", "train"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0001)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 12)


def rows_of(folder: Path) -> list[str]:
    return (folder / "curves.csv").read_text().splitlines()


@pytest.mark.slow
def test_curves_hold_what_tensorboard_holds_and_are_cut_where_a_run_goes_on(
    fake_engine, trained_template, tmp_path
):
    straight = trained_template
    events = EventAccumulator(str(straight), size_guidance={"scalars": 0}).Reload()
    logged = [(tag, event.step) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    rows = [row.split(",") for row in rows_of(straight)]
    assert rows[0] == ["tag", "step", "value"]
    assert sorted((tag, int(step)) for tag, step, _ in rows[1:]) == sorted(logged)

    stop = iter([False, True])
    folder = ppo.train(small_args(tmp_path / "stopped"), lambda: next(stop))
    with (folder / "curves.csv").open("a") as file:
        file.write("losses/entropy,192,0.5\nlosses/ent")  # of a trainer that was killed after its checkpoint
    ppo.train(small_args(tmp_path / "stopped"))
    speed = "charts/SPS"
    assert [row for row in rows_of(folder) if speed not in row] == [
        row for row in rows_of(straight) if speed not in row
    ]


def rates_of(folder: Path) -> list[float]:
    rows = [row.split(",") for row in rows_of(folder)]
    return [float(value) for tag, _, value in rows if tag == "charts/learning_rate"]


@pytest.mark.slow
def test_a_finished_run_is_trained_further_and_what_that_means_is_said(fake_engine, tmp_path, capsys):
    folder = ppo.train(small_args(tmp_path, total_timesteps=128))
    printed = capsys.readouterr().out
    assert "random play has a mean return of -166.5, the reference is 81.5" in printed
    assert printed.endswith(f"Evaluate it: python -m camal_rl.evaluate {folder}\n")
    with pytest.raises(UserError, match=r"ent_coef was 0\.01, now 0\.5"):
        ppo.train(small_args(tmp_path, total_timesteps=256, ent_coef=0.5))
    ppo.train(small_args(tmp_path, total_timesteps=256))
    printed = capsys.readouterr().out
    assert "Going on from step 128" in printed
    assert "learning rate rises from 0 to 0.000125" in printed
    assert rates_of(folder) == pytest.approx([2.5e-4, 1.25e-4, 1.25e-4, 0.625e-4])
    described = run_folder.read_args_file(folder)
    assert described["args"]["total_timesteps"] == 256
    assert described["trained_on"] == {"trained_on_from": 128}
    assert learned(described)["args"].keys() == described["args"].keys() - {"precision", "device_type"}
    with pytest.raises(UserError, match="total_timesteps was 256, now 128"):
        ppo.train(small_args(tmp_path, total_timesteps=128))
    ppo.train(small_args(tmp_path, total_timesteps=256))
    assert "already done: 256 steps. More takes a larger --total-timesteps." in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_whose_learning_rate_stays_goes_on_as_if_it_had_been_longer_from_the_start(
    fake_engine, tmp_path, capsys
):
    options = {"anneal_lr": False, "measure_every": 0}
    ppo.train(small_args(tmp_path / "a", total_timesteps=128, **options))
    folders = [ppo.train(small_args(tmp_path / name, **options)) for name in "ab"]
    assert "rises" not in capsys.readouterr().out
    assert_same(*(run_folder.load_checkpoint(folder / "checkpoint.pt") for folder in folders))
    assert (folders[0] / "args.json").read_text() == (folders[1] / "args.json").read_text()


def test_how_long_it_takes_is_said_when_that_is_known(tmp_path, capsys, monkeypatch):
    run = run_folder.RunFolder(ppo.Args(runs_dir=tmp_path), load_definition("Basic"), {})
    monkeypatch.setattr(run, "speed", lambda: 640.0)
    for iteration in run.iterations():
        if iteration == 4:
            break
    (line,) = capsys.readouterr().out.splitlines()
    words = "The other 9,996,288 steps take about 4.3 hours at 640 a second."
    assert line == f"{words} Ctrl-C saves; the same command goes on."


# ------------------------------------------------------------------------------------------------------------
# Weights & Biases


def records_of(file: Path) -> Iterator[Any]:
    """The records of a file that a run without a network leaves behind: blocks of LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # too little is left of a block for another record
            place += 2**15 - place % 2**15
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_a_tracked_run_mirrors_tensorboard_and_goes_on_as_the_same_run(fake_engine, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    args = small_args(tmp_path, track="attention")
    ppo.train(args, interrupted=itertools.chain([False, True]).__next__)
    folder = ppo.train(args)
    wandb.teardown()  # the process that writes ends, and has written all
    found = []
    assert len(list(tmp_path.glob("wandb/offline-run-*/**/*tfevents*"))) <= 2, (
        "its own mirror is not mirrored"
    )
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        records = list(records_of(file))
        (run,) = {
            (one.run.project, one.run.display_name, one.run.run_id) for one in records if one.run.run_id
        }
        rows = [{"/".join(item.nested_key): item.value_json for item in one.history.item} for one in records]
        found.append((run, {int(row["global_step"]): row for row in rows if "camal/iou" in row}))
    (before, first), (after, second) = found
    assert before == after
    assert before[:2] == ("attention", "Basic/camal/seed1")
    assert sorted(first | second) == [64, 128, 192, 256]
    curves = (folder / "curves.csv").read_text()
    for step, row in (first | second).items():
        (written,) = re.findall(rf"^camal/iou,{step},(.+)$", curves, re.MULTILINE)
        assert float(row["camal/iou"]) == pytest.approx(float(written))


def test_tracking_without_its_package_is_one_line(fake_engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--track needs Weights & Biases: pip install wandb\.$"):
        ppo.train(small_args(tmp_path, track="attention"))
    assert not list(tmp_path.iterdir())
