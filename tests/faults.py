"""Faults: done to engines while a training runs, with what must not be left of them, and to files."""

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camal_rl import doom, ppo


class Faults:
    """Signals that reach a training's engines one after the other, at random moments.

    Args:
        signals: in this order; SIGSTOP makes an engine hang.
        pause: mean seconds between two.
    """

    def __init__(self, signals: Sequence[signal.Signals], pause: float) -> None:
        self.signals = signals
        self.pause = pause
        self._harmed: Counter[doom.DoomEnv] = Counter()
        self.envs: doom.DoomVectorEnv | None = None
        self._ended = threading.Event()

    @contextmanager
    def during(self, monkeypatch: pytest.MonkeyPatch, time_limit: float = 1.0) -> Iterator[None]:
        """Do this to the training that starts while this is open."""

        def start(*arguments: Any, **options: Any) -> doom.DoomVectorEnv:
            self.envs = doom.DoomVectorEnv(*arguments, engine_timeout=time_limit, **options)
            return self.envs

        thread = threading.Thread(target=self._harm, name="faults")
        with monkeypatch.context() as patch:
            patch.setattr(ppo, "DoomVectorEnv", start)
            thread.start()
            try:
                yield
            finally:
                self._ended.set()
                thread.join()

    def _harm(self) -> None:
        rng = np.random.default_rng(0)
        games = itertools.cycle(range(8))
        for number in self.signals:
            while not self._ended.wait(rng.exponential(self.pause)):
                if self.envs is None or len(self.envs.envs) < self.envs.num_envs:
                    continue
                # Each game in turn: the same one twice could meet the action that it does again.
                env = self.envs.envs[next(games) % self.envs.num_envs]
                process = env.game.process
                if process is not None and env.restarts == self._harmed[env]:
                    os.kill(process, number)
                    self._harmed[env] += 1
                    break

    @property
    def done(self) -> int:
        """How many there were."""
        return sum(self._harmed.values())

    @property
    def unnoticed(self) -> int:
        """How many came after the last call into their engine, or so late that the training had ended."""
        return sum(faults - env.restarts for env, faults in self._harmed.items())


def held() -> dict[str, int]:
    """What this process holds that could leak."""
    return {
        "threads": sum(1 for _ in Path("/proc/self/task").iterdir()),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "children": sum(
            len(children.read_text().split()) for children in Path("/proc/self/task").glob("*/children")
        ),
    }


def leaked(before: dict[str, int]) -> dict[str, int]:
    """What this process holds more of than before; threads of earlier tests may have ended meanwhile."""
    return {kind: number for kind, number in held().items() if number > before[kind]}


def cut_off(content: bytes) -> Iterator[bytes]:
    """A file's beginnings, of every length."""
    return (content[:length] for length in range(len(content)))


def with_flipped_bits(content: bytes, times: int) -> Iterator[bytes]:
    """A file in which one bit of one byte is another, at random."""
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content), size=times).tolist():
        flipped = content[place] ^ (1 << int(rng.integers(8)))
        yield content[:place] + bytes([flipped]) + content[place + 1 :]
