"""Processes that play: that they do what one process does, and what is left where one of them ends."""

import multiprocessing
import os
import signal
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from camal_rl.errors import UserError
from camal_rl.run.players import Players, start_games
from camal_rl.run.workers import Workers


class Store(NamedTuple):
    """A rollout of one field."""

    draws: Tensor  # (T, N)


class Agent(torch.nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def replica(self, dtype: torch.dtype) -> "Agent":
        return Agent().to(dtype)


class FakeGames:
    """Games whose state is the seed they were given."""

    def __init__(self, num_envs: int) -> None:
        if num_envs > 3:
            raise UserError("too many games")
        self.num_envs, self.restarts = num_envs, num_envs
        self.seeds: list[int] = []
        self.threads = torch.get_num_threads()

    def reset(self, seed: list[int]) -> None:
        self.seeds = seed

    def state_dict(self) -> dict[str, Any]:
        return {"envs": self.seeds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seeds = [seed + 100 for seed in state["envs"]]

    def finished_episodes(self) -> list[tuple[int, float, int]]:
        return [(seed, 0.5, 1) for seed in reversed(self.seeds)]

    def close(self) -> None:
        pass


def play(
    agent: Agent, envs: FakeGames, store: Store, args: Any, draws: np.ndarray, workers: Workers
) -> Tensor:
    """Write the draws times the agent's weight; the values are what a caller has to find out."""
    if args.fails:
        raise ValueError("a mistake in here")
    if args.ends:
        os.kill(os.getpid(), signal.SIGKILL)
    store.draws[:] = torch.from_numpy(draws) * agent.weight
    return torch.tensor([[*envs.seeds], [envs.threads] * envs.num_envs, [workers.threads] * envs.num_envs]).T


def start(num_envs: int, threads: int = 2, fails: bool = False, ends: bool = False) -> Any:
    args = SimpleNamespace(num_envs=num_envs, play_in="processes", fails=fails, ends=ends)
    agent, store = Agent(), Store(torch.zeros(4, num_envs))
    players, playing = start_games(FakeGames, play, agent, store, args, Workers(threads))
    assert isinstance(players, Players)
    return players, playing, agent, store


@pytest.mark.slow
def test_games_are_dealt_out_and_their_results_come_back_in_order() -> None:
    players, playing, agent, store = start(5, threads=4)
    try:
        players.reset(seed=[5, 4, 3, 2, 1])
        with torch.no_grad():
            agent.weight.fill_(3)
        draws = np.random.default_rng(0).random((4, 5), np.float32)
        values = playing(draws)
        assert torch.equal(store.draws, torch.from_numpy(3 * draws))
        assert values.tolist() == [[seed, 1, 1] for seed in (5, 4, 3, 2, 1)]
        assert players.state_dict() == {"envs": [5, 4, 3, 2, 1]}
        players.load_state_dict({"envs": [1, 2, 3, 4, 5]})
        assert players.state_dict() == {"envs": [101, 102, 103, 104, 105]}
        episodes = players.finished_episodes()
        assert episodes == sorted(episodes)
        assert {end for end, _, _ in episodes} == {1, 2, 3, 4, 5, 101, 102, 103, 104, 105}
        assert players.finished_episodes() == []
        assert players.restarts == 5
    finally:
        players.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_in_the_trainer() -> None:
    with pytest.raises(UserError, match="too many games"):
        start(8)
    players, playing, *_ = start(2, fails=True)
    with pytest.raises(ValueError, match="a mistake in here") as told:
        playing(np.zeros((4, 2)))
    assert 'raise ValueError("a mistake in here")' in str(told.value.__cause__)
    players.close()
    players, playing, *_ = start(2, ends=True)
    with pytest.raises(UserError, match=r"a process that plays has ended \(exit code -9\)"):
        playing(np.zeros((4, 2)))
    players.close()
