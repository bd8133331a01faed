"""A machine -> one line for each thing that camal_rl needs of it: ok, or the problem and what to do about it.

Every check is made in a process of its own, which may crash or hang, and imports what it is about by itself,
so that whatever is missing or broken is a line among others.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from camal_rl import __version__
from camal_rl.errors import UserError, end_quietly_without_a_reader

if TYPE_CHECKING:
    from camal_rl.doom import DoomEnv

PATIENCE = 120.0
"""Seconds that a check may take; importing torch may need many."""
LONGEST = 400
"""Characters that are shown of what an error says."""
GAMES = 8
"""Games of a training, by default (paper, Table 8)."""
SEED = 1  # of the game and of its actions
STEPS = 200
"""Agent steps that are played: more than an episode of Basic has."""
BATCH = 32
"""Frames in a step of learning; one of training has 256."""


# ---------------------------------------------------- checks: each returns what it found in a line, or raises


def check_versions() -> str:
    """Compare what is installed with what camal_rl asks for."""
    from packaging.requirements import Requirement

    system = f"camal_rl {__version__}, Python {platform.python_version()}, {platform.platform()}"
    try:
        requirements = [Requirement(line) for line in metadata.requires("camal-rl") or []]
    except metadata.PackageNotFoundError:
        return f"{system}; not installed, so what it asks for is not known (pip install .)"
    found, wrong = [system], {}
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, asked = requirement.name, requirement.specifier
        package = f"'{name}{asked}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong[package] = f"{name} is missing"
            continue
        found.append(f"{name} {version}")
        if not asked.contains(version, prereleases=True):
            wrong[package] = f"{name} {version} is not {asked}"
    if wrong:
        raise UserError(f"{', '.join(wrong.values())}: pip install {' '.join(wrong)}")
    return ", ".join(found)


def check_memory() -> str:
    """Compare cores, memory and shared memory with what a training needs."""
    from camal_rl.game.engine import check_shared_memory
    from camal_rl.run import machine, runner
    from camal_rl.run.device import gpu_memory

    left, needed = machine.available_memory(), runner.CELL_MEMORY
    free = "unknown" if left is None else f"{left / 2**30:.1f} GiB"
    if left is not None and left < needed:
        raise UserError(
            f"{free} of memory available, and a run may need {needed / 2**30:g} GiB (0.6 with the default "
            "sizes): free some, or give the container more."
        )
    check_shared_memory(GAMES)
    return (
        f"{machine.cores()} cores, {free} of memory available, shared memory for {GAMES} games; "
        f"camal_rl.experiment does {runner.bearable_jobs(gpu_memory())} runs at once"
    )


def check_environments() -> str:
    """Load the definition, the .cfg and the WAD of every environment."""
    from camal_rl.game.definition import available, load_definition

    names = available()
    if not names:
        raise UserError("camal_rl has no environments: install it again, with its envs/.")
    for name in names:
        load_definition(name)
    return f"all {len(names)} can be loaded"


def check_engine() -> str:
    """Play a real game in two engines: see how fast it is, that it shows targets, that it is the same."""
    from camal_rl.doom import DoomEnv

    began = time.perf_counter()
    with contextlib.closing(DoomEnv("Basic")) as env:
        env.reset(seed=SEED)
        started = time.perf_counter()
        game = _play(env)
        rate = STEPS / (time.perf_counter() - started)
    with contextlib.closing(DoomEnv("Basic")) as env:
        again = _play(env)
    targets = sum(any(mask) for _, mask in game)
    if targets == 0:
        raise UserError(
            f"the label buffer shows no target in any of {STEPS} frames of Basic: install ViZDoom again (pip "
            "install --force-reinstall vizdoom); if that does not help, report this."
        )
    if game != again:
        raise UserError(
            "a second engine draws other frames or masks of the same game, so a resumed run would go on "
            "differently: report this with your CPU and the version of ViZDoom."
        )
    return (
        f"started in {started - began:.2f} s; {rate:.0f} steps a second (one game, 320x240); "
        f"a target in {targets} of {STEPS} frames; a second engine plays the same game"
    )


def _play(env: DoomEnv) -> list[tuple[bytes, bytes]]:
    """The frames and masks of a game with random actions."""
    from camal_rl.environments import random_play

    frames = itertools.islice(random_play(env, SEED), STEPS)
    return [(env.image.tobytes(), env.mask.tobytes()) for _ in frames]


def check_torch() -> str:
    """Choose the device and the precision as training does, and make a step of learning in them."""
    import torch
    from torch import nn
    from torch.utils import collect_env

    from camal_rl.run import machine
    from camal_rl.run.device import choose_device, choose_precision

    device = choose_device("auto")
    precision = choose_precision("auto", device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    driver = collect_env.get_nvidia_driver_version(collect_env.run)
    if device.type == "cpu" and driver:
        raise UserError(
            f"there is an NVIDIA driver {driver}, but torch {torch.__version__} can't use it: check "
            "CUDA_VISIBLE_DEVICES, and install the torch for that driver (https://pytorch.org/get-started/locally)."
        )
    cpu = f"{machine.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    torch.set_num_threads(1)  # several wait for each other, longer the busier the machine
    torch.manual_seed(SEED)
    network = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 20 * 20, 512))
    network.to(device, dtype)
    images = torch.rand((BATCH, 4, 84, 84)).to(device, dtype)
    for _ in range(2):  # the first step takes longer, because it sets up what is kept
        began = time.perf_counter()
        network.zero_grad()
        network(images).float().square().mean().backward()
        finite = all(
            weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters()
        )
        milliseconds = 1000 * (time.perf_counter() - began)
    if not finite:
        raise UserError(
            f"a step of learning in {precision} on {device} gives NaN, infinity or no gradient: train with "
            "--precision fp32, or --device cpu, and report this."
        )
    return (
        f"torch {torch.__version__}: --device auto is {device} ({chip}), --precision auto is {precision}; "
        f"a small step of learning takes {milliseconds:.0f} ms"
    )


def check_video() -> str:
    """Encode two frames as H.264."""
    import numpy as np

    from camal_rl.results import media

    frames = np.zeros((2, 64, 64, 3), np.uint8)
    return f"H.264: two frames are {len(media.encode_video(frames, 10))} bytes"


VIZDOOM_ADVICE = "Install ViZDoom again (pip install --force-reinstall vizdoom)."
CHECKS = {
    "versions": (check_versions, "Report this."),
    "memory": (check_memory, "Report this."),
    "environments": (check_environments, VIZDOOM_ADVICE),
    "engine": (check_engine, VIZDOOM_ADVICE),
    "torch": (check_torch, "Install torch again (pip install --force-reinstall torch)."),
    "video": (check_video, "Training needs no video; evaluate with --video-episodes 0."),
}
"""The checks by name, and what to do where one raises or its process crashes."""


# ---------------------------------------------------------------------------------------------- making checks


def answer(name: str) -> int:
    """Make a check in this process and print what it says; the exit code, 1 if there is a problem."""
    check, advice = CHECKS[name]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)  # engines write to standard output too
        try:
            found, code = check(), 0
        except UserError as mistake:  # says itself what to do
            found, code = str(mistake), 1
        except ModuleNotFoundError as error:
            found, code = f"{error}: install what the first line says is missing.", 1
        except Exception as error:
            found, code = f"{type(error).__name__}: {_shortened(str(error))}. {advice}", 1
        print(" ".join(found.split()), file=output)
    return code


CAUSES = {
    signal.SIGILL: "the CPU lacks an instruction that was used",
    signal.SIGBUS: "shared memory or a disk is full",
    signal.SIGKILL: "memory may have run out",
}


def examine(name: str) -> tuple[bool, str]:
    """Make a check in a process of its own; return whether all is well, and what it found."""
    program = f"import sys; from camal_rl import doctor; sys.exit(doctor.answer({name!r}))"
    _, advice = CHECKS[name]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return False, f"hung: it was ended after {PATIENCE:g} seconds. {advice}"
    if done.stdout and done.returncode in (0, 1):
        return done.returncode == 0, done.stdout.decode().strip()
    ending = f"ended with code {done.returncode}"
    if done.returncode < 0:
        number = signal.Signals(-done.returncode)
        ending = f"crashed ({number.name}{', ' + CAUSES[number] if number in CAUSES else ''})"
    last_words = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
    return False, f"its process {ending} and said: {_shortened(last_words)}. {advice}"


def _shortened(text: str) -> str:
    return textwrap.shorten(text, LONGEST, placeholder="...")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    # Not tyro, which the other commands use: it may be what is missing.
    about = "Check what of this machine works for camal_rl. Ends with 1 if something does not. "
    about += "Paste the output into a bug report."
    parser = argparse.ArgumentParser(prog="python -m camal_rl.doctor", description=about)
    which = f"make only these checks, of {', '.join(CHECKS)}"
    parser.add_argument(
        "--check", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME", help=which
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make checks and print a line for each; the exit code: 0, 1 if there is a problem, 130 after Ctrl-C."""
    args = parse_args(arguments)
    problems = []
    try:
        for name in args.check:
            works, found = examine(name)
            print(f"{'ok' if works else 'problem':9}{name:14}{found}", flush=True)
            if not works:
                problems.append(name)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    print(f"\nProblems: {', '.join(problems)}." if problems else "\nWhat was checked works here.")
    return 1 if problems else 0


if __name__ == "__main__":
    end_quietly_without_a_reader()
    sys.exit(main())
