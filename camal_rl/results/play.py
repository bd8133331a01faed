"""A trained run's folder -> an agent that plays fresh episodes, and every frame's attention against its mask.

All episodes are played to their end, several games side by side, on engine seeds that training never uses.
"""

from __future__ import annotations

import hashlib
import re
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from camal_rl import attention, masks, metrics, ppo
from camal_rl.doom import EVALUATION_SEEDS, FRAME_STACK, DoomEnv
from camal_rl.errors import UserError, in_one_line
from camal_rl.game.definition import Definition, available, copied_toml, load_definition
from camal_rl.game.shift import Shift
from camal_rl.run import folder as run_folder
from camal_rl.run.device import allow_tf32


class TrainedRun(NamedTuple):
    """A run's folder, ready to play."""

    folder: Path
    trained: dict[str, dict[str, Any]]  # content of args.json: "args" and "definition"
    checkpoint_sha256: str | Undefined  # of checkpoint.pt or model.safetensors, in hexadecimal
    written: float  # when, in seconds since 1970
    definition: Definition
    agent: ppo.Agent | Adopted  # computes in the precision of training
    method: str  # makes the map, one of `attention.METHODS`
    label: str  # name and seed
    steps: int  # agent steps trained
    action_names: list[str]

    @property
    def title(self) -> str:
        """Environment, name and seed."""
        return f"{self.definition.name}, {self.label}"

    @property
    def device(self) -> torch.device:
        """The agent's device."""
        return next(self.agent.parameters()).device

    def env(self, shift: Shift | None = None) -> DoomEnv:
        """Start a game as the agent was trained on, but for a visual change."""
        args = self.trained["args"]
        prepare, limit = shift.prepare if shift else None, args.get("max_episode_steps")
        looks = (args["frame_size"], args["render_resolution"])
        return DoomEnv(self.definition, *looks, prepare=prepare, max_episode_steps=limit)

    @torch.no_grad()
    def act(self, image: np.ndarray, greedy: bool = False) -> tuple[int, np.ndarray]:
        """Decide for an observation's image, uint8 (stack, H, W).

        Returns:
            An action, drawn with torch's global generator or the most probable one, and attention, float32
            (h, w) in [0, 1]; `metrics.upsample` brings it to the size of frames.
        """
        output, cam = self.attend(image[None])
        probabilities = output.logits[0].softmax(dim=0)
        action = probabilities.argmax() if greedy else probabilities.multinomial(1)
        return int(action), attention.normalize(cam)[0].cpu().numpy()

    def attend(self, images: np.ndarray, noise: torch.Generator | None = None) -> tuple[ppo.Output, Tensor]:
        """Show the agent images, uint8 (B, stack, H, W).

        Returns:
            Its output and its attention, (B, h, w), not normalized; `smoothgrad` draws from `noise`.
        """
        with torch.set_grad_enabled(isinstance(self.agent, Adopted)):  # whose map is a backward pass
            output = self.agent(torch.from_numpy(images).to(self.device))
        return output, self.cam(output, self.method, noise)

    def cam(self, output: ppo.Output, method: str, noise: torch.Generator | None = None) -> Tensor:
        """Return attention of this kind for the agent's output, (B, h, w), not normalized."""
        if isinstance(self.agent, ppo.Agent):
            return attention.critic_cam(self.agent, output, method, noise)
        target = output.logits if method == "diffgradcam" else output.value
        return attention.class_activation_map(output.feature_maps, target, method, create_graph=False)


class Adopted(nn.Module):
    """A network that was not trained here, in the place of an agent."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> ppo.Output:
        """Images are uint8 (B, stack, H, W)."""
        logits, value, feature_maps = self.network(images)
        return ppo.Output(logits, value, feature_maps.flatten(1), feature_maps)


def adopt(
    network: nn.Module,
    folder: Path,
    steps: int,
    *,
    method: str = "magnitude",
    toml: Path | None = None,
    frame_size: tuple[int, int] = (84, 84),
    render_resolution: str = "320x240",
) -> TrainedRun:
    """Return an agent that was not trained here as a run, for `camal_rl.evaluate.evaluate`.

    Args:
        network: takes images, uint8 (B, stack, H, W) on its device, and returns logits (B, actions) of
            `DoomEnv`'s actions, values (B,), and the feature maps (B, K, h, w) that they are computed from.
        folder: `<runs-dir>/<env>/<name>/seed<k>` says which environment it plays, and its row in reports.
        steps: agent steps trained.
        method: kind of map that it was trained with, if with one; `smoothgrad` and `integrated-gradients`
            can't be had of it.
        toml: the environment's file, where it is not in the package.
        frame_size: H and W of the images.
        render_resolution: one of `RENDER_RESOLUTIONS`, of the engine and so of masks.

    Raises:
        UserError: the folder has another form, or the network's outputs do not fit the environment.
    """
    env_name, name, seed = folder.parts[-3:] if len(folder.parts) > 2 else ("", "", "")
    if not re.fullmatch(r"seed(0|[1-9]\d*)", seed):
        raise UserError(f"{folder}: should end in ENVIRONMENT/NAME/seedK, which reports go by.")
    definition = load_definition(toml or env_name)
    args = {
        "env": env_name,
        "method": "adopted",
        "name": name,
        "seed": int(seed[4:]),
        "frame_size": frame_size,
        "render_resolution": render_resolution,
        "precision": "fp32",
        "attention": method,
    }
    run = TrainedRun(
        folder=folder,
        trained={"args": args, "definition": definition.described()},
        checkpoint_sha256=Undefined("the network was not read from a run's folder"),
        written=time.time(),
        definition=definition,
        agent=Adopted(network),
        method=method,
        label=f"{name} seed {seed[4:]}",
        steps=steps,
        action_names=[],
    )
    with closing(run.env()) as env:
        logits, value, feature_maps = network(torch.from_numpy(env.image[None]).to(run.device))
        shapes = [tuple(output.shape) for output in (logits, value, feature_maps)]
        actions = len(env.actions)
        if shapes[:2] != [(1, actions), (1,)] or len(shapes[2]) != 4:
            raise UserError(
                f"the network returned shapes {', '.join(map(str, shapes))} for one image of {env_name}; "
                f"needed are logits (1, {actions}), values (1,) and feature maps (1, K, h, w)."
            )
        return run._replace(action_names=env.action_names)


def load_run(folder: Path, toml: Path | None, device: torch.device, method: str | None = None) -> TrainedRun:
    """Read a run's folder.

    Args:
        toml: the environment's file, where neither the package nor the run's folder has it.
        method: makes the map, one of `attention.METHODS`; default: the one it was trained with.

    Raises:
        UserError: there is no run, its files are damaged, or the environment is another.
    """
    trained = run_folder.read_args_file(folder)
    args = trained["args"]
    path = run_folder.weights_file(folder)
    mismatch = f"{folder}: {path.name} does not belong to args.json"
    try:
        own = toml or copied_toml(folder / "environment")
        if own is None and args["env"] not in available():
            raise UserError(f"{folder}: no environment named {args['env']!r}. Give its TOML file with --env.")
        definition = load_definition(own or str(args["env"]))
        run_folder.check_definition(folder, trained["definition"], definition.described())
        parameters, iteration = run_folder.load_weights(path)
        agent = ppo.Agent(len(parameters["actor.weight"]), (FRAME_STACK, *args["frame_size"]))
        agent.load_state_dict(parameters)
        dtype = torch.bfloat16 if args["precision"] == "bf16" else torch.float32
        allow_tf32(args["precision"] == "tf32")
        run = TrainedRun(
            folder=folder,
            trained=trained,
            checkpoint_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            written=path.stat().st_mtime,
            definition=definition,
            agent=agent.replica(dtype).to(device),
            method=method or args["attention"],
            label=f"{args['name']} seed {args['seed']}",
            steps=iteration * args["num_envs"] * args["num_steps"],
            action_names=[],
        )
        if run.method not in attention.METHODS:
            raise ValueError(f"attention {run.method!r}")
        env = run.env()
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{mismatch}: {in_one_line(error)[:200]}") from error
    env.close()
    if not all(bool(value.isfinite().all()) for value in parameters.values()):
        raise UserError(f"{folder}: the network holds NaN or infinity, so its training diverged.")
    if len(env.actions) != agent.actor.out_features:
        raise UserError(
            f"{mismatch}: {agent.actor.out_features} actions, and {definition.name} has {len(env.actions)}."
        )
    return run._replace(action_names=env.action_names)


EPISODES, ACTIONS, DISTURBANCE, SAMPLE, ORDER = range(5)
"""Purposes of randomness."""


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Return randomness of its own for every purpose, of which an episode's index can be a part."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=purpose))


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Return distinct engine seeds, none of which training uses; more episodes begin with the same ones."""
    rng = generator(seed, EPISODES)
    seeds: dict[int, None] = {}
    while len(seeds) < episodes:
        seeds[int(rng.integers(EVALUATION_SEEDS, 2**32))] = None
    return list(seeds)


class Undefined(NamedTuple):
    """The reason why there is no number, in its place."""

    reason: str


NO_TARGET = "no frame had a target in view"


class Settings(Protocol):
    """How episodes are played."""

    seed: int  # of the actions
    greedy: bool  # take the most probable action instead of sampling, which is CleanRL's way
    max_steps: int  # agent steps after which an episode is cut short: some scenarios never end
    num_envs: int  # games in parallel


@dataclass
class Episode:
    """An episode of T agent steps as it was played."""

    seed: int
    """The engine's seed."""
    ending: str = ""
    """`terminated`, `truncated` by a time limit, or `cut` after `max_steps`."""
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    heats: list[np.ndarray] = field(default_factory=list)
    """Attention in [0, 1], (h, w) each; empty where it was not to be kept."""
    agreement: list[dict[str, Any]] = field(default_factory=list)
    """Step, alpha, beta, IoU, packed mask and so on of each frame with a target."""
    attention: np.ndarray | float = 0.0
    """Sum of the heat maps on these frames, (h, w)."""

    @property
    def total(self) -> float:
        """Raw return."""
        return float(sum(self.rewards))

    @property
    def ious(self) -> np.ndarray:
        """IoU of each frame, (T,); NaN where no target is in view."""
        found = {frame["step"]: frame["iou"] for frame in self.agreement}
        return np.array([found.get(step, np.nan) for step in range(len(self.actions))])

    def column(self, name: str) -> np.ndarray:
        """Return a measure of all frames with a target."""
        return np.array([frame[name] for frame in self.agreement], float)


def add_constant_iou(episodes: Sequence[Episode]) -> None:
    """Score the mean of all heat maps on every frame with a target, as its "iou_constant".

    It is the IoU of attention that never moves: what an IoU is above it has followed the target.
    """
    seen = [episode for episode in episodes if episode.agreement]
    if seen:
        mean = torch.from_numpy(sum(episode.attention for episode in seen))  # up to a factor
        constant = attention.normalize(mean[None]).numpy()  # (1, h, w)
    for episode in seen:
        for frame in episode.agreement:
            shape, packed = frame["mask"]
            mask = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(1, *shape)
            frame["iou_constant"] = metrics.iou(constant, mask)[0]


class Frame(NamedTuple):
    """A frame as the agent saw it."""

    image: np.ndarray  # uint8 (stack, H, W)
    mask: np.ndarray  # uint8 {0, 1} (h_label, w_label)
    heat: np.ndarray  # float32 (h, w) in [0, 1]
    action: int  # taken


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
    """A game among those that are played side by side, and the episode it is in."""

    def __init__(self, env: DoomEnv, image: np.ndarray, shift: Shift | None, settings: Settings) -> None:
        self.env = env
        self.image = image  # what the agent sees: a row of the batch
        self.disturb = shift.disturb if shift else None
        self.settings = settings
        self.episode = Episode(0, ending="none has begun")

    def begin(self, engine_seed: int, index: int, keep: bool) -> Episode:
        """Begin the episode of this index; `keep` its heat maps."""
        self.episode, self.keep = Episode(engine_seed), keep
        self.choice = generator(self.settings.seed, ACTIONS, index)
        self.disturbance = generator(self.settings.seed, DISTURBANCE, index)
        self.env.begin_episode(engine_seed)
        self.image[:] = self.env.image
        if self.disturb:
            self.disturb(self.image[-1], self.disturbance)
            self.image[:-1] = self.image[-1]
        return self.episode

    def choose(self, probabilities: np.ndarray) -> int:
        """Choose an action by its probability, (actions,)."""
        if self.settings.greedy:
            return int(probabilities.argmax())
        place = np.searchsorted(probabilities.cumsum(), self.choice.random(), side="right")
        return min(int(place), len(probabilities) - 1)

    def act(self, action: int, value: float, heat: np.ndarray, dead: bool, plain: np.ndarray) -> None:
        """Record the frame and what was made of it, then act; an episode that ends gets its ending.

        `plain` is the attention of Eq. 3, the same as `heat` where that is Grad-CAM.
        """
        episode, mask = self.episode, self.env.mask
        if mask.any():
            weights = masks.mask_weights(mask[None], (heat.shape[0], heat.shape[1]))  # (1, 2, h, w)
            alpha, beta = (heat * weights[0]).sum(axis=(1, 2))
            measures = metrics.alignment(heat[None], mask[None])
            measures["iou_gradcam"] = metrics.iou(plain[None], mask[None])
            measures["iou_mask"] = metrics.iou_mask(weights, mask[None])
            packed = (mask.shape, zlib.compress(mask.tobytes(), 1))  # some 500 bytes
            episode.agreement.append(
                {name: values[0] for name, values in measures.items()}
                | {"alpha": alpha, "beta": beta, "dead_map_fraction": dead}
                | {"step": len(episode.actions), "mask": packed}
            )
            episode.attention += heat
        if self.keep:
            episode.heats.append(heat.copy())
        episode.actions.append(action)
        episode.values.append(value)
        reward, terminated, truncated = self.env.advance(action)
        episode.rewards.append(reward)
        if terminated or truncated:
            episode.ending = "terminated" if terminated else "truncated"
        elif len(episode.actions) == self.settings.max_steps:
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
    """Play an episode for every engine seed and measure attention; the first `keep` keep their heat maps.

    Games go on side by side, and whichever is free takes the next seed, so that all episodes are played to
    their end: the first hundred to finish would be the short ones. `done` is called after each.
    """
    noise = torch.Generator(run.device).manual_seed(settings.seed)
    episodes: list[Episode] = []
    with ExitStack() as cleanup:
        count = min(settings.num_envs, len(seeds))
        envs = [cleanup.enter_context(closing(run.env(shift))) for _ in range(count)]
        threads = cleanup.enter_context(ThreadPoolExecutor(count, thread_name_prefix="evaluate"))
        # As many rows for few games as for many, because rounding depends on the size of a batch.
        images = np.zeros((settings.num_envs, *envs[0].image.shape), np.uint8)
        games = [_Game(env, image, shift, settings) for env, image in zip(envs, images, strict=False)]
        while True:
            for game in games:
                if game.episode.ending and len(episodes) < len(seeds):
                    index = len(episodes)
                    episodes.append(game.begin(seeds[index], index, index < keep))
            running = [(row, game) for row, game in enumerate(games) if not game.episode.ending]
            if not running:
                add_constant_iou(episodes)
                return episodes
            output, cam = run.attend(images, noise)
            heats = attention.normalize(cam).cpu().numpy()  # (N, h, w)
            dead = attention.is_dead(cam).tolist()
            plain = heats
            if run.method != "gradcam":
                plain = attention.normalize(run.cam(output, "gradcam")).cpu().numpy()
            probabilities = output.logits.double().softmax(dim=1).cpu().numpy()  # (N, actions)
            values = output.value.tolist()
            moves = []
            for row, game in running:
                action = game.choose(probabilities[row])
                if game.env.mask.any():
                    for sample in samples:
                        sample.offer(images[row], game.env.mask, heats[row], action)
                moves.append(threads.submit(game.act, action, values[row], heats[row], dead[row], plain[row]))
            for move in moves:
                move.result()
            for _, game in running:
                if game.episode.ending:
                    done()
