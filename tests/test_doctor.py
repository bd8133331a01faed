"""The doctor's lines on machines that lack one thing or another."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, FakeGame, orphaned_segments, run, wait_until
from torch.utils import collect_env

from camal_rl import doctor, doom
from camal_rl.errors import UserError
from camal_rl.game import definition, engine
from camal_rl.game.definition import available
from camal_rl.run import device, machine

GIB = 2**30
RUN = subprocess.run


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Makes a check in this process, and gives its exit code and what it prints."""

    def answered(check: Callable[[], str], advice: str = "Mend it.") -> tuple[int, str]:
        monkeypatch.setitem(doctor.CHECKS, "some", (check, advice))
        standard_output = os.dup(1)
        try:
            code = doctor.answer("some")
        finally:
            os.dup2(standard_output, 1)
            os.close(standard_output)
        return code, capfd.readouterr().out

    return answered


def examined(
    monkeypatch: pytest.MonkeyPatch, program: str, patience: float = doctor.PATIENCE
) -> tuple[bool, str]:
    """The result of a check whose process runs this program instead."""

    def instead(command: list[str], **options: Any) -> object:
        return RUN([sys.executable, "-I", "-S", "-c", program], **options)

    monkeypatch.setattr(doctor, "PATIENCE", patience)
    monkeypatch.setattr(subprocess, "run", instead)
    return doctor.examine("video")


# ------------------------------------------------------------------------------------------------------------
# Checks


def test_what_is_missing_or_of_another_version_is_named_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"torch": "2.1.0", "vizdoom": "1.3.2", "arch": "7.2.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    needed = ["torch>=2.4", "vizdoom>=1.3", "scipy>=1.15", "arch<8"]
    elsewhere = ["x>=1; extra == 'test'", "tomli>=2; python_version < '3'"]
    monkeypatch.setattr(metadata, "requires", lambda name: [*needed, *elsewhere])
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError) as raised:
        doctor.check_versions()
    assert str(raised.value) == (
        "torch 2.1.0 is not >=2.4, scipy is missing: pip install 'torch>=2.4' 'scipy>=1.15'"
    )
    versions |= {"torch": "2.13.0+cpu", "scipy": "1.15rc1"}
    with pytest.raises(UserError, match=r"^scipy 1\.15rc1 is not >=1\.15"):
        doctor.check_versions()
    versions["scipy"] = "1.16"
    assert doctor.check_versions().endswith(", torch 2.13.0+cpu, vizdoom 1.3.2, scipy 1.16, arch 7.2.0")


def test_a_checkout_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nowhere)
    assert re.match(r"camal_rl [\d.]+, Python 3\..*; not installed, ", doctor.check_versions())


def test_memory_and_shared_memory_have_to_bear_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(engine, "check_shared_memory", lambda engines: None)
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * GIB)
    assert doctor.check_memory() == (
        "4 cores, 8.0 GiB of memory available, shared memory for 8 games; "
        "camal_rl.experiment does 4 runs at once"
    )
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert "unknown of memory available" in doctor.check_memory()
    monkeypatch.setattr(machine, "available_memory", lambda: GIB)
    with pytest.raises(UserError, match=r"^1\.0 GiB of memory available, and a run may need 1\.5 GiB"):
        doctor.check_memory()


def test_shared_memory_that_is_too_small_is_told_as_a_training_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * GIB)
    small = os.statvfs_result((1, 1, 2**23, 2**22, 2**22, 0, 0, 0, 0, 255))  # 4 MiB free
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(UserError, match=r"4\.0 MiB free, and 8 game engines need 8 MiB.*--shm-size=1g"):
        doctor.check_memory()


def test_an_environment_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_environments() == f"all {len(available())} can be loaded"

    def load(name: str) -> None:
        raise UserError(f"{name}: can't read its WAD.")

    monkeypatch.setattr(definition, "load_definition", load)
    with pytest.raises(UserError, match="can't read its WAD"):
        doctor.check_environments()
    monkeypatch.setattr(definition, "available", list)
    with pytest.raises(UserError, match="has no environments"):
        doctor.check_environments()


def games(monkeypatch: pytest.MonkeyPatch, game: type[FakeGame]) -> None:
    """Let engines be of this kind."""
    monkeypatch.setattr(doctor, "STEPS", 30)
    monkeypatch.setattr(doom, "start_engine", lambda config, *options: game(*options[:3]))


def test_an_engine_that_works_is_timed_and_shows_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    games(monkeypatch, FakeGame)
    assert re.fullmatch(
        r"started in \d+\.\d\d s; \d+ steps a second \(one game, 320x240\); a target in \d\d of 30 frames; "
        "a second engine plays the same game",
        doctor.check_engine(),
    )


def test_an_engine_without_labels_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(FakeGame):
        def get_state(self) -> Any:
            state: Any = super().get_state()
            state.labels.clear()
            return state

    games(monkeypatch, Blind)
    with pytest.raises(UserError, match="no target in any of 30 frames of Basic: install ViZDoom again"):
        doctor.check_engine()


def test_an_engine_that_does_not_replay_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlike(FakeGame):
        count = 0

        def __init__(self, *options: Any) -> None:
            super().__init__(*options)
            Unlike.count += 1
            self.shade = Unlike.count

        def get_state(self) -> Any:
            state: Any = super().get_state()
            state.screen_buffer += np.uint8(self.shade)
            return state

    games(monkeypatch, Unlike)
    with pytest.raises(UserError, match="a second engine draws other frames"):
        doctor.check_engine()


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trains on its CPU, in fp32."""
    monkeypatch.setattr(device, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(device, "choose_precision", lambda name, device: "fp32")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(collect_env, "get_nvidia_driver_version", lambda run: None)


def test_torch_learns_in_the_precision_of_auto(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: "Some CPU")
    assert re.fullmatch(
        r"torch [^ ]+: --device auto is cpu \(Some CPU, \w+\), --precision auto is fp32; "
        r"a small step of learning takes \d+ ms",
        doctor.check_torch(),
    )


def test_torch_that_gives_nan_is_a_problem(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape: torch.full(shape, float("nan")))
    with pytest.raises(UserError, match="in fp32 on cpu gives NaN, infinity or no gradient"):
        doctor.check_torch()


def test_a_gpu_that_torch_does_not_see_is_a_problem(cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_env, "get_nvidia_driver_version", lambda run: "550.1")
    with pytest.raises(UserError, match=r"an NVIDIA driver 550\.1, but torch .* CUDA_VISIBLE_DEVICES"):
        doctor.check_torch()


def test_a_video_is_made() -> None:
    assert re.fullmatch(r"H\.264: two frames are \d{3,} bytes", doctor.check_video())


# ------------------------------------------------------------------------------------------------------------
# Processes of their own


def test_an_answer_is_kept_apart_from_what_others_print(answered: Callable[..., Any]) -> None:
    def noisy() -> str:
        os.write(1, b"noise of an engine\n")
        return "quiet"

    assert answered(noisy) == (0, "quiet\n")


def test_whatever_a_check_raises_is_one_line_with_what_to_do(answered: Callable[..., Any]) -> None:
    def raising(error: Exception) -> Callable[[], str]:
        def check() -> str:
            raise error

        return check

    assert answered(raising(UserError("can't do it:\nmend that."))) == (1, "can't do it: mend that.\n")
    assert answered(raising(RuntimeError("one line\nand another"))) == (
        1,
        "RuntimeError: one line and another. Mend it.\n",
    )
    code, line = answered(raising(ValueError("word " * 1000)))
    assert code == 1
    assert len(line) < 450
    assert line.endswith("word.... Mend it.\n")
    assert answered(raising(ModuleNotFoundError("No module named 'av'"))) == (
        1,
        "No module named 'av': install what the first line says is missing.\n",
    )


def test_what_a_process_answers_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examined(monkeypatch, "print('all is well')") == (True, "all is well")
    assert examined(monkeypatch, "print('mend it'); raise SystemExit(1)") == (False, "mend it")


def test_a_process_that_crashes_or_fails_says_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    dies = (
        "import os, signal, resource, sys; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
        "print('first\\nlast words', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGBUS)"
    )
    advice = doctor.CHECKS["video"][1]
    assert examined(monkeypatch, dies) == (
        False,
        f"its process crashed (SIGBUS, shared memory or a disk is full) and said: last words. {advice}",
    )
    _, said = examined(monkeypatch, "raise ValueError('no good')")
    assert said.startswith("its process ended with code 1 and said: ValueError: no good. ")
    _, said = examined(monkeypatch, f"import os; os.kill(os.getpid(), {signal.SIGTERM:d})")
    assert said.startswith("its process crashed (SIGTERM) and said: nothing. ")


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    works, said = examined(monkeypatch, "import time; time.sleep(60)", patience=0.2)
    assert not works
    assert said.startswith("hung: it was ended after 0.2 seconds. ")


# ------------------------------------------------------------------------------------------------------------
# The command


def test_every_check_is_a_line_and_a_problem_is_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda name: (name != "torch", f"about {name}"))
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       versions      about versions"
    assert "problem  torch         about torch" in lines
    assert len(lines) == len(doctor.CHECKS) + 2
    assert lines[-1] == "Problems: torch."
    assert doctor.main(["--check", "video", "engine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["video", "engine"]
    assert lines[-1] == "What was checked works here."


@pytest.mark.parametrize("wrong", [["--check", "nothing"], ["--nothing"]])
def test_a_wrong_option_is_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(wrong)
    assert ended.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert doctor.main([]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_nothing_that_may_be_missing_is_imported_before_its_check(tmp_path: Path) -> None:
    code = (
        "import sys; from camal_rl import doctor; doctor.parse_args([]); "
        "print({'torch', 'vizdoom', 'cv2', 'tyro', 'av', 'packaging'} & sys.modules.keys())"
    )
    assert run("-c", code, folder=tmp_path).stdout == "set()\n"


@pytest.mark.engine
def test_the_command_says_that_all_works_here(tmp_path: Path) -> None:
    before = orphaned_segments()
    checks = [name for name in doctor.CHECKS if name != "torch"]  # which takes long to import
    done = run("-m", "camal_rl.doctor", "--check", *checks, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-2]] == [["ok", name] for name in checks]
    assert list(tmp_path.iterdir()) == []
    assert wait_until(lambda: orphaned_segments() <= before)


@pytest.mark.slow
def test_broken_libraries_are_lines_and_the_rest_is_checked(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libsome.so: cannot open it')\n")
    (tmp_path / "av.py").write_text("import os; os.abort()\n")
    (tmp_path / "gymnasium.py").write_text("raise ImportError('no numpy')\n")
    done = subprocess.run(
        [sys.executable, "-m", "camal_rl.doctor", "--check", "environments", "engine", "torch", "video"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "ok       environments  all " in done.stdout
    assert "problem  engine        ImportError: no numpy. Install ViZDoom again" in done.stdout
    assert (
        "problem  torch         ImportError: libsome.so: cannot open it. Install torch again" in done.stdout
    )
    assert "problem  video         its process crashed (SIGABRT) and said: " in done.stdout
    assert done.stdout.endswith("\nProblems: engine, torch, video.\n")
