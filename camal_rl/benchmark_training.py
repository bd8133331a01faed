"""Training as it is, timed from outside: `ppo.train` clocks on its functions, and what it is held against.

Nothing of training is written again here, so what is measured is what a user runs: the command that the
benchmark starts for every training calls `ppo.train` and prints one line of JSON an iteration.
"""

from __future__ import annotations

import os

from camal_rl import masks

# Waiting torch threads spin by default, which takes the cores from the game engines. Read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from camal_rl import ppo
from camal_rl.doom import DoomEnv, DoomVectorEnv
from camal_rl.errors import UserError
from camal_rl.game.definition import Definition
from camal_rl.run.device import choose_device
from camal_rl.run.workers import Workers

WARMUP = 2
"""Iterations that are not counted: the first starts the engines, the second measures with a picture."""


# ------------------------------------------------------------------------------------------------------------
# Clocks


class Clock:
    """Seconds of one thread by what it does; each counts once, for the innermost of the open labels."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        """By path of labels, `rollout/forward`; under the empty path what no label covers."""
        self._open: list[str] = []
        self._since = time.perf_counter()

    def start(self) -> None:
        """Begin to count, from zero."""
        self.seconds = defaultdict(float)
        self._since = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Seconds since `start`, by path."""
        self._charge()
        return dict(self.seconds)

    @contextmanager
    def label(self, name: str) -> Iterator[None]:
        """Count what is done inside under this label."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        if self.device.type == "cuda":  # what was only queued so far belongs to the label that queued it
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds["/".join(self._open)] += now - self._since
        self._since = now


_of_thread = threading.local()
"""Its `clock` is the one of the thread that looks."""

Place = tuple[object, str, str]
"""A module or class, the name of a function in it, and the label to count it under."""


def phases() -> list[Place]:
    """The three phases of an iteration."""
    return [(ppo, name, name) for name in ("rollout", "gae", "update")]


def details() -> list[Place]:
    """The phases, and what is done inside them."""
    return [
        *phases(),
        (DoomVectorEnv, "step_some", "environments"),
        (ppo, "measure", "measure"),
        (ppo, "_slopes", "losses"),
        (ppo.Agent, "cam", "attention"),
        (ppo.Agent, "forward", "forward"),
        (ppo.Agent, "weights", "weights"),
        (ppo.Agent, "set_gradients", "weights"),
        (torch.autograd, "grad", "backward"),
        (nn.utils, "clip_grad_norm_", "clip"),
        (torch.optim.Adam, "step", "optimizer"),
    ]


@contextmanager
def timed(places: Sequence[Place]) -> Iterator[None]:
    """Let each thread's clock, where it has one, count these functions under their labels."""
    with ExitStack() as stack:
        for owner, name, label in places:
            stack.enter_context(replaced(owner, name, partial(_counted, label)))
        yield


def _counted(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **options: Any) -> Any:
        clock = getattr(_of_thread, "clock", None)
        if clock is None:
            return function(*args, **options)
        with clock.label(label):
            return function(*args, **options)

    return counted


@contextmanager
def replaced(owner: object, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Put `change` of an attribute in its place for as long as this is open."""
    before = getattr(owner, name)
    setattr(owner, name, change(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


# ------------------------------------------------------------------------------------------------------------
# What it is measured against, and what it takes


class RawEngines:
    """Games as a training plays them, each stepped by its own thread at random, and nothing else done."""

    def __init__(self, definition: Definition, num_envs: int, render_resolution: str) -> None:
        self.envs: list[DoomEnv] = []
        self.rng = np.random.default_rng(0)
        self._threads = ThreadPoolExecutor(num_envs, thread_name_prefix="raw")
        try:
            for _ in range(num_envs):
                self.envs.append(DoomEnv(definition, render_resolution=render_resolution))
                self.envs[-1].reset(seed=len(self.envs))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RawEngines:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown()
        for env in self.envs:
            env.close()

    def play(self, steps: int) -> float:
        """Act `steps` times in every game, and take frame and labels; seconds until all are done."""
        actions = [self.rng.integers(len(env.actions), size=steps).tolist() for env in self.envs]
        began = time.perf_counter()
        list(self._threads.map(self._play_one, self.envs, actions))
        return time.perf_counter() - began

    @staticmethod
    def _play_one(env: DoomEnv, actions: list[int]) -> None:
        game = env.game
        for action in actions:
            game.make_action(env.actions[action], env.definition.frame_skip)
            if game.is_episode_finished():
                game.new_episode()
            state = game.get_state()
            _ = state.screen_buffer, state.labels_buffer


class PlayedGames:
    """Games as a training plays them, with frames, masks and threads, but at random, without the network."""

    def __init__(self, args: ppo.Args) -> None:
        environment = args.environment
        self.envs = DoomVectorEnv(
            args.run.env,
            args.ppo.num_envs,
            environment.frame_size,
            environment.render_resolution,
            mask_transform=ppo.projection_of(args),
        )
        self.rng = np.random.default_rng(0)
        self._workers = Workers(args.machine.torch_threads, torch.device("cpu"))
        self.envs.reset(seed=1)

    def __enter__(self) -> PlayedGames:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__()
        self.envs.close()

    def play(self, steps: int) -> float:
        """Act `steps` times in every game; seconds until all are done."""
        actions = self.rng.integers(len(self.envs.envs[0].actions), size=(steps, self.envs.num_envs))
        began = time.perf_counter()
        self._workers.run(partial(self._play_some, actions), self._workers.slices(self.envs.num_envs))
        return time.perf_counter() - began

    def _play_some(self, actions: np.ndarray, some: slice) -> None:
        for now in actions[:, some].tolist():
            self.envs.step_some(some, now)


class ProjectionCost:
    """CPU time of projecting masks, in whatever threads, and of the rollouts that do it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """In `masks.Projection`."""
        self.rollout_seconds = 0.0
        """In `ppo.rollout`, by this process and its engines."""
        self._in_rollout = False  # measurement projects masks as well
        self._lock = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count trainings that start while this is open."""
        with (
            replaced(masks.Projection, "__call__", self._project),
            replaced(ppo, "rollout", self._rollout),
        ):
            yield

    def _project(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            result = function(*args, **options)
            if self._in_rollout:
                with self._lock:
                    self.seconds += time.thread_time() - began
            return result

        return counted

    def _rollout(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            began = cpu_seconds()
            self._in_rollout = True
            result = function(*args, **options)
            self._in_rollout = False
            self.rollout_seconds += cpu_seconds() - began
            return result

        return counted


def processes() -> list[int]:
    """Ids of this process and of all that descend from it; of this one alone where there is no /proc."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The second field is a name in brackets, which may hold anything.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        children[parent].append(int(folder.name))
    family = [os.getpid()]
    for process in family:  # grows while it is walked
        family += children[process]
    return family


def cpu_seconds() -> float:
    """CPU time that this process and its engines have used."""
    total = time.process_time()
    for process in processes()[1:]:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory() -> dict[str, int]:
    """Bytes of this process and its engines: `rss`, `peak` (each process's own highest RSS) and `pss`.

    PSS counts what processes share, such as the engine's code, once. Empty where there is no /proc.
    """
    total: dict[str, int] = defaultdict(int)
    for process in processes():
        for file, names in (("status", {"VmRSS": "rss", "VmHWM": "peak"}), ("smaps_rollup", {"Pss": "pss"})):
            try:
                text = Path(f"/proc/{process}/{file}").read_text()
            except OSError:
                continue
            for line in text.splitlines():
                name, _, value = line.partition(":")
                if name in names:
                    total[names[name]] += int(value.split()[0]) * 1024
    return dict(total)


# ------------------------------------------------------------------------------------------------------------
# The command: one training in a process of its own


def work(how: str, options: list[str]) -> None:
    """Train with these options of `camal_rl.ppo`, and print a line of JSON after every iteration.

    Args:
        how: what the lines say and when training ends.
            `stamps`: when the iteration ended and when the next began (what lies between is not training's),
            and the CPU seconds so far; until the standard input ends. `memory`: that, and memory.
            `phases`: seconds of the iteration by path of labels, and what projection has cost so far. The
            next iteration begins when a line has come in; it ends with the input. `details`: the same with
            more labels.
    """
    args = ppo.parse_args(options)
    if how in ("phases", "details"):
        _in_turns(args, phases() if how == "phases" else details())
        return
    stopping = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=watch, daemon=True).start()

    def report() -> bool:
        line: dict[str, float] = {"ended": time.monotonic(), "cpu": cpu_seconds()}
        if how == "memory":
            line |= memory()
        line["resumed"] = time.monotonic()
        print(json.dumps(line), flush=True)
        return stopping.is_set()

    ppo.train(args, report)


def _in_turns(args: ppo.Args, places: Sequence[Place]) -> None:
    clock = _of_thread.clock = Clock(choose_device(args.machine.device))
    cost = ProjectionCost()

    def report() -> bool:
        line = {"seconds": clock.stop(), "projection": cost.seconds, "rollout_cpu": cost.rollout_seconds}
        print(json.dumps(line), flush=True)
        ended = not sys.stdin.readline()
        clock.start()
        return ended

    try:
        with timed(places), cost.watched():
            clock.start()
            ppo.train(args, report)
    finally:
        del _of_thread.clock


if __name__ == "__main__":
    try:
        work(sys.argv[1], sys.argv[2:])
    except UserError as mistake:
        from camal_rl.errors import print_mistake

        sys.exit(print_mistake(mistake))
