"""Hours of trouble in minutes, on the real engine: `python -m pytest -s tests/endurance.py`.

Too long for every change, so its name keeps it out of the suite, which has each of these in small.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, assert_same, left_of, own_engines, wait_until
from faults import Faults, held, leaked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import ppo
from camal_rl.benchmark import memory
from camal_rl.run import folder as run_folder

SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))


USUAL = ("--render-resolution", SMALL, "--reward", "scale", "--update-epochs", "1", "--precision", "fp32")


def args_of(folder: Path, *options: str) -> ppo.Args:
    return ppo.parse_args([*USUAL, *options, "--play-in", "threads", "--runs-dir", str(folder)])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = run_folder.load_checkpoint(folder / "Basic" / "camal" / "seed1" / "checkpoint.pt")
    assert checkpoint is not None
    agent: dict[str, torch.Tensor] = checkpoint["agent"]
    return agent


def test_a_hundred_kills_and_twenty_hangs_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    length = ("--total-timesteps", "131072")
    ppo.train(args_of(tmp_path / "calm", *length))
    before = held()
    signals = ([signal.SIGKILL] * 5 + [signal.SIGSTOP]) * 20
    faults = Faults(signals, 0.3)
    with faults.during(monkeypatch):
        ppo.train(args_of(tmp_path / "harmed", *length))
    assert faults.envs is not None
    print(f"{faults.done} faults, {faults.envs.restarts} engines replaced")
    assert faults.done == len(signals), "the training ended before all faults were done"
    assert faults.envs.restarts == len(signals) - faults.unnoticed
    assert faults.unnoticed <= 8
    assert_same(weights_of(tmp_path / "calm"), weights_of(tmp_path / "harmed"))
    assert wait_until(lambda: not leaked(before)), leaked(before)
    assert left_of(own_engines()) == []


def test_a_trainer_killed_fifty_times_comes_to_the_end_as_if_it_never_had_been(tmp_path: Path) -> None:
    options = ("--num-envs", "4", "--num-steps", "32", "--total-timesteps", "76800", "--torch-threads", "1")
    options = (*options, "--measure-every", "1")
    ppo.train(args_of(tmp_path / "calm", *options))
    # A checkpoint after every iteration, so that kills meet the writing of one as well.
    options = (*options, "--checkpoint-every", "1")
    folder = tmp_path / "killed" / "Basic" / "camal" / "seed1"
    command = [sys.executable, "-m", "camal_rl.ppo", *USUAL, *options, "--runs-dir", str(tmp_path / "killed")]
    rng = np.random.default_rng(0)
    half_written = 0
    for kill in range(50):
        trainer = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:  # the kill comes anywhere from the imports to the middle of training
            _, errors = trainer.communicate(timeout=rng.uniform(1.5, 8))
            assert trainer.returncode == 0, errors
            pytest.fail(f"the training ended before it was killed {kill + 1} times")
        except subprocess.TimeoutExpired:
            trainer.kill()
            _, errors = trainer.communicate()
        assert "Traceback" not in errors
        half_written += len(list(folder.glob(".checkpoint.pt.*")))
        if (folder / "checkpoint.pt").exists():
            run_folder.load_checkpoint(folder / "checkpoint.pt")
    ppo.train(args_of(tmp_path / "killed", *options))
    print(f"kills in the middle of writing a checkpoint: {half_written}")
    assert_same(weights_of(tmp_path / "calm"), weights_of(tmp_path / "killed"))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    steps = list(range(128, 76800 + 1, 128))
    for tag in ("losses/value_loss", "charts/learning_rate", "camal/iou"):
        found = events.Scalars(tag)
        assert [event.step for event in found] == steps
    rates = [event.value for event in events.Scalars("charts/learning_rate")]
    np.testing.assert_allclose(rates, 2.5e-4 * (1 - np.arange(600) / 600), rtol=1e-6)


def test_memory_threads_descriptors_and_shared_memory_stay_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """SOAK_MINUTES of training, 30 by default, in which an engine is killed every ten seconds."""
    samples: list[dict[str, float]] = []
    ended = threading.Event()
    began = time.monotonic()

    def look() -> None:
        while not ended.wait(min(60, 6 * SOAK_MINUTES)):
            shared = sum(path.stat().st_blocks * 512 for path in Path("/dev/shm").glob("ViZDoom*"))
            assert faults.envs is not None
            samples.append(
                {
                    "minutes": (time.monotonic() - began) / 60,
                    "memory": memory(os.getpid()),
                    **held(),
                    "shared": shared / 2**20,
                    "restarts": faults.envs.restarts,
                }
            )
            print("  ".join(f"{name} {value:.1f}" for name, value in samples[-1].items()), flush=True)

    faults = Faults([signal.SIGKILL] * 10_000, 10)
    observer = threading.Thread(target=look)
    observer.start()
    try:
        with faults.during(monkeypatch):
            ppo.train(
                args_of(tmp_path, "--torch-threads", "1"),
                lambda: time.monotonic() - began > 60 * SOAK_MINUTES,
            )
    finally:
        ended.set()
        observer.join()
    third = len(samples) // 3
    parts = samples[third : 2 * third], samples[-third:]
    for name in ("memory", "threads", "descriptors", "shared"):
        early, late = (np.median([one[name] for one in part]) for part in parts)
        print(f"{name}: {early:.1f} in the second third, {late:.1f} in the last")
        assert late <= early * 1.02 + 1
