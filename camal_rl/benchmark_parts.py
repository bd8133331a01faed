"""The parts of the benchmark: each measures one thing and returns what was measured, nothing left out.

What is compared is measured in turns, within one run: seconds later, the machine may be another. Numbers that
say something are made of it by `benchmark_tables`.
"""

from __future__ import annotations

import os

# As in `ppo`: read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import platform
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from camal_rl import __version__, attention, camal, ppo
from camal_rl.benchmark_tables import within
from camal_rl.benchmark_training import WARMUP, Clock, PlayedGames, RawEngines
from camal_rl.errors import UserError
from camal_rl.game.definition import RENDER_RESOLUTIONS, load_definition
from camal_rl.masks import mask_weights
from camal_rl.run.device import choose_device, choose_precision
from camal_rl.run.machine import cores, installed_memory, processor

Result = dict[str, Any]
"""What a part measured, of JSON's types."""


class Settings(NamedTuple):
    """How to measure."""

    options: tuple[str, ...]
    """Of `camal_rl.ppo`, for every training."""
    repetitions: int
    iterations: int
    """A repetition."""


def training_args(settings: Settings, runs_dir: Path, *options: str) -> ppo.Args:
    """Arguments of a training: the settings', then these."""
    return ppo.parse_args([*settings.options, *options, "--runs-dir", str(runs_dir)])


def progress(part: str, total: int) -> tqdm[Any]:
    """The bar of a part that makes so many measurements."""
    return tqdm(total=total, desc=part, mininterval=0.5 if sys.stderr.isatty() else 30)


def machine(settings: Settings) -> dict[str, Any]:
    """What it was measured on."""
    args = training_args(settings, Path())
    device = choose_device(args.machine.device)
    memory = installed_memory()
    return {
        "cpu": processor()[0],
        "cores": cores(),
        "memory_gib": None if memory is None else round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": device.type,
        "precision": choose_precision(args.machine.precision, device),
        "torch_threads": args.machine.torch_threads,
        "system": platform.system(),
        "python": platform.python_version(),
        "camal_rl": __version__,
        "versions": {name: metadata.version(name) for name in ("torch", "vizdoom", "numpy", "opencv-python")},
    }


# ------------------------------------------------------------------------------------------------------------
# An iteration at a time


class TakingTurns:
    """A training in a process of its own that goes on for one iteration whenever it is told to.

    So several can be compared, or one with something else: those that wait sleep, and noise of the machine
    hits all alike. An iteration goes from the end of one update to the end of the next, and holds everything
    that training does: measurement of attention and TensorBoard as well.

    Raises:
        UserError: it can't be started or trained so.
    """

    def __init__(self, settings: Settings, *options: str, details: bool = False) -> None:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="camal_rl-benchmark-"))
            options = (*settings.options, *options, "--runs-dir", folder)
            self._command = worker("details" if details else "phases", options)
            self._log = stack.enter_context(tempfile.TemporaryFile())
            self._process = stack.enter_context(started(self._command, self._log))
            self._read()  # the first iteration waits for nobody
            for _ in range(WARMUP - 1):
                self.advance()
            self._cleanup = stack.pop_all()

    def __enter__(self) -> TakingTurns:
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    def advance(self) -> dict[str, Any]:
        """Train for one iteration; see `benchmark_training.work` for what it returns."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_read` says why it ended
            print(file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        self._process.wait()
        raise UserError(failure(self._command, self._log))


def overhead(settings: Settings) -> Result:
    """CAMAL and Vanilla in turns, an iteration of the one and an iteration of the other.

    Neither learns, for how long a game takes to draw depends on what is in view: both play the same games.
    """
    methods = ["camal", "vanilla"]
    repetitions = []
    with ExitStack() as stack:
        trainings = {
            method: stack.enter_context(
                TakingTurns(settings, "--method", method, "--learning-rate", "0", "--measure-every", "0")
            )
            for method in methods
        }
        bar = stack.enter_context(progress("overhead", settings.repetitions * settings.iterations))
        for _ in range(settings.repetitions):
            seconds: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
            for _ in range(settings.iterations):
                for method in methods:
                    seconds[method].append(trainings[method].advance()["seconds"])
                methods.reverse()  # what goes first would always meet the same caches
                bar.update()
            repetitions.append(seconds)
    return {"batch_size": _batch_size(settings), "seconds": repetitions}


RENDERED = ("160x120", "320x240")
"""Resolutions at which rollouts are compared with the raw engine, and training with other libraries."""


def rollout(settings: Settings) -> Result:
    """Rollouts beside the raw engine, as many games of both, and what projecting the masks takes of them."""
    with progress("rollout", len(RENDERED) * settings.repetitions * settings.iterations) as bar:
        return {"resolutions": [_rollouts(settings, resolution, bar) for resolution in RENDERED]}


def _rollouts(settings: Settings, resolution: str, bar: tqdm[Any]) -> Result:
    options = ("--method", "camal", "--render-resolution", resolution)
    args = training_args(settings, Path(), *options)
    steps, num_envs = args.ppo.num_steps, args.ppo.num_envs
    repetitions = []
    with (
        TakingTurns(settings, *options) as one,
        RawEngines(load_definition(args.run.env), num_envs, resolution) as raw,
        PlayedGames(args) as played,
    ):
        for warm in (raw, played):
            warm.play(steps)
        before = one.advance()
        for _ in range(settings.repetitions):
            seconds: dict[str, list[float]] = {"raw": [], "games": [], "rollout": []}
            for _ in range(settings.iterations):
                seconds["raw"].append(raw.play(steps))
                seconds["games"].append(played.play(steps))
                after = one.advance()
                seconds["rollout"].append(within(after["seconds"], "rollout"))
                bar.update()
            repetitions.append(seconds)
    return {
        "render_resolution": resolution,
        "batch_size": steps * num_envs,
        "num_envs": num_envs,
        "seconds": repetitions,
        "projection_seconds": after["projection"] - before["projection"],
        "rollout_cpu_seconds": after["rollout_cpu"] - before["rollout_cpu"],
    }


def profile(settings: Settings) -> Result:
    """Where the time of an iteration goes."""
    return _profile(settings, "profile")


def _profile(settings: Settings, title: str, *options: str) -> Result:
    total = settings.repetitions * settings.iterations
    options = ("--method", "camal", "--measure-every", "1", *options)
    seconds = []
    with TakingTurns(settings, *options, details=True) as one, progress(title, total) as bar:
        for _ in range(total):
            seconds.append(one.advance()["seconds"])
            bar.update()
    return {"batch_size": _batch_size(settings, *options), "seconds": seconds}


# ------------------------------------------------------------------------------------------------------------
# In this process


BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
EXTRACTIONS = ("none", "closed form", "batch", "per sample")


def extraction(settings: Settings) -> Result:
    """One optimisation's forward and backward pass with attention extracted in three ways, and without any.

    In 32 bits, because the agent's value is computed from the very maps that it returns only then, and
    automatic differentiation needs that.
    """
    args = training_args(settings, Path())
    device = choose_device(args.machine.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.machine.torch_threads)
    seconds: dict[str, dict[str, list[float]]] = {
        way: {str(size): [] for size in BATCH_SIZES} for way in EXTRACTIONS
    }
    agent = ppo.Agent(4, (4, *args.environment.frame_size)).to(device)
    bar = progress("extraction", settings.repetitions * len(BATCH_SIZES) * len(EXTRACTIONS))
    try:
        for repetition in range(settings.repetitions):
            for size in BATCH_SIZES:
                images = torch.randint(256, (size, 4, *args.environment.frame_size), dtype=torch.uint8)
                masks = np.zeros((size, 240, 320), np.uint8)
                masks[:, 100:140, 150:200] = 1
                weights = torch.from_numpy(mask_weights(masks, agent.map_shape[1:]))
                batch = images.to(device), weights.to(device)
                for way in EXTRACTIONS:
                    if repetition == 0:
                        _extract(agent, *batch, way, 1)
                    passes = 1 if way == "per sample" else settings.iterations
                    seconds[way][str(size)].append(_extract(agent, *batch, way, passes))
                    bar.update()
    finally:
        bar.close()
        torch.set_num_threads(threads)
    return {"batch_sizes": list(BATCH_SIZES), "seconds": seconds}


def _extract(agent: ppo.Agent, images: Tensor, weights: Tensor, way: str, passes: int) -> float:
    """Seconds a pass."""
    clock = Clock(images.device)
    clock.start()
    for _ in range(passes):
        agent.zero_grad()
        output = agent(images)
        loss = output.value.square().mean() + output.logits.logsumexp(dim=1).mean()
        if way != "none":
            heat = attention.normalize(_attention(agent, output, way))
            loss = loss + camal.projected_loss(heat, weights)[0]
        loss.backward()
    return sum(clock.stop().values()) / passes


def _attention(agent: ppo.Agent, output: ppo.Output, way: str) -> Tensor:
    if way == "closed form":
        return agent.cam(output, "gradcam")
    return attention.class_activation_map(output.feature_maps, output.value, per_sample=way == "per sample")


def vision(settings: Settings) -> Result:
    """A training step of the paper's classifiers with and without attention supervision (Table 6).

    Raises:
        UserError: torchvision can't be imported.
    """
    from camal_rl.vision import check_torchvision

    check_torchvision()
    from camal_rl.vision import models, overhead

    args = training_args(settings, Path())
    device = choose_device(args.machine.device)
    precision = choose_precision(args.machine.precision, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.machine.torch_threads)
    measurements = settings.repetitions * len(models.ARCHITECTURES) * len(overhead.METHODS)
    try:
        with progress("vision", measurements) as bar:
            return overhead.measure(device, precision, settings.repetitions, settings.iterations, bar.update)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------------
# Processes side by side


@contextmanager
def started(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """A process out of Ctrl-C's reach; it and what it started are ended with the context.

    Raises:
        UserError: it can't be started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends with this process, however that comes
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]},
        )
    except OSError as error:
        raise UserError(f"can't start {command[0]}: {error.strerror}.") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        process.stdout.close()
        with suppress(BrokenPipeError):  # by a line that it ended without reading
            process.stdin.close()


def failure(command: Sequence[str], log: IO[bytes]) -> str:
    """What is told of a process that failed: the last line of its log."""
    log.seek(0)
    text = log.read().decode(errors="replace").strip()
    said = re.split(r"[\r\n]+", text)[-1].removeprefix("camal_rl: ")
    return f"{shlex.join(command[:3])} failed: {said or 'it said nothing.'}"


def worker(how: str, options: Sequence[str]) -> tuple[str, ...]:
    """The command of a training in a process of its own; see `benchmark_training.work`."""
    return (sys.executable, "-m", "camal_rl.benchmark_training", how, *options)


def lines_of(commands: Sequence[Sequence[str]]) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Run commands side by side; the lines of JSON that each prints, with its place, as they come.

    Raises:
        UserError: one of them failed; with the last line it printed as an error.
    """
    lines: queue.Queue[tuple[int, str | None]] = queue.Queue()

    def forward(index: int, output: IO[str]) -> None:
        for line in output:
            lines.put((index, line))
        lines.put((index, None))

    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in commands]
        running = [
            stack.enter_context(started(command, log)) for command, log in zip(commands, logs, strict=True)
        ]
        for index, process in enumerate(running):
            assert process.stdout is not None
            threading.Thread(target=forward, args=(index, process.stdout), daemon=True).start()
        ended = 0
        while ended < len(commands):
            index, line = lines.get()
            if line is None:
                ended += 1
                if running[index].wait():
                    raise UserError(failure(commands[index], logs[index]))
            elif line.startswith("{"):
                yield index, json.loads(line)


Stamp = dict[str, float]
"""What a training in a process of its own says after an iteration; see `benchmark_training.work`."""


def trainings(
    settings: Settings, runs: Sequence[Sequence[str]], with_memory: bool = False
) -> list[list[Stamp]]:
    """Train side by side with these options, a process each: for each what it said while all were training.

    The first of its stamps is where its measurement begins; `iterations` more follow, or a few more.
    """
    how = "memory" if with_memory else "stamps"
    stamps: list[list[Stamp]] = [[] for _ in runs]
    with tempfile.TemporaryDirectory(prefix="camal_rl-benchmark-") as folder:
        commands = [
            worker(how, (*settings.options, *options, "--runs-dir", f"{folder}/{index}"))
            for index, options in enumerate(runs)
        ]
        with closing(lines_of(commands)) as lines:
            for index, stamp in lines:
                stamps[index].append(stamp)
                together = common(stamps)
                if together and min(map(len, together)) > settings.iterations:
                    return together
    raise UserError("a training ended before its measurement: leave out --total-timesteps.")


def common(stamps: Sequence[Sequence[Stamp]]) -> list[list[Stamp]]:
    """The stamps of trainings side by side from when on all of them were warm; none before that."""
    if min(map(len, stamps)) < WARMUP:
        return []
    start = max(one[WARMUP - 1]["resumed"] for one in stamps)
    return [[stamp for stamp in one if stamp["resumed"] >= start] for one in stamps]


RUNS = (1, 2, 3, 4)
THREADS = (1, 2)


def runs(settings: Settings) -> Result:
    """Several trainings at once, each with one or two threads of torch."""
    measured = []
    with progress("runs", settings.repetitions * len(RUNS) * len(THREADS)) as bar:
        for repetition in range(settings.repetitions):
            for count in RUNS:
                for threads in THREADS:
                    options = ("--torch-threads", str(threads))
                    seeds = [(*options, "--seed", str(seed)) for seed in range(1, count + 1)]
                    stamps = trainings(settings, seeds)
                    measured.append(
                        {"repetition": repetition, "runs": count, "torch_threads": threads, "stamps": stamps}
                    )
                    bar.update()
    return {"batch_size": _batch_size(settings), "measured": measured}


def _batch_size(settings: Settings, *options: str) -> int:
    args = training_args(settings, Path(), *options)
    return args.ppo.num_envs * args.ppo.num_steps


NUM_ENVS = (1, 2, 4, 8, 16, 32)
FRAME_SIZES = ((84, 84), (120, 160), (240, 320))
LENGTHS = (5, 25, 50)
"""Iterations after which a run's memory is shown."""


def scaling(settings: Settings) -> Result:
    """Speed and memory against environments, frame size and resolution; memory against a run's length."""
    base = training_args(settings, Path())
    usual: Result = {
        "num_envs": base.ppo.num_envs,
        "frame_size": list(base.environment.frame_size),
        "render_resolution": base.environment.render_resolution,
    }
    varied: list[Result] = [
        *({"num_envs": number} for number in NUM_ENVS),
        *({"frame_size": list(size), "render_resolution": "320x240"} for size in FRAME_SIZES),
        *({"render_resolution": resolution} for resolution in RENDER_RESOLUTIONS),
    ]
    measured = []
    with progress("scaling", settings.repetitions * len(varied) + 1) as bar:
        for repetition in range(settings.repetitions):
            for changes in varied:
                options = _options(changes)
                (stamps,) = trainings(settings, [options], with_memory=True)
                measured.append(
                    {"repetition": repetition, "varied": next(iter(changes)), **usual, **changes}
                    | {"batch_size": _batch_size(settings, *options), "stamps": stamps}
                )
                bar.update()
        longest = settings._replace(iterations=max(LENGTHS) - WARMUP)
        # All that training ever does, pictures and checkpoints as well, is done from the first iteration on.
        always = ("--checkpoint-every", "1", "--image-every", "1")
        (stamps,) = trainings(longest, [always], with_memory=True)
        bar.update()
    native = _profile(
        settings, "240x320", *_options({"frame_size": (240, 320), "render_resolution": "320x240"})
    )
    return {
        "measured": measured,
        "lengths": list(LENGTHS),
        "long_run": stamps,
        "long_run_first": WARMUP,
        "long_run_batch_size": _batch_size(settings),
        "native_frames": native,
    }


def _options(changes: Mapping[str, Any]) -> list[str]:
    """As on the command line of `camal_rl.ppo`."""
    words = []
    for name, value in changes.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


# Says when the first frames reach the network, and when the optimiser has made its first step. Hooks of torch
# see both from outside, in the very process that the user's command is.
_WATCHED = """
import json, runpy, time
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
def once(event):
    def hook(*anything):
        if event not in seen:
            seen.add(event)
            print(json.dumps({"event": event, "seconds": time.monotonic()}), flush=True)
    return hook
seen = set()
register_module_forward_pre_hook(once("inference"))
register_optimizer_step_post_hook(once("gradient_step"))
runpy.run_module("camal_rl.ppo", run_name="__main__", alter_sys=True)
"""


def startup(settings: Settings) -> Result:
    """Seconds from the start of a process to help, the first inference, the first gradient step, the end."""
    measured = []
    one_iteration = ("--total-timesteps", str(_batch_size(settings)))
    with progress("startup", 2 * settings.repetitions) as bar:
        for _ in range(settings.repetitions):
            began = time.monotonic()
            for _ in lines_of([(sys.executable, "-m", "camal_rl.ppo", "--help")]):
                pass  # it prints no JSON
            seconds = {"help": time.monotonic() - began}
            bar.update()
            with tempfile.TemporaryDirectory(prefix="camal_rl-benchmark-") as folder:
                command = (sys.executable, "-c", _WATCHED, *settings.options, *one_iteration)
                began = time.monotonic()
                for _, event in lines_of([(*command, "--runs-dir", folder)]):
                    seconds[event["event"]] = event["seconds"] - began
            seconds["one_iteration"] = time.monotonic() - began
            measured.append(seconds)
            bar.update()
    return {"batch_size": _batch_size(settings), "seconds": measured}


# ------------------------------------------------------------------------------------------------------------
# Other libraries


PEERS = {
    "sample-factory": "torch sample-factory==2.1.1 vizdoom",
    "stable-baselines3": "torch stable-baselines3==2.9.2 vizdoom opencv-python-headless",
}
"""By the name of its package: what an environment of its own needs for it."""


def installation(peer: str) -> str:
    """The commands that install a peer."""
    return f"python3 -m venv {peer} && {peer}/bin/pip install {PEERS[peer]}"


def check_peers(named: Sequence[str]) -> dict[str, str]:
    """Interpreters by peer, of options such as `sample-factory=sf/bin/python`.

    Raises:
        UserError: no such peer, no such interpreter, or one without it.
    """
    interpreters: dict[str, str] = {}
    for one in named:
        peer, equals, python = one.partition("=")
        if peer not in PEERS or not equals:
            raise UserError(f"--peers {one}: give NAME=PYTHON, where NAME is one of {', '.join(PEERS)}.")
        if peer in interpreters:
            raise UserError(f"--peers: {peer} is named twice.")
        command = [python, "-c", f"from importlib.metadata import version; version({peer!r})"]
        try:
            found = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"--peers {one}: {python!r} is not a Python that can be started.") from error
        if not found:
            raise UserError(f"--peers {one}: it has no {peer}. To install it: {installation(peer)}")
        interpreters[peer] = python
    return interpreters


def peers(settings: Settings, interpreters: Mapping[str, str]) -> Result:
    """Training with CAMAL and masks, in turns with other libraries, which have neither, on the same work."""
    measured = []
    ways = [
        (resolution, name, threads)
        for resolution in RENDERED
        for name in ("camal_rl", *interpreters)
        for threads in THREADS
    ]
    commands: dict[str, str] = {}
    with progress("peers", settings.repetitions * len(ways)) as bar:
        for repetition in range(settings.repetitions):
            for resolution, name, threads in ways:
                row: Result = {"repetition": repetition, "render_resolution": resolution, "name": name}
                row["torch_threads"] = threads
                if name == "camal_rl":
                    ours = ("--method", "camal", "--frame-size", "84", "84", "--torch-threads", str(threads))
                    stamps = trainings(settings, [(*ours, "--render-resolution", resolution)])
                    row |= {"batch_size": _batch_size(settings), "stamps": stamps}
                else:
                    options = peer_options(settings, name, resolution, threads)
                    commands[f"{name}, {resolution}, {threads} threads"] = _portable(options)
                    said = [line for _, line in lines_of([(interpreters[name], str(PEER_SCRIPT), *options)])]
                    if not said:
                        raise UserError(f"{PEER_SCRIPT.name} {shlex.join(options)} measured nothing.")
                    row |= said[-1]
                measured.append(row)
                bar.update()
    return {"measured": measured, "commands": commands, "installation": PEERS}


PEER_SCRIPT = Path(__file__).with_name("benchmark_peers.py")


def peer_options(settings: Settings, peer: str, render_resolution: str, threads: int) -> list[str]:
    """The command line that measures a peer on the work that our training does."""
    args = training_args(settings, Path())
    definition = load_definition(args.run.env)
    options: dict[str, Any] = {
        "scenario": definition.scenario,
        "frame-skip": definition.frame_skip,
        "render-resolution": render_resolution,
        "num-envs": args.ppo.num_envs,
        "num-steps": args.ppo.num_steps,
        "update-epochs": args.ppo.update_epochs,
        "num-minibatches": args.ppo.num_minibatches,
        "warmup": WARMUP,
        "iterations": settings.iterations,
        "device": choose_device(args.machine.device).type,
        "torch-threads": threads,
    }
    return [peer, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _portable(options: Sequence[str]) -> str:
    """A peer's command without this machine's paths."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in options)
    return shlex.join(["python", f"camal_rl/{PEER_SCRIPT.name}", *words])
