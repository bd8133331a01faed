"""A trained run's folder -> an agent that plays fresh episodes, and every frame's attention against its mask.

All episodes are played to their end, several games side by side, on engine seeds that training never uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from camal_rl import attention, masks, metrics, ppo
from camal_rl.camal import METHODS as SUPERVISED
from camal_rl.doom import EVALUATION_SEEDS, FRAME_STACK, DoomEnv
from camal_rl.errors import UserError
from camal_rl.game.definition import Definition, load_definition
from camal_rl.game.shift import Shift
from camal_rl.run import folder as run_folder


class TrainedRun(NamedTuple):
    """What a run's folder holds, ready to play."""

    folder: Path
    trained: dict[str, dict[str, Any]]  # args.json
    checkpoint: str  # SHA-256 of checkpoint.pt, in hexadecimal
    definition: Definition
    agent: ppo.Agent
    action_names: list[str]
    steps: int  # agent steps trained
    method: str  # that makes the map, of `attention.METHODS`

    @property
    def label(self) -> str:
        """Method and seed."""
        return f"{self.trained['run']['method']} seed {self.trained['run']['seed']}"

    @property
    def title(self) -> str:
        """Environment, method and seed."""
        return f"{self.definition.name}, {self.label}"

    @property
    def device(self) -> torch.device:
        """Where the agent is."""
        return next(self.agent.parameters()).device

    def env(self, shift: Shift | None = None) -> DoomEnv:
        """A game as the agent was trained on, but for a visual change."""
        environment = self.trained["environment"]
        return DoomEnv(
            self.definition,
            environment["frame_size"],
            environment["render_resolution"],
            prepare=shift.prepare if shift else None,
        )


def load_run(folder: Path, toml: Path | None, device: torch.device, method: str | None = None) -> TrainedRun:
    """Read a run's folder.

    Args:
        toml: the environment's file, where it is not one of the package's.
        method: that makes the map, of `attention.METHODS`; default: the one it was trained with.

    Raises:
        UserError: there is no run, its files are damaged, or the environment is another.
    """
    trained = run_folder.read_args_file(folder)
    path = folder / "checkpoint.pt"
    mismatch = f"{folder}: checkpoint.pt does not belong to args.json"
    try:
        definition = load_definition(str(trained["run"]["env"]) if toml is None else toml)
        run_folder.check_definition(folder, trained, definition)
        checkpoint = run_folder.load_checkpoint(path)
        if checkpoint is None:
            raise UserError(f"{folder} has no checkpoint.pt: train first, python -m camal_rl.ppo.")
        weights = checkpoint["agent"]
        agent = ppo.Agent(
            len(weights["actor.weight"]),
            (FRAME_STACK, *trained["environment"]["frame_size"]),
            str(trained["machine"]["precision"]),
        )
        agent.load_state_dict(weights)
        if not all(bool(value.isfinite().all()) for value in agent.state_dict().values()):
            raise UserError(f"{folder}: the network holds NaN or infinity, so its training diverged.")
        run = TrainedRun(
            folder=folder,
            trained=trained,
            checkpoint=hashlib.sha256(path.read_bytes()).hexdigest(),
            definition=definition,
            agent=agent.to(device).eval(),
            action_names=[],
            steps=int(checkpoint["iteration"]) * trained["ppo"]["num_envs"] * trained["ppo"]["num_steps"],
            method=method or trained["attention"]["attention"],
        )
        if run.method not in attention.METHODS or trained["run"]["method"] not in METHODS:
            raise ValueError(f"attention {run.method!r}, method {trained['run']['method']!r}")
        _ = run.title
        env = run.env()
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{mismatch}: {' '.join(str(error).split())[:200]}") from error
    env.close()
    if len(env.actions) != agent.actor.out_features:
        raise UserError(
            f"{mismatch}: {agent.actor.out_features} actions, and {definition.name} has {len(env.actions)}."
        )
    return run._replace(action_names=env.action_names)


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Randomness of its own for every purpose."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


EPISODES, ACTIONS, DISTURBANCE, SAMPLE, ORDER = range(5)
"""Purposes of randomness; those of an episode have its index as well."""


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Distinct engine seeds, none of which training uses; more episodes begin with the same ones."""
    rng = generator(seed, EPISODES)
    seeds: dict[int, None] = {}
    while len(seeds) < episodes:
        seeds[int(rng.integers(EVALUATION_SEEDS, 2**32))] = None
    return list(seeds)


METHODS = (*SUPERVISED, "vanilla")
"""Methods of training."""


class Undefined(NamedTuple):
    """Stands where there is no number, and says why."""

    reason: str


NO_TARGET = "no frame had a target in view"


@dataclass(frozen=True)
class Settings:
    """How episodes are played."""

    seed: int = 0
    """Of the actions."""
    greedy: bool = False
    """Take the most probable action; CleanRL's evaluation samples, as is done here by default."""
    max_steps: int = 2100
    """Agent steps after which an episode is cut short: some scenarios have no time limit."""
    num_envs: int = 8
    """Games in parallel, and so frames in a batch of the network: another number can round differently."""


@dataclass
class Episode:
    """An episode as it was played, with a list entry for each of its T frames, or for each with a target."""

    seed: int
    """Of the engine."""
    ending: str = ""
    """`terminated`, `truncated` by the scenario's time limit, or `cut` after `--max-steps`."""
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    heats: list[np.ndarray] = field(default_factory=list)
    """(h, w) each; empty where they were not to be kept."""
    dead: list[bool] = field(default_factory=list)
    visible: list[bool] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    """Alpha, beta, IoU and so on, of the frames with a target."""

    @property
    def total(self) -> float:
        """Raw return."""
        return float(sum(self.rewards))

    def column(self, name: str) -> np.ndarray:
        """One measure over the frames with a target."""
        return np.array([frame[name] for frame in self.agreement], float)


class Frame(NamedTuple):
    """A frame as the agent saw it."""

    image: np.ndarray  # uint8 (stack, H, W)
    mask: np.ndarray  # uint8 {0, 1} (h_label, w_label)
    heat: np.ndarray  # float32 (h, w) in [0, 1]
    action: int  # that was taken


@dataclass
class Sample:
    """Frames with a target, `size` of them, drawn uniformly from all that were played."""

    size: int
    rng: np.random.Generator
    seen: int = 0
    frames: list[Frame] = field(default_factory=list)

    def offer(self, image: np.ndarray, mask: np.ndarray, heat: np.ndarray, action: int) -> None:
        """Keep a copy of a frame so that all seen so far are equally likely to be kept."""
        self.seen += 1
        place = len(self.frames) if self.seen <= self.size else int(self.rng.integers(self.seen))
        if place < self.size:
            self.frames[place : place + 1] = [Frame(image.copy(), mask.copy(), heat.copy(), action)]


class _Game:
    """One of the games that are played side by side, and the episode it is in."""

    def __init__(self, env: DoomEnv, image: np.ndarray, shift: Shift | None, max_steps: int) -> None:
        self.env = env
        self.image = image  # what the agent sees: a row of the batch
        self.disturb = shift.disturb if shift else None
        self.max_steps = max_steps
        self.episode: Episode | None = None
        self.keep = False

    def begin(self, engine_seed: int, seed: int, index: int, keep: bool) -> Episode:
        self.episode, self.keep = Episode(engine_seed), keep
        self.choice = generator(seed, ACTIONS, index)
        self.disturbance = generator(seed, DISTURBANCE, index)
        self.env.begin_episode(engine_seed)
        self.image[:] = self.env.image
        if self.disturb:
            self.disturb(self.image[-1], self.disturbance)
            self.image[:-1] = self.image[-1]
        return self.episode

    def choose(self, probabilities: np.ndarray, greedy: bool) -> int:
        """An action for these probabilities, (actions,)."""
        if greedy:
            return int(probabilities.argmax())
        return min(
            int(np.searchsorted(probabilities.cumsum(), self.choice.random(), side="right")),
            len(probabilities) - 1,
        )

    def act(self, action: int, value: float, heat: np.ndarray, dead: bool) -> None:
        """Record the frame and what was made of it, then act; an episode that ends gets its ending."""
        episode, mask = self.episode, self.env.mask
        assert episode is not None
        visible = bool(mask.any())
        episode.actions.append(action)
        episode.values.append(value)
        episode.dead.append(dead)
        episode.visible.append(visible)
        if self.keep:
            episode.heats.append(heat.copy())
        if visible:
            weights = masks.mask_weights(mask[None], (heat.shape[0], heat.shape[1]))  # (1, 2, h, w)
            alpha, beta = (heat * weights[0]).sum(axis=(1, 2))
            agreement = metrics.alignment(heat[None], mask[None])
            episode.agreement.append(
                {name: values[0] for name, values in agreement.items()}
                | {
                    "step": len(episode.actions) - 1,
                    "alpha": alpha,
                    "beta": beta,
                    "iou_ceiling": metrics.iou_ceiling(weights, mask[None])[0],
                }
            )
        reward, terminated, truncated = self.env.advance(action)
        episode.rewards.append(reward)
        if terminated or truncated:
            episode.ending = "terminated" if terminated else "truncated"
        elif len(episode.actions) == self.max_steps:
            episode.ending = "cut"
        elif self.disturb:  # the frames before keep the look they had
            self.image[:-1] = self.image[1:]
            self.image[-1] = self.env.image[-1]
            self.disturb(self.image[-1], self.disturbance)
        else:
            self.image[:] = self.env.image


@torch.no_grad()
def play(
    run: TrainedRun,
    seeds: Sequence[int],
    settings: Settings,
    *,
    shift: Shift | None = None,
    keep: int = 0,
    samples: Sequence[Sample] = (),
    done: Callable[[], object] = lambda: None,
) -> list[Episode]:
    """Play an episode for every engine seed; the first `keep` keep their heat maps.

    Games go on side by side, and whichever is free takes the next seed, so that all episodes are played to
    their end: the first hundred to finish would be the short ones. `done` is called after each.
    """
    noise = torch.Generator(run.device).manual_seed(settings.seed)
    weights = run.agent.weights(run.method)
    episodes: list[Episode] = []
    with ExitStack() as cleanup:
        envs: list[DoomEnv] = []
        for _ in range(min(settings.num_envs, len(seeds))):
            envs.append(run.env(shift))
            cleanup.callback(envs[-1].close)
        threads = cleanup.enter_context(ThreadPoolExecutor(len(envs), thread_name_prefix="evaluate"))
        # As many rows for few games as for many, because rounding depends on the size of a batch.
        images = np.zeros((settings.num_envs, *envs[0].image.shape), np.uint8)
        games = [
            _Game(env, image, shift, settings.max_steps) for env, image in zip(envs, images, strict=False)
        ]
        while True:
            for game in games:
                if game.episode is None and len(episodes) < len(seeds):
                    index = len(episodes)
                    episodes.append(game.begin(seeds[index], settings.seed, index, index < keep))
            running = [(row, game) for row, game in enumerate(games) if game.episode is not None]
            if not running:
                return episodes
            output = run.agent(torch.from_numpy(images).to(run.device), weights)
            cam = run.agent.cam(output, run.method, noise, weights)
            heats = attention.normalize(cam).cpu().numpy()  # (N, h, w)
            dead = attention.is_dead(cam).tolist()
            probabilities = output.logits.double().softmax(dim=1).cpu().numpy()  # (N, actions)
            values = output.value.tolist()
            moves = []
            for row, game in running:
                action = game.choose(probabilities[row], settings.greedy)
                if samples and game.env.mask.any():
                    for sample in samples:
                        sample.offer(images[row], game.env.mask, heats[row], action)
                moves.append(threads.submit(game.act, action, values[row], heats[row], dead[row]))
            for move in moves:
                move.result()
            for _, game in running:
                if game.episode is not None and game.episode.ending:
                    game.episode = None
                    done()
