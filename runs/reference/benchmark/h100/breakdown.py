"""Where an iteration's time goes (log.txt): python breakdown.py DEVICE GAMES PLAY_IN METHOD [THREADS]."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from camal_rl import benchmark, ppo
from camal_rl.run import workers


class Eager:
    """A function that is called and not recorded."""

    def __init__(self, function: Callable[..., Any], tensors: Any) -> None:
        self.function = function

    def __call__(self, tensors: Any) -> Any:
        return self.function(*tensors)


def main(device: str, games: str, play_in: Any, method: Any, threads: str = "0") -> None:
    """Time six iterations, the first of which does not count, and print medians in milliseconds."""
    args = ppo.Args(
        device=device, num_envs=int(games), play_in=play_in, method=method, torch_threads=int(threads)
    )
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[[], Any]) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        times[name].append(1000 * (time.perf_counter() - began))
        return result

    with ExitStack() as stack:
        loop = timed("start", lambda: benchmark.Loop(args, stack))
        store = loop.store
        for iteration in range(6):
            played = (store.rewards, store.values, store.ends, timed("play", loop.play))
            results = timed("gae", lambda played=played: ppo.gae(*played, args.gamma, args.gae_lambda))
            loop.batch = timed(
                "flatten", lambda results=results: ppo.flatten(store, *results, args, loop.device)
            )
            timed("update", loop.update)
            if iteration == 0:
                times.clear()
        medians = {name: float(np.median(values)) for name, values in times.items()}
        print(device, games, play_in, method, {name: round(ms, 2) for name, ms in medians.items()}, end=" ")
        print(f"SPS {1000 * args.batch_size / sum(medians.values()):.0f}", end=" ")
        print(f"play SPS {1000 * args.batch_size / medians['play']:.0f}")
        workers.Recording = Eager  # type: ignore[assignment, misc]
        loop.workers._recording = None
        for _ in range(3):
            timed("update without a graph", loop.update)
        print(f"update without a graph {np.median(times['update without a graph']):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
