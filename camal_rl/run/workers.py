"""Threads that share the work on games and minibatches, and torch's own threads among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_PART = 64
"""Samples below which a minibatch is not divided further: convolutions of fewer take longer for each."""


class Workers:
    """Threads that play and learn side by side, each with a part of the games or of the minibatch.

    That is faster than torch's own threads inside of every operation: nobody waits for the slowest each time.

    Args:
        threads: number of threads, with the one that calls.
        dtype: number type that networks compute in.
        divide: whether a minibatch is divided among the threads, which is for CPUs.
    """

    def __init__(self, threads: int, dtype: torch.dtype = torch.float32, divide: bool = True) -> None:
        self.threads = threads
        self.dtype = dtype
        self.divide = divide
        self._pool = ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="worker")
        self._replicas: list[Any] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def run(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """Call as `map` does, with all calls at once, each with an equal share of torch's threads.

        The first is made by the calling thread. All are waited for, also where one fails. One thread makes
        one call after the other.
        """
        if self.threads == 1:
            return [function(*call_arguments) for call_arguments in zip(*arguments, strict=True)]
        first, *others = zip(*arguments, strict=True)
        share = max(1, self.threads // (1 + len(others)))

        def call(call_arguments: tuple[Any, ...]) -> Any:
            torch.set_num_threads(share)  # of the thread that says so
            return function(*call_arguments)

        futures = [self._pool.submit(call, call_arguments) for call_arguments in others]
        try:
            result = call(first)
        finally:
            torch.set_num_threads(self.threads)
            wait(futures)
        return [result, *(future.result() for future in futures)]

    def learn(
        self, function: Callable[[Any, Any], dict[str, Tensor]], agent: Any, minibatch: Any, parts: int = 0
    ) -> dict[str, Tensor]:
        """Take each part of a minibatch through a replica of the agent, whose own gradients become their sum.

        Args:
            function: (replica, part of the minibatch) -> means by name; it calls `backward` on their sum.
            agent, minibatch, parts: as for `each`.

        Returns:
            The sums of all parts' means.
        """
        results = self.each(function, agent, minibatch, parts)
        replicas = self._replicas[: len(results)]
        for parameter, *copies in zip(
            agent.parameters(), *(replica.parameters() for replica in replicas), strict=True
        ):
            gradient = copies[0].grad.to(parameter.dtype)
            for copy in copies[1:]:
                gradient += copy.grad
            parameter.grad = gradient
        return {name: torch.stack([means[name] for means in results]).sum() for name in results[0]}

    def each(
        self, function: Callable[[Any, Any], Any], agent: Any, minibatch: Any, parts: int = 0
    ) -> list[Any]:
        """Take each part of a minibatch through a replica of the agent, and return the results.

        Args:
            function: (replica, part of the minibatch) -> result.
            agent: network with a method `replica`.
            minibatch: named tuple of tensors, (B, ...) each.
            parts: number of parts; as many as are fast unless given.
        """
        count = parts or (self.parts(len(minibatch[0]), SMALLEST_PART) if self.divide else 1)
        while len(self._replicas) < count:
            self._replicas.append(agent.replica(self.dtype))

        def call(replica: nn.Module, *part: Tensor) -> Any:
            with torch.no_grad():
                for copy, parameter in zip(replica.parameters(), agent.parameters(), strict=True):
                    copy.copy_(parameter)
                    copy.grad = None
            return function(replica, type(minibatch)._make(part))

        return self.run(call, self._replicas[:count], *(tensor.tensor_split(count) for tensor in minibatch))

    def parts(self, length: int, at_least: int = 1) -> int:
        """Return into how many parts this length is divided, none of them shorter than `at_least`."""
        return max(1, min(self.threads, length // at_least))

    def slices(self, length: int) -> list[slice]:
        """Return the part of each thread of this length, as equal as can be."""
        parts = self.parts(length)
        return [slice(length * part // parts, length * (part + 1) // parts) for part in range(parts)]
