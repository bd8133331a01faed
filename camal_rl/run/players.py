"""Processes that play: the threads of one share an interpreter, which only one of them can use at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing import get_context

from camal_rl.errors import UserError
from camal_rl.game.engine import check_shared_memory
from camal_rl.run.workers import Workers

PATIENCE = 10.0
"""Seconds in which a process can end by itself before it is killed."""


def start_games(
    make: Callable[[int], Any],
    rollout: Callable[..., Tensor],
    agent: Any,
    store: Any,
    args: Any,
    workers: Workers,
) -> tuple[Any, Callable[[np.ndarray], Tensor]]:
    """Start a training's games, in this process or dealt out to several; return them, and what plays them.

    Args:
        make: number of games -> `DoomVectorEnv`.
        rollout: `ppo.rollout`, or what plays instead.
        agent: network that decides.
        store: `ppo.Rollout` to play into.
        args: `ppo.Args`.
        workers: threads that play, or as many processes.

    Returns:
        Games, with a trainer's methods of `DoomVectorEnv`, and a function that plays a rollout by draws,
        (T, N), and returns the newest observations' values, (N,).

    Raises:
        UserError: as `DoomVectorEnv`.
    """
    slices = workers.slices(args.num_envs)
    if args.play_in == "processes" and len(slices) > 1:
        players = Players(make, rollout, slices, agent, store, args, workers)
        return players, players.play
    envs = make(args.num_envs)
    return envs, partial(rollout, agent, envs, store, args, workers=workers)


class Players:
    """Games that are dealt out to processes; arguments as of `start_games`, and each process's games.

    The agent's weights and the rollout lie in memory that all processes share. A process ignores the signals
    that stop a training, which are for the trainer, and ends when the trainer does, however that ends.

    Raises:
        UserError: a process ends.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        rollout: Callable[..., Tensor],
        slices: Sequence[slice],
        agent: Any,
        store: Any,
        args: Any,
        workers: Workers,
    ) -> None:
        self.slices = slices
        self.restarts = 0
        self._episodes: list[Any] = []
        self._agent = agent
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._weights = agent.replica(torch.float32).cpu()
        shared = (*store, *self._weights.parameters())
        check_shared_memory(slices[-1].stop, sum(tensor.nbytes for tensor in shared))
        for tensor in shared:
            tensor.share_memory_()
        context = get_context("forkserver")
        # So that torch is imported once for all; not ppo, which may be the program and is run once more.
        context.set_forkserver_preload(["camal_rl.doom", "camal_rl.run.monitor", __name__])
        threads, alone = workers.share(len(slices)), Workers(1, workers.play_dtype)
        try:
            for games, its_cores in zip(slices, shares_of_cores(len(slices)), strict=True):
                mine, its = context.Pipe()
                part = type(store)._make(field[:, games] for field in store)
                play = partial(rollout, self._weights, store=part, args=args, workers=alone)
                given = (its, partial(make, games.stop - games.start), play, threads, its_cores)
                process = context.Process(target=_serve, args=given, daemon=True)
                process.start()
                its.close()
                self._processes.append(process)
                self._connections.append(mine)
            self._answers()
        except BaseException:
            self.close()
            raise

    @torch.no_grad()
    def play(self, draws: np.ndarray) -> Tensor:
        """Play a rollout by draws, (T, N), and return the newest observations' values, (N,)."""
        for weight, newest in zip(self._weights.parameters(), self._agent.parameters(), strict=True):
            weight.copy_(newest)
        values = self._each("play", [{"draws": draws[:, games]} for games in self.slices])
        return torch.from_numpy(np.concatenate(values))

    def reset(self, *, seed: Sequence[int]) -> None:
        """Start an episode in every game."""
        self._each("reset", [{"seed": seed[games]} for games in self.slices])

    def finished_episodes(self) -> list[Any]:
        """Return the episodes that have ended since the last call, in the order of their ends."""
        episodes, self._episodes = self._episodes, []
        return sorted(episodes)

    def state_dict(self) -> dict[str, Any]:
        """Return each game's exact state, as `DoomVectorEnv.state_dict`."""
        states = self._each("state_dict", [{}] * len(self.slices))
        return {"envs": list(chain(*(state["envs"] for state in states)))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay to the states of `state_dict`."""
        self._each("load_state_dict", [{"state": {"envs": state["envs"][games]}} for games in self.slices])

    def close(self) -> None:
        """End all processes and their engines."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(PATIENCE)
            process.kill()
        self._connections, self._processes = [], []

    def _each(self, method: str, options: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Call a method in all processes at once."""
        with suppress(OSError):  # a process has ended, and so gives no answer
            for connection, words in zip(self._connections, options, strict=True):
                connection.send((method, words))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = []
        for connection, process in zip(self._connections, self._processes, strict=True):
            try:
                answers.append(connection.recv())
            except (EOFError, OSError) as error:
                process.join(PATIENCE)
                advice = (
                    "it says why above. In a program of your own, call train under `if __name__ == "
                    '"__main__":`, as multiprocessing asks for'
                    if process.exitcode == 1
                    else "check free memory (`free -m`) and who may have ended it (`dmesg`)"
                )
                raise UserError(
                    f"a process that plays has ended (exit code {process.exitcode}): {advice}. The same "
                    "command goes on from the last checkpoint."
                ) from error
        for answer, _, _ in answers:
            if isinstance(answer, Exception):
                raise answer
        results, episodes, restarts = zip(*answers, strict=True)
        self._episodes += chain(*episodes)
        self.restarts = sum(restarts)
        return list(results)


def shares_of_cores(parts: int) -> list[list[int]]:
    """Deal out the cores that this process may use; a part has none where there are fewer, or none are told.

    A player and its engines take turns. Where they keep to one core, each finds it awake when the other has
    done its part, and plays a sixth faster (measured on 2 cores and on 16).
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [cores[len(cores) * part // parts : len(cores) * (part + 1) // parts] for part in range(parts)]


def _serve(
    connection: Connection,
    make: Callable[[], Any],
    rollout: Callable[..., Tensor],
    threads: int,
    cores: Sequence[int],
) -> None:
    """Start some of the games, and do with them what the trainer asks for until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    if cores:
        os.sched_setaffinity(0, cores)
    with suppress(EOFError, OSError):  # from the connection, when the trainer ends
        try:
            envs = make()
        except Exception as error:
            connection.send((error, [], 0))
            return

        def play(draws: np.ndarray) -> np.ndarray:  # a tensor would be sent as a file
            return rollout(envs=envs, draws=draws).numpy()

        answer: Any = None
        with closing(envs):
            while True:
                connection.send((answer, envs.finished_episodes(), envs.restarts))
                method, options = connection.recv()
                try:
                    answer = (play if method == "play" else getattr(envs, method))(**options)
                except Exception as error:
                    answer = ExceptionWithTraceback(error, error.__traceback__)
