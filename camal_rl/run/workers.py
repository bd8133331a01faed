"""Threads that share the work on games and minibatches, and torch's own threads among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch


class Workers:
    """Threads that play and learn side by side, each with a part of the games or of the minibatch.

    That is faster than torch's own threads inside of every operation: nobody waits for the slowest each time.

    Args:
        threads: how many, with the one that calls.
        device: which the network is on. Elsewhere than on the CPU a minibatch is not divided.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads = threads
        self.device = device
        self._pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="worker")

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def run(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """`map` with all calls at once, each with an equal share of torch's threads.

        The first is made by the calling thread. All are waited for, also where one fails. One thread makes
        one after the other.
        """
        if self.threads == 1:
            return [function(*these) for these in zip(*arguments, strict=True)]
        first, *others = zip(*arguments, strict=True)
        share = max(1, self.threads // (1 + len(others)))

        def call(these: tuple[Any, ...]) -> Any:
            torch.set_num_threads(share)  # of the thread that says so
            return function(*these)

        futures = [self._pool.submit(call, these) for these in others]
        try:
            result = call(first)
        finally:
            torch.set_num_threads(self.threads)
            wait(futures)
        return [result, *(one.result() for one in futures)]

    def parts(self, length: int, at_least: int = 1) -> int:
        """Into how many parts something of this length is divided, none of them shorter than `at_least`."""
        return max(1, min(self.threads, length // at_least))

    def slices(self, length: int) -> list[slice]:
        """The part of each thread, of something of this length: as equal as can be."""
        parts = self.parts(length)
        return [slice(length * part // parts, length * (part + 1) // parts) for part in range(parts)]
