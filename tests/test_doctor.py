"""What the doctor says of a machine, on machines that lack one thing or another."""

import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, FakeGame, orphaned_segments, run, wait_until

from camal_rl import doctor, doom, ppo
from camal_rl.doctor import Check, Finding
from camal_rl.errors import UserError
from camal_rl.game.definition import available
from camal_rl.run import device, machine

GIB = 2**30


def found(function: Callable[[], Iterator[Finding]]) -> list[Finding]:
    return [*doctor.examine(Check("some", function, "Mend it."))]


def marks(findings: list[Finding]) -> list[str]:
    return [finding.mark for finding in findings]


def child(monkeypatch: pytest.MonkeyPatch, program: str) -> list[Finding]:
    """What is found of a check whose process runs this program instead."""
    monkeypatch.setattr(doctor, "question", lambda name: [sys.executable, "-I", "-S", "-c", program])
    return [*doctor.examine_apart(Check("some", lambda: iter(()), "Mend it.", apart=True))]


def statvfs_of(free: int, total: int = GIB) -> Callable[[Any], os.statvfs_result]:
    """Of a file system with so many bytes."""
    return lambda path: os.statvfs_result((1, 1, total, free, free, 0, 0, 0, 0, 255))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a check does no more than it must; commands are as they are."""
    monkeypatch.setattr(doctor, "TIMED_STEPS", 60)
    monkeypatch.setattr(doctor, "REPLAYED_STEPS", 30)
    monkeypatch.setattr(doctor, "BATCH", 2)


# ------------------------------------------------------------------------------------------------------------
# Versions and variables


def test_a_requirement_is_read_where_it_is_for_this_python_and_for_everybody() -> None:
    assert doctor.parse_requirement("torch>=2.4") == ("torch", ">=2.4")
    assert doctor.parse_requirement("some-thing (>=1,<2)") == ("some-thing", ">=1,<2")
    assert doctor.parse_requirement("numpy") == ("numpy", "")
    assert doctor.parse_requirement("ray>=2.9; extra == 'ray'") == (None, "")
    assert doctor.parse_requirement("tomli>=2.0; python_version < '3.0'") == (None, "")
    assert doctor.parse_requirement("tomli>=2.0; python_version >= '3.0'") == ("tomli", ">=2.0")


@pytest.mark.parametrize(
    ("version", "ranges", "answer"),
    [
        ("2.13.0+cpu", ">=2.4", True),
        ("2.3.1", ">=2.4", False),
        ("13", ">=13.0", True),
        ("8.0", "<8", False),
        ("7.2.0", ">=5,<8", True),
        ("7.9", ">7.10", False),
        ("1.2", "!=1.2.0", False),
        ("1.2", "==1.2", True),
        ("1.2", "<=1.1", False),
        ("1.2", "", True),
    ],
)
def test_versions_compare_by_their_numbers(version: str, ranges: str, answer: bool) -> None:
    assert doctor.meets(version, ranges) is answer


def test_what_is_missing_or_of_another_version_is_named_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"torch": "2.1.0", "vizdoom": "1.3.2"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    needed = ["torch>=2.4", "vizdoom>=1.3", "scipy>=1.15", "opencv-python>=4.8", "x>=1; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needed)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "cv2" or None)
    _, listed, *problems = found(doctor.check_versions)
    assert listed == Finding("ok", "torch 2.1.0, vizdoom 1.3.2")
    assert problems == [
        Finding("warning", "torch 2.1.0 is not what camal_rl asks for: >=2.4", "pip install 'torch>=2.4'"),
        Finding("FAILED", "scipy is not installed", "pip install 'scipy>=1.15'"),
        Finding("ok", "opencv-python is not installed, but another package has its cv2"),
        Finding("ok", "ray is not installed (only for camal_rl.experiment --ray)"),
        Finding("ok", "torchvision is not installed (camal_rl itself needs none)"),
    ]


def test_a_checkout_that_is_not_installed_still_has_its_main_versions_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nowhere)
    findings = found(doctor.check_versions)
    assert marks(findings)[:3] == ["ok", "warning", "ok"]
    assert "camal_rl is not installed" in findings[1].text
    assert f"numpy {np.__version__}" in findings[2].text


def test_variables_that_matter_are_shown_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)
    assert found(doctor.check_variables) == [Finding("ok", "none is set that changes what torch does")]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    monkeypatch.setenv("SECRET", "word")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    findings = found(doctor.check_variables)
    assert marks(findings) == ["ok"] * 3
    assert findings[0].text.startswith("OMP_NUM_THREADS=3 (threads of torch")
    assert findings[2].text == "PYTORCH_NO_CUDA_MEMORY_CACHING=1"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert found(doctor.check_variables)[1].mark == "warning"


# ------------------------------------------------------------------------------------------------------------
# The machine


def test_the_cpu_is_told_with_its_cores_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_tile\n")
    assert found(doctor.check_cpu) == [
        Finding("ok", "Some CPU, 3 of 8 cores for this process"),
        Finding("ok", "has avx2, avx512f, amx_tile; not avx512_bf16, amx_bf16"),
    ]
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu\n")
    _, quota, features = found(doctor.check_cpu)
    assert quota == Finding("ok", "the container may use 1.5 cores' time: 2 threads train")
    assert features.mark == "warning"
    assert "slow without avx2" in features.text
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpuinfo").unlink()  # as where there is no /proc
    (only,) = found(doctor.check_cpu)
    assert only.text.endswith("3 of 8 cores for this process")


def test_memory_counts_what_the_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (one,) = found(doctor.check_memory)
    assert one.mark == "ok"
    assert "the system does not say how much is free" in one.text
    (tmp_path / "meminfo").write_text(f"MemAvailable: {8 * GIB // 1024} kB\n")
    (one,) = found(doctor.check_memory)
    assert one.mark == "ok"
    assert "8.0 GiB available" in one.text
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (one,) = found(doctor.check_memory)
    assert one.mark == "warning"
    assert "4.0 GiB for this container; 1.0 GiB available; camal_rl.experiment does 1 runs" in one.text
    assert "free some memory" in one.advice


def test_shared_memory_is_counted_in_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    for free, mark, said in (
        (64 * 2**20, "ok", "1.0 GiB, 64.0 MiB free, room for 64 game engines"),
        (2 * GIB, "ok", "room for 1000 or more game engines"),
        (5 * 2**20, "warning", "room for 5 game engines; a training starts 8"),
        (2**19, "FAILED", "room for 0 game engines; a training starts 8"),
    ):
        monkeypatch.setattr(os, "statvfs", statvfs_of(free))
        (one,) = found(doctor.check_shared_memory)
        assert one.mark == mark
        assert one.text.endswith(said)
        assert ("docker run --shm-size=1g" in one.advice) is (mark != "ok")
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    assert marks(found(doctor.check_shared_memory)) == ["warning"]


def test_the_games_of_a_training_are_as_many_as_ppo_starts() -> None:
    assert ppo.PPO().num_envs == doctor.GAMES


def test_a_temporary_folder_has_to_hold_files_and_start_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (one,) = found(doctor.check_temporary_folder)
    assert one.mark == "ok"
    assert one.text.startswith(f"{tmp_path}: ")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    (one,) = found(doctor.check_temporary_folder)
    assert (one.mark, one.text) == ("warning", f"{tmp_path}: 1.0 MiB free: little for a video")

    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(subprocess, "run", forbidden)
    (one,) = found(doctor.check_temporary_folder)
    assert one.mark == "warning"
    assert "noexec" in one.text
    assert "TMPDIR" in one.advice
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (one,) = found(doctor.check_temporary_folder)
    assert one.mark == "FAILED"
    assert one.text.startswith("FileNotFoundError: ")


@pytest.mark.parametrize("there", [False, True])
def test_writing_is_tried_and_nothing_is_left(tmp_path: Path, there: bool) -> None:
    runs = tmp_path / "some" / "runs"
    if there:
        runs.mkdir(parents=True)
    (one,) = found(lambda: doctor.check_write_access(runs))
    assert one.mark == "ok"
    assert one.text.startswith(f"{runs}{'' if there else ' (not there yet)'}: can be written, ")
    assert one.text.endswith("file locks work")
    assert [*tmp_path.rglob("*")] == ([runs.parent, runs] if there else [])


def test_a_folder_that_cannot_be_written_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (one,) = found(lambda: doctor.check_write_access(tmp_path / "file" / "runs"))
    assert one == Finding(
        "FAILED",
        f"NotADirectoryError: [Errno 20] Not a directory: '{tmp_path / 'file' / 'runs'}'",
        "Mend it.",
    )

    def full(path: Path, data: bytes) -> None:
        raise UserError("the disk is full.")

    monkeypatch.setattr(doctor, "write_whole", full)
    (one,) = found(lambda: doctor.check_write_access(tmp_path / "runs"))
    assert one == Finding("FAILED", "the disk is full.", "Mend it.")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_without_locks_or_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    (one,) = found(lambda: doctor.check_write_access(tmp_path))
    assert one.mark == "warning"
    assert one.text.endswith("can be written, 1.0 MiB free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=GIB))
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)  # locks that keep nobody away
    (one,) = found(lambda: doctor.check_write_access(tmp_path))
    assert one.mark == "warning"
    assert "nothing keeps two processes out" in one.text

    def unsupported(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert marks(found(lambda: doctor.check_write_access(tmp_path))) == ["warning"]
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found(doctor.check_compiler) == [Finding("ok", "C++: none (not needed)")]
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert found(doctor.check_compiler) == [Finding("ok", "C++: g++ (not needed)")]


# ------------------------------------------------------------------------------------------------------------
# What runs


def test_environments_that_cannot_be_loaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if name == "Basic":
            raise UserError("Basic: can't read\nits WAD.")

    monkeypatch.setattr(doom, "load_definition", load)
    (one,) = found(doctor.check_scenarios)
    assert (one.mark, one.text) == ("FAILED", "Basic: can't read its WAD.")
    monkeypatch.setattr(doom, "available", lambda: ["TakeCover"])
    assert found(doctor.check_scenarios) == [Finding("ok", "all 1 environments can be loaded")]
    monkeypatch.setattr(doom, "available", list)
    assert marks(found(doctor.check_scenarios)) == ["FAILED"]


def test_an_engine_that_works_is_timed_seen_and_replayed(fake_engine: None) -> None:
    timed, seen, replayed = found(doctor.check_engine)
    assert marks([timed, seen, replayed]) == ["ok"] * 3
    assert re.fullmatch(
        r"started in \d+\.\d\d s; \d+ steps a second \(one engine, one thread, 320x240, 4 tics a step\)",
        timed.text,
    )
    assert re.fullmatch(r"label buffer: a target in \d\d of 30 frames of Basic", seen.text)
    assert replayed.text == "replay: a second engine gives the same 30 frames and masks"


def test_an_engine_without_labels_is_a_failure(fake_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doom, "target_mask", lambda *_: (slice(0, 0), slice(0, 0)))
    findings = found(doctor.check_engine)
    assert marks(findings) == ["ok", "FAILED", "ok"]
    assert findings[1].text == "label buffer: no target in any of 30 frames of Basic"


def test_an_engine_that_does_not_replay_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlike(FakeGame):
        games = 0

        def __init__(self, *options: Any) -> None:
            super().__init__(*options)
            Unlike.games += 1
            self.shade = Unlike.games

        def get_state(self) -> Any:
            state: Any = super().get_state()
            if self.done == 1:
                state.screen_buffer += np.uint8(self.shade)
            return state

    monkeypatch.setattr(doom, "start_engine", lambda config, *options: Unlike(*options[:3]))
    findings = found(doctor.check_engine)
    assert marks(findings) == ["ok", "ok", "FAILED"]
    assert re.match(r"replay: [1-9]\d* of 30 frames or masks differ in a second engine", findings[2].text)


def test_an_engine_that_had_to_be_replaced_is_a_warning(
    fake_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frail(doom.DoomEnv):
        def begin_episode(self, seed: int | None = None) -> None:
            self.restarts = 2
            super().begin_episode(seed)

    monkeypatch.setattr(doom, "DoomEnv", Frail)
    findings = found(doctor.check_engine)
    assert marks(findings) == ["ok", "ok", "ok", "warning"]
    assert findings[3].text == "an engine ended or hung 4 times and was replaced"


def test_an_engine_that_does_not_start_is_a_failure_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise UserError("the ViZDoom engine did not start\n with basic.cfg.")

    monkeypatch.setattr(doom, "start_engine", start)
    assert found(doctor.check_engine) == [
        Finding("FAILED", "the ViZDoom engine did not start with basic.cfg.", "Mend it.")
    ]


def test_torch_learns_in_the_precision_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "choose_precision", lambda name, device: "fp32")
    monkeypatch.setattr(device, "choose_device", lambda name: ppo.torch.device("cpu"))
    monkeypatch.setattr(doctor, "has_nvidia_driver", lambda: False)
    chosen, learned = found(doctor.check_torch)
    assert chosen.mark == learned.mark == "ok"
    assert chosen.text.startswith("--device auto is cpu, --precision auto is fp32; ")
    assert learned.text.endswith(" ms, all finite")


def test_torch_that_gives_nan_or_sees_no_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "choose_device", lambda name: ppo.torch.device("cpu"))
    monkeypatch.setattr(device, "choose_precision", lambda name, device: "fp32")
    monkeypatch.setattr(doctor, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(ppo.Agent, "cam", lambda self, output, *_, weights: output.value * float("nan"))
    _, unseen, learned = found(doctor.check_torch)
    assert unseen.mark == "warning"
    assert "nvidia-smi" in unseen.advice
    assert learned.mark == "FAILED"
    assert learned.text.endswith("NaN, infinity or no gradient in fp32")


@pytest.mark.parametrize(
    ("module", "check", "advice"),
    [
        ("torch", doctor.check_torch, "pip install torch"),
        ("cv2", doctor.check_video, "pip install opencv-python"),
        ("av", doctor.check_video, "pip install av"),
        ("vizdoom", doctor.check_engine, "pip install vizdoom"),
        ("tyro", doctor.check_memory, "pip install tyro"),
    ],
)
def test_a_module_that_is_missing_is_a_line_with_its_package(
    module: str,
    check: Callable[[], Iterator[Finding]],
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import camal_rl

    monkeypatch.setitem(sys.modules, module, None)  # importing it raises
    for name in ("media", "doom", "engine", "ppo", "experiment"):
        monkeypatch.delitem(sys.modules, f"camal_rl.{name}")
        monkeypatch.delattr(camal_rl, name)
    (one,) = found(check)
    assert one.mark == "FAILED"
    assert one.text.startswith("ModuleNotFoundError: ")
    assert module in one.text
    assert one.advice == advice


def test_a_library_that_is_missing_is_told_from_a_package() -> None:
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    one = doctor.failure(error, "Mend it.")
    assert one.text.startswith("ImportError: libGL.so.1: cannot open")
    assert "with the system's packages" in one.advice


def test_a_video_is_made() -> None:
    (one,) = found(doctor.check_video)
    assert one.mark == "ok"
    assert re.fullmatch(r"H\.264: two frames are \d{3,} bytes", one.text)


# ------------------------------------------------------------------------------------------------------------
# Processes of their own

SAYS = """import json, sys; print(json.dumps(["ok", "started", ""]), flush=True); """


def test_a_process_that_dies_is_a_failure_after_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = child(
        monkeypatch,
        f"{SAYS}import os, signal, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
        "print('first\\nlast words', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGBUS)",
    )
    assert findings == [
        Finding("ok", "started"),
        Finding(
            "FAILED",
            "its process crashed (SIGBUS, shared memory or a disk is full): last words",
            "Mend it.",
        ),
    ]


def test_a_process_that_fails_says_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = child(monkeypatch, f"{SAYS}raise ValueError('no good')")
    assert findings[1:] == [
        Finding("FAILED", "its process ended with code 1: ValueError: no good", "Mend it.")
    ]
    assert child(monkeypatch, "raise SystemExit(3)") == [
        Finding("FAILED", "its process ended with code 3", "Mend it.")
    ]


def test_a_process_that_hangs_is_ended_with_what_it_has_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.3)
    began = time.monotonic()
    findings = child(
        monkeypatch,
        f"{SAYS}import subprocess, time; engine = subprocess.Popen(['sleep', '60']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(engine.pid)); time.sleep(60)",
    )
    assert time.monotonic() - began < 10
    assert findings == [
        Finding("ok", "started"),
        Finding("FAILED", "hung: it was ended after 0.3 seconds", "Mend it."),
    ]
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    # Where nobody takes its exit status it stays, as a zombie.
    assert wait_until(lambda: not state.exists() or state.read_text().split()[2] == "Z")


def test_a_process_that_dies_and_leaves_an_engine_did_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.3)
    findings = child(
        monkeypatch,
        "import os, subprocess; subprocess.Popen(['sleep', '60']); os._exit(1)",
    )
    assert findings == [Finding("FAILED", "its process ended with code 1", "Mend it.")]


def test_ctrl_c_ends_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    kill = os.killpg

    def interrupted(self: object, *_: object, timeout: float | None = None) -> tuple[bytes, bytes]:
        if timeout is not None:
            raise KeyboardInterrupt
        return b"", b""

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    monkeypatch.setattr(os, "killpg", lambda *group: ended.append(group[1]) or kill(*group))
    with pytest.raises(KeyboardInterrupt):
        child(monkeypatch, "import time; time.sleep(60)")
    assert ended == [signal.SIGKILL]


# ------------------------------------------------------------------------------------------------------------
# The report


def made(*findings: Finding) -> Callable[[], Iterator[Finding]]:
    return lambda: iter(findings)


def broken() -> Iterator[Finding]:
    yield Finding("ok", "half of it")
    raise RuntimeError("one line\nand another")


def test_a_check_that_raises_is_a_failed_line_and_the_others_are_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = [
        Check("write-access", broken, "Mend it."),
        Check("engine", made(Finding("FAILED", "dead", "Revive it."), Finding("FAILED", "cold")), ""),
        Check("video", made(Finding("warning", "slow")), ""),
    ]
    assert doctor.report(chosen) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok       write access      half of it",
        "FAILED   write access      RuntimeError: one line and another",
        "                           -> Mend it.",
        "FAILED   engine            dead",
        "                           -> Revive it.",
        "FAILED   engine            cold",
        "warning  video             slow",
        "",
        "2 checks failed: write access, engine. Warnings: video.",
    ]


def test_warnings_alone_are_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [Check("video", made(Finding("warning", "slow")), "")]
    assert doctor.report(chosen) == 0
    assert capsys.readouterr().out.endswith("\nWhat was checked works here. Warnings: video.\n")
    monkeypatch.setattr(doctor, "checks", lambda runs_dir: chosen)
    assert doctor.report(chosen) == 0
    assert capsys.readouterr().out.endswith("\nAll that camal_rl needs works here. Warnings: video.\n")


def test_a_check_apart_is_made_in_another_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "question", lambda name: [sys.executable, "-I", "-S", "-c", SAYS])
    assert doctor.report([Check("engine", broken, "", apart=True)]) == 0
    assert capsys.readouterr().out.startswith("ok       engine            started\n")


def test_an_answer_is_kept_apart_from_what_others_print(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy() -> Iterator[Finding]:
        os.write(1, b"noise of an engine\n")
        yield Finding("ok", "quiet")

    monkeypatch.setattr(doctor, "checks", lambda runs_dir: [Check("engine", noisy, "")])
    before = os.dup(1)
    try:
        doctor.answer("engine")
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert capfd.readouterr() == ('["ok", "quiet", ""]\n', "noise of an engine\n")


def test_lines_are_narrow_and_without_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    home = "/users/somebody"
    monkeypatch.setenv("HOME", home)
    text = f"{home}/some/runs " + "word " * 40 + f"{home}x {home}"
    shown = doctor.rendered("engine", Finding("FAILED", text, text))
    assert max(map(len, shown.splitlines())) <= 100
    words = shown.split()
    assert words[2] == "~/some/runs"
    assert words.count("~") == 2
    assert words.count(f"{home}x") == 2, "another folder that begins alike"


def test_a_home_folder_that_says_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert doctor.without_home("/some/where") == "/some/where"

    def nobody() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", nobody)
    assert doctor.without_home("/some/where") == "/some/where"


def test_a_long_error_is_cut() -> None:
    one = doctor.failure(ValueError("a" * 5000 + "\x1b[31m"), "")
    assert len(one.text) < 450
    assert one.text.endswith("...")


def test_only_what_is_asked_for_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--check", "compiler", "variables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[9:27].strip() for line in lines[:-2]} - {""} == {"variables", "compiler"}
    assert lines[-1] == "What was checked works here."


@pytest.mark.parametrize("wrong", [["--check", "nothing"], ["--nothing"]])
def test_a_wrong_option_is_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(wrong)
    assert ended.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_ctrl_c_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(chosen: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "report", interrupted)
    assert doctor.main([]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_nothing_that_may_be_missing_is_imported_before_its_check(tmp_path: Path) -> None:
    code = (
        "import sys; from camal_rl import doctor; doctor.parse_args([]); "
        "print([name for name in ('torch', 'vizdoom', 'cv2', 'tyro', 'av') if name in sys.modules])"
    )
    assert run("-c", code, folder=tmp_path).stdout == "[]\n"


@pytest.mark.engine
def test_the_command_says_that_all_works_here(tmp_path: Path) -> None:
    before = orphaned_segments()
    done = run("-m", "camal_rl.doctor", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("All that camal_rl needs works here.")
    names = {line[9:27].strip() for line in lines[:-2]} - {""}
    assert names == {check.name.replace("-", " ") for check in doctor.checks(Path())}
    for said in (
        "runs (not there yet): can be written",
        "one engine, one thread",
        "label buffer: a target in",
        "the same 100 frames and masks",
        "all finite",
        "H.264: two frames",
        f"all {len(available())} environments can be loaded",
    ):
        assert said in done.stdout
    assert max(map(len, lines)) <= 100
    assert list(tmp_path.iterdir()) == []
    assert wait_until(lambda: orphaned_segments() <= before)


@pytest.mark.engine
def test_broken_libraries_are_lines_and_the_rest_is_checked(tmp_path: Path) -> None:
    libraries = tmp_path / "libraries"
    (libraries / "torch").mkdir(parents=True)
    (libraries / "torch" / "__init__.py").write_text("raise ImportError('libsome.so: cannot open it')\n")
    (libraries / "av.py").write_text("import os; os.abort()\n")
    done = subprocess.run(
        [sys.executable, "-m", "camal_rl.doctor", "--check", "scenarios", "torch", "video"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{libraries}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "ok       scenarios" in done.stdout
    assert "FAILED   torch             ImportError: libsome.so: cannot open it" in done.stdout
    assert "FAILED   video             its process crashed (SIGABRT)" in done.stdout
    assert done.stdout.endswith("\n2 checks failed: torch, video.\n")
