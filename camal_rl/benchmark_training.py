"""Training as it is, timed from outside: `ppo.train` one iteration at a time, with a clock on its functions.

Nothing of training is written again here, so what is measured is what a user runs. Also a command, which the
benchmark starts where a process of its own is needed: it trains and prints one line of JSON an iteration.
"""

from __future__ import annotations

import os

# Waiting torch threads spin by default, which takes the cores from the game engines. Read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import io
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial, wraps
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from camal_rl import UserError, camal, ppo
from camal_rl.doom import Definition, DoomEnv, DoomVectorEnv

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
    environments = [
        (DoomVectorEnv, name, "environments")
        for name, value in vars(DoomVectorEnv).items()
        if isfunction(value) and not name.startswith("_") and name != "close_extras"
    ]
    return [
        *phases(),
        *environments,
        (ppo, "measure", "measure"),
        (ppo, "camal_loss", "attention"),
        (ppo.Agent, "forward", "forward"),
        (torch.Tensor, "backward", "backward"),
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
# Training, one iteration at a time


class Training:
    """A run of `ppo.train` in a thread of its own, which goes on for one iteration whenever it is told to.

    Several of them can take turns in one process: the engines of those that wait sleep, and noise of the
    machine hits all alike. The iteration goes from the end of one update to the end of the next, so it holds
    everything that training does: measurement of attention and TensorBoard as well.
    """

    def __init__(self, args: ppo.Args) -> None:
        self.args = args
        self.batch_size = args.ppo.num_envs * args.ppo.num_steps
        """Agent steps an iteration."""
        self.clock = Clock(ppo.choose_device(args.machine.device))
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training")
        self._thread.start()

    def __enter__(self) -> Training:
        try:
            for _ in range(WARMUP):
                self.advance()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._ending = True
        self._turn.release()
        self._thread.join()

    def advance(self) -> dict[str, float]:
        """Train for one iteration; its seconds by path of labels.

        Raises:
            UserError: it can't be trained so.
        """
        self._turn.release()
        self._back.acquire()
        if self._failure is not None:
            raise self._failure
        return dict(self.clock.seconds)

    def _run(self) -> None:
        self._turn.acquire()
        if self._ending:
            return
        _of_thread.clock = self.clock
        self.clock.start()
        try:
            ppo.train(self.args, self._pause)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._back.release()

    def _pause(self) -> bool:
        self.clock.stop()
        self._back.release()
        self._turn.acquire()
        self.clock.start()
        return self._ending


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what `ppo.train` says to itself: the progress shown is the benchmark's."""
    with (
        redirect_stdout(io.StringIO()),
        replaced(ppo, "tqdm", lambda bar: partial(bar, disable=True)),
        replaced(ppo, "DEAD_MEASUREMENTS", lambda _: -1),  # dead maps take as long as others
    ):
        yield


# ------------------------------------------------------------------------------------------------------------
# What it is measured against, and what it takes


class RawEngines:
    """Games as a training plays them, each stepped by a thread at random, and nothing else done."""

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


class Projection:
    """CPU time of projecting masks, in whatever threads, and of the rollouts that do it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """In `camal.mask_weights`."""
        self.rollout_seconds = 0.0
        """In `ppo.rollout`, by this process and its engines."""
        self._in_rollout = False  # measurement projects masks as well
        self._lock = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count trainings that start while this is open."""
        with (
            replaced(camal, "mask_weights", self._project),
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


def work(options: list[str], with_memory: bool) -> None:
    """Train with these options of `camal_rl.ppo` until the standard input ends.

    Each iteration is one line of JSON: when it ended, when the next began (what lies between is not
    training's), the CPU seconds so far, and, if asked for, memory.
    """
    stopping = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=watch, daemon=True).start()

    def report() -> bool:
        line: dict[str, float] = {"ended": time.monotonic(), "cpu": cpu_seconds()}
        if with_memory:
            line |= memory()
        line["resumed"] = time.monotonic()
        print(json.dumps(line), flush=True)
        return stopping.is_set()

    ppo.train(ppo.parse_args(options), report)


if __name__ == "__main__":
    try:
        work(sys.argv[2:], sys.argv[1] == "with-memory")
    except UserError as mistake:
        from camal_rl import print_mistake

        sys.exit(print_mistake(mistake))
