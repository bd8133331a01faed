"""Threads that share the work on games and minibatches, and torch's own threads among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_PART = 64
"""Samples below which a minibatch is not divided further: convolutions of fewer take longer for each."""


class Recording:
    """A function of tensors on a GPU as a CUDA graph: its many small kernels start together, not one by one.

    Args:
        function: what is recorded; it waits for nothing and draws nothing at random.
        tensors: its arguments the first time; those of other times have the same shapes.
    """

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries prepare at their first calls can't be recorded
            for _ in range(2):
                function(*self._tensors)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = function(*self._tensors)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the function returns, in tensors that the next call overwrites."""
        for mine, tensor in zip(self._tensors, tensors, strict=True):
            mine.copy_(tensor)
        self._graph.replay()
        return self._results


class Workers:
    """Threads that play and learn side by side, each with a part of the games or of the minibatch.

    That is faster than torch's own threads inside of every operation: nobody waits for the slowest each time.

    Args:
        threads: number of threads, with the one that calls.
        dtype: number type that networks learn in.
        play_dtype: number type that they decide in, on the CPU; as they learn, unless given.
        divide: whether a minibatch is divided among the threads, which is for CPUs.
    """

    def __init__(
        self,
        threads: int,
        dtype: torch.dtype = torch.float32,
        play_dtype: torch.dtype | None = None,
        divide: bool = True,
    ) -> None:
        self.threads = threads
        self.dtype = dtype
        self.play_dtype = play_dtype or dtype
        self.divide = divide
        self._replicas: list[Any] = []
        self._recording: Recording | None = None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(self.threads - 1, 1), thread_name_prefix="worker")

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
        share = self.share(1 + len(others))

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
        self,
        function: Callable[..., dict[str, Tensor]],
        agent: Any,
        minibatch: Any,
        *also: Tensor,
        parts: int = 0,
    ) -> dict[str, Tensor]:
        """Take each part of a minibatch through a replica of the agent, whose own gradients become their sum.

        Args:
            function: (replica, part of the minibatch, *also) -> means by name; it calls `backward` on their
                sum. A GPU repeats what it did at its first call, with other numbers in all the tensors.
            agent, minibatch, parts: as for `each`.
            also: tensors that are not divided.

        Returns:
            The sums of all parts' means. On a GPU the next call overwrites them.
        """

        def add_up(*tensors: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            fields, others = tensors[: len(minibatch)], tensors[len(minibatch) :]
            results = self.each(
                lambda replica, part: function(replica, part, *others),
                agent,
                type(minibatch)._make(fields),
                parts,
            )
            replicas = self._replicas[: len(results)]
            gradients = []
            for parameter, *copies in zip(
                agent.parameters(), *(replica.parameters() for replica in replicas), strict=True
            ):
                gradients.append(copies[0].grad.to(parameter.dtype))
                for copy in copies[1:]:
                    gradients[-1] += copy.grad
            sums = {name: torch.stack([means[name] for means in results]).sum() for name in results[0]}
            return sums, gradients

        tensors = (*minibatch, *also)
        if not minibatch[0].is_cuda or parts:
            means, gradients = add_up(*tensors)
        else:
            self._recording = self._recording or Recording(add_up, tensors)
            means, gradients = self._recording(tensors)
        for parameter, gradient in zip(agent.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return dict(means)

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

    def share(self, parts: int) -> int:
        """Return the number of torch's threads of each of so many parts."""
        return max(1, self.threads // parts)

    def slices(self, length: int) -> list[slice]:
        """Return the part of each thread of this length, as equal as can be."""
        parts = self.parts(length)
        return [slice(length * part // parts, length * (part + 1) // parts) for part in range(parts)]
