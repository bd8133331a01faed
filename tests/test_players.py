"""Processes that play: that they do what one process does, and what is left where one of them ends."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run as run_python
from conftest import small_args
from torch import Tensor

from camal_rl import ppo
from camal_rl.errors import UserError
from camal_rl.run.players import Players, shares_of_cores, start_games
from camal_rl.run.workers import Workers


class FakeGames:
    """Games whose state is the seed they were given, and whose images are full of it."""

    def __init__(self, num_envs: int) -> None:
        if num_envs > 3:
            raise UserError("too many games")
        self.num_envs, self.restarts = num_envs, num_envs
        self.seeds: list[int] = []

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


def images_of(seeds: list[int]) -> np.ndarray:
    """Images, uint8 (n, 4, 52, 60), that differ."""
    return np.array([np.random.default_rng(seed).integers(256, size=(4, 52, 60)) for seed in seeds], np.uint8)


def play(
    agent: ppo.Agent, envs: FakeGames, store: ppo.Rollout, args: Any, draws: np.ndarray, workers: Workers
) -> Tensor:
    """Write the draws, and what the agent thinks of every game's image."""
    if args.method == "suppress":
        raise ValueError("a mistake in here")
    if args.method == "balanced":
        os.kill(os.getpid(), signal.SIGKILL)
    with torch.no_grad():
        output = agent(torch.from_numpy(images_of(envs.seeds)))
    store.rewards[:] = torch.from_numpy(draws)
    store.logits[0] = output.logits
    assert (torch.get_num_threads(), workers.threads) == (1, 1)
    return output.value


def start(folder: Path, num_envs: int, **options: Any) -> Any:
    args = small_args(folder, num_envs=num_envs, play_in="processes", **options)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    store = ppo.allocate(args, agent)
    games, playing = start_games(FakeGames, play, agent, store, args, Workers(args.torch_threads))
    assert isinstance(games, Players)
    return games, playing, agent, store


@pytest.mark.slow
def test_games_are_dealt_out_and_their_results_come_back_in_order(tmp_path: Path) -> None:
    games, playing, agent, store = start(tmp_path, 6, torch_threads=4)
    try:
        seeds = [6, 5, 4, 3, 2, 1]
        games.reset(seed=seeds)
        for _ in range(2):  # the second time with other weights
            with torch.no_grad():
                agent.critic.bias += 1
                expected = agent(torch.from_numpy(images_of(seeds)))
            draws = np.random.default_rng(0).random((16, 6), np.float32)
            torch.testing.assert_close(playing(draws), expected.value, rtol=1e-4, atol=1e-5)
            assert torch.equal(store.rewards, torch.from_numpy(draws))
            torch.testing.assert_close(store.logits[0], expected.logits, rtol=1e-4, atol=1e-5)
        assert games.state_dict() == {"envs": seeds}
        games.load_state_dict({"envs": seeds})
        assert games.state_dict() == {"envs": [seed + 100 for seed in seeds]}
        episodes = games.finished_episodes()
        assert episodes == sorted(episodes)
        assert {end for end, _, _ in episodes} == {*seeds, *(seed + 100 for seed in seeds)}
        assert games.finished_episodes() == []
        assert games.restarts == 6
    finally:
        games.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_in_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too many games"):
        start(tmp_path, 8, torch_threads=2)
    games, playing, *_ = start(tmp_path, 2, torch_threads=2, method="suppress")
    with pytest.raises(ValueError, match="a mistake in here") as told:
        playing(np.zeros((16, 2)))
    assert 'raise ValueError("a mistake in here")' in str(told.value.__cause__)
    games.close()
    games, playing, *_ = start(tmp_path, 2, torch_threads=2, method="balanced")
    with pytest.raises(UserError, match=r"a process that plays has ended \(exit code -9\)"):
        playing(np.zeros((16, 2)))
    games.close()


@pytest.mark.slow
def test_a_program_that_does_not_guard_its_main_part_is_told_to(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    options = ("--torch-threads", "2", "--total-timesteps", "1024", "--runs-dir", str(tmp_path / "runs"))
    program.write_text(f"from camal_rl import ppo\nppo.train(ppo.parse_args({options}))\n")
    told = run_python(str(program), folder=tmp_path)
    assert "call train under `if __name__" in told.stderr.splitlines()[-1]


def test_every_process_has_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5, 6, 7}, raising=False)
    assert shares_of_cores(1) == [[4, 5, 6, 7]]
    assert shares_of_cores(3) == [[4], [5], [6, 7]]
    assert shares_of_cores(6) == [[], [4], [5], [], [6], [7]]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert shares_of_cores(2) == [[], []]
