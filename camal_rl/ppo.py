"""PPO on ViZDoom with attention supervision: CleanRL's arithmetic plus the CAMAL loss of Eq. 2, read top to bottom.

The critic's value is the scalar whose class activation map is supervised (paper, Sec. 3.3). Hyperparameters are those
of Table 8, and CleanRL's `ppo_atari.py` where the table is silent.
"""

from __future__ import annotations

import os

# Waiting torch threads spin by default, and would take the cores from the game engines. Read once, by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import dataclasses
import io
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from camal_rl import UserError, __version__, report, write_whole


@dataclass
class Run:
    env: str = "Basic"
    """name (python -m camal_rl.doom lists them) or .toml file"""
    method: Annotated[Literal["camal", "vanilla", "suppress"], tyro.conf.arg(metavar="NAME")] = "camal"
    """camal (Eq. 2), vanilla (plain PPO), suppress (beta alone, Table 4)"""
    seed: int = 1
    """of weights, episodes and actions"""
    total_timesteps: int = 10_000_000
    """agent steps (Table 8)"""
    runs_dir: Path = Path("runs")
    """the run's folder is <runs-dir>/<env>/<method>/seed<k>"""
    checkpoint_every: int = 50_000
    """agent steps"""
    image_every: int = 50_000
    """agent steps between image strips in TensorBoard"""


@dataclass
class Environment:
    frame_size: tuple[int, int] = (84, 84)
    """pixels, height width (CleanRL)"""
    render_resolution: Annotated[
        Literal["160x120", "200x150", "256x192", "320x240"], tyro.conf.arg(metavar="WxH")
    ] = "320x240"
    """pixels: 160x120, 200x150, 256x192, 320x240 (ViZDoom)"""
    reward: Annotated[Literal["clip", "scale", "raw"], tyro.conf.arg(metavar="HOW")] = "clip"
    """clip to [-1, 1] (Table 8), scale by the TOML's factor, raw"""
    bootstrap_truncated: bool = False
    """a time limit ends with its last frame's value (not CleanRL)"""


@dataclass
class PPO:
    learning_rate: float = 2.5e-4
    """of Adam (Table 8)"""
    anneal_lr: bool = True
    """linearly to 0 (CleanRL)"""
    num_envs: int = 8
    """games in parallel (Table 8)"""
    num_steps: int = 128
    """agent steps a game and rollout (Table 8)"""
    update_epochs: int = 4
    """passes over a rollout (Table 8)"""
    num_minibatches: int = 4
    """a pass (Table 8)"""
    gamma: float = 0.99
    """discount an agent step (Table 8)"""
    gae_lambda: float = 0.95
    """of the advantage estimate (Table 8)"""
    clip_coef: float = 0.1
    """of the probability ratio (Table 8)"""
    clip_vloss: bool = True
    """(CleanRL) slows the critic where returns leave [-1, 1]"""
    ent_coef: float = 0.01
    """factor of the entropy (Table 8)"""
    vf_coef: float = 0.5
    """factor of the value loss (Table 8)"""
    max_grad_norm: float = 0.5
    """L2, of all gradients together (Table 8)"""


@dataclass
class Attention:
    camal_coef: float = 1.0
    """lambda of Eq. 2 (Table 8)"""
    attention: Annotated[
        Literal["gradcam", "layercam", "hirescam", "diffgradcam", "smoothgrad", "integrated-gradients"],
        tyro.conf.arg(metavar="NAME"),
    ] = "gradcam"
    """gradcam (Eq. 3), layercam, hirescam, diffgradcam, smoothgrad, integrated-gradients (Sec. 3.2)"""
    empty_mask: Annotated[Literal["ignore", "suppress"], tyro.conf.arg(metavar="HOW")] = "ignore"
    """frames without a target: ignore, or suppress (beta alone)"""
    measure_every: int = 1
    """iterations between camal/ measurements, 0 for none"""


@dataclass
class Machine:
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    precision: Annotated[Literal["fp32", "bf16"], tyro.conf.arg(metavar="NAME")] = "fp32"
    """of convolutions and hidden layer: fp32, bf16"""
    torch_threads: int = 0
    """CPU threads of an update, 0 for all cores"""


@dataclass
class Args:
    """Train a ViZDoom agent with PPO and CAMAL. The same command again goes on where it stopped."""

    run: Run = field(default_factory=Run)
    environment: Environment = field(default_factory=Environment)
    ppo: PPO = field(default_factory=PPO)
    attention: Attention = field(default_factory=Attention)
    machine: Machine = field(default_factory=Machine)


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(Args, prog="python -m camal_rl.ppo", config=(tyro.conf.OmitArgPrefixes,), args=arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from camal_rl.doom import Definition, DoomVectorEnv, load_definition

CHECKPOINT_VERSION = 1
MEASURED_FRAMES = 256
"""Frames, at most, on which attention is measured: one minibatch of Table 8."""


# ---------------------------------------------------------------------------------------------------------------------
# Agent


class Output(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # (B, actions)
    value: Tensor  # (B,)
    hidden: Tensor  # (B, 512), after the ReLU
    feature_maps: Tensor  # (B, K, h, w), after the last convolution's ReLU


class Agent(nn.Module):
    """CleanRL's five-layer network for Atari, whose feature maps and hidden layer can be seen.

    Args:
        num_actions: size of the action space.
        image_shape: (stack, H, W) of the observations, H and W at least 36 pixels.
        precision: `fp32`, or `bf16` for the convolutions and the hidden layer (heads and attention stay fp32).
    """

    def __init__(self, num_actions: int, image_shape: tuple[int, ...], precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.convolutions = nn.Sequential(
            _initialized(nn.Conv2d(image_shape[0], 32, 8, stride=4)),
            nn.ReLU(),
            _initialized(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            _initialized(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
        )
        self.map_shape = (64, *feature_map_size(*image_shape[1:]))  # (K, h, w)
        self.fc = _initialized(nn.Linear(int(np.prod(self.map_shape)), 512))
        self.actor = _initialized(nn.Linear(512, num_actions), std=0.01)
        self.critic = _initialized(nn.Linear(512, 1), std=1.0)
        self.to(memory_format=torch.channels_last)  # 2 to 3 times as fast on a CPU

    def forward(self, images: Tensor) -> Output:
        """Images are uint8 (B, stack, H, W)."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            pixels = images.to(dtype, memory_format=torch.channels_last) / 255
            feature_maps = self.convolutions(pixels)
            hidden = self.fc(feature_maps.flatten(1)).relu()
        hidden = hidden.float()
        return Output(self.actor(hidden), self.critic(hidden).squeeze(1), hidden, feature_maps.float())

    def cam(self, output: Output, method: str, generator: torch.Generator | None = None) -> Tensor:
        """Attention of the critic's value, not normalised, (B, h, w); of the actor's best action for `diffgradcam`.

        In closed form where that is exact, else by automatic differentiation of the two last layers.
        """
        from camal_rl import attention

        if method in attention.RESAMPLING_METHODS:
            return attention.class_activation_map(
                output.feature_maps, self._value, method, generator=generator
            )
        last_weight = self.critic.weight  # (1, 512)
        if method == "diffgradcam":  # y_c - log sum of exp of the others: their softmax weighs their rows
            best = output.logits.argmax(dim=1, keepdim=True)
            others = output.logits.scatter(1, best, float("-inf")).softmax(dim=1)
            last_weight = self.actor.weight[best.squeeze(1)] - others @ self.actor.weight  # (B, 512)
        gradients = attention.head_gradient(
            output.hidden,
            self.fc.weight,
            last_weight,
            self.map_shape,
            pooled=method in attention.POOLED_METHODS,
        )
        return attention.gradient_to_map(output.feature_maps, gradients, method)

    def _value(self, feature_maps: Tensor) -> Tensor:
        return self.critic(self.fc(feature_maps.flatten(1)).relu()).squeeze(1)  # (B,)


def feature_map_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the agent's feature maps, and so of its attention, for frames of that many pixels."""
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return height, width


def _initialized(layer: Any, std: float = 2**0.5) -> Any:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


# ---------------------------------------------------------------------------------------------------------------------
# One iteration: rollout, advantages, update


@dataclass
class Rollout:
    """What one rollout collects; T steps of N environments, allocated once and overwritten by every iteration."""

    images: Tensor  # uint8 (T, N, stack, H, W)
    actions: Tensor  # int64 (T, N)
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T, N)
    rewards: Tensor  # (T, N), as the agent learns from them
    dones: Tensor  # (T, N), 1 where the observation is an episode's first
    mask_weights: Tensor  # (T, N, 2, h, w), or empty where attention is not supervised
    measured: (
        np.ndarray
    )  # int (M,), flat indices of the frames on which attention will be measured, ascending
    measured_masks: np.ndarray  # uint8 (M, h_label, w_label)


def allocate(args: Args, envs: DoomVectorEnv, agent: Agent, device: torch.device) -> Rollout:
    """An empty rollout of the right size."""
    steps, num_envs = args.ppo.num_steps, envs.num_envs
    shape = (steps, num_envs)
    image_shape = envs.single_observation_space["image"].shape
    mask_shape = envs.single_observation_space["mask"].shape
    supervised = args.run.method != "vanilla"
    measured = min(MEASURED_FRAMES, steps * num_envs) if args.attention.measure_every else 0
    return Rollout(
        images=torch.zeros((*shape, *image_shape), dtype=torch.uint8, device=device),
        actions=torch.zeros(shape, dtype=torch.int64, device=device),
        logprobs=torch.zeros(shape, device=device),
        values=torch.zeros(shape, device=device),
        rewards=torch.zeros(shape, device=device),
        dones=torch.zeros(shape, device=device),
        mask_weights=torch.zeros((*shape, 2, *agent.map_shape[1:]) if supervised else (0,), device=device),
        measured=np.zeros(measured, np.int64),
        measured_masks=np.zeros((measured, *mask_shape), np.uint8),
    )


@dataclass
class Progress:
    """Where training stands between two iterations, but for weights, optimiser and environments."""

    iteration: int
    """Iterations done."""
    observation: dict[str, np.ndarray]
    """The newest, of all environments."""
    mask_weights: np.ndarray | None
    """Its masks, projected, where attention is supervised."""
    dones: np.ndarray
    """Whether it is an episode's first, bool (N,)."""
    returns: np.ndarray
    """Raw return of each running episode so far, (N,)."""
    lengths: np.ndarray
    """Agent steps of each running episode so far, (N,)."""
    recent: deque[float]
    """Raw returns of the last 100 finished episodes."""


class Episode(NamedTuple):
    """A finished episode."""

    step: int  # agent steps over all environments when it ended
    total: float  # raw return
    length: int  # agent steps


def rollout(
    agent: Agent,
    envs: DoomVectorEnv,
    store: Rollout,
    progress: Progress,
    args: Args,
    generator: torch.Generator,
) -> list[Episode]:
    """Play `num_steps` in every environment into `store`, and return the episodes that ended."""
    device = store.images.device
    steps, num_envs = store.actions.shape
    first_step = progress.iteration * steps * num_envs
    rewards = np.zeros((steps, num_envs))
    episodes = []
    store.measured[:] = np.sort(
        np.random.default_rng((args.run.seed, progress.iteration)).choice(
            steps * num_envs, len(store.measured), replace=False
        )
    )
    for step in range(steps):
        store.images[step] = torch.from_numpy(progress.observation["image"])
        store.dones[step] = torch.from_numpy(progress.dones)
        if progress.mask_weights is not None:
            store.mask_weights[step] = torch.from_numpy(progress.mask_weights)
        low, high = np.searchsorted(store.measured, (step * num_envs, (step + 1) * num_envs))
        if low < high:
            store.measured_masks[low:high] = progress.observation["mask"][store.measured[low:high] % num_envs]

        with torch.no_grad():
            output = agent(store.images[step])
            logprobs = output.logits.log_softmax(dim=1)  # (N, actions)
            action = torch.multinomial(logprobs.exp(), 1, generator=generator)  # (N, 1)
        store.values[step] = output.value
        store.actions[step] = action.squeeze(1)
        store.logprobs[step] = logprobs.gather(1, action).squeeze(1)

        progress.observation, raw, terminations, truncations, infos = envs.step(
            action.squeeze(1).cpu().numpy()
        )
        progress.mask_weights = infos.get("mask_transform")
        progress.dones = terminations | truncations
        rewards[step] = shape_rewards(raw, args.environment.reward, envs.definition)
        if args.environment.bootstrap_truncated and truncations.any():
            last_frames = np.stack([final["image"] for final in infos["final_obs"][truncations]])
            with torch.no_grad():
                value = agent(torch.from_numpy(last_frames).to(device)).value
            rewards[step, truncations] += args.ppo.gamma * value.cpu().numpy()
        progress.returns += raw
        progress.lengths += 1
        for index in np.flatnonzero(progress.dones):
            ended_at = first_step + (step + 1) * num_envs
            episodes.append(Episode(ended_at, float(progress.returns[index]), int(progress.lengths[index])))
            progress.recent.append(float(progress.returns[index]))
            progress.returns[index] = progress.lengths[index] = 0
    store.rewards.copy_(torch.from_numpy(rewards))
    return episodes


def shape_rewards(raw: np.ndarray, how: str, definition: Definition) -> np.ndarray:
    """What the agent learns from: raw rewards (N,), clipped to [-1, 1], or times the environment's factor."""
    if how == "clip":
        return np.clip(raw, -1, 1)
    return raw * definition.reward_scale if how == "scale" else raw


def gae(
    rewards: Tensor,
    values: Tensor,
    dones: Tensor,
    next_value: Tensor,
    next_done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages and returns, (T, N) each.

    `rewards`, `values`, `dones` are (T, N), where `dones[t]` says that observation t is an episode's first;
    `next_value` and `next_done` (N,) are those of the observation after the last step.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(next_value)
    for step in reversed(range(len(rewards))):
        last = step == len(rewards) - 1
        continues = 1 - (next_done if last else dones[step + 1])
        value_after = next_value if last else values[step + 1]
        delta = rewards[step] + gamma * value_after * continues - values[step]
        following = delta + gamma * gae_lambda * continues * following
        advantages[step] = following
    return advantages, advantages + values


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    store: Rollout,
    advantages: Tensor,
    returns: Tensor,
    args: Args,
    generator: torch.Generator,
) -> dict[str, float]:
    """Optimise on one rollout for `update_epochs` passes; the means of all losses over all minibatches."""
    ppo = args.ppo
    images = store.images.flatten(0, 1)  # (B, stack, H, W)
    actions, old_logprobs, old_values = (
        store.actions.flatten(),
        store.logprobs.flatten(),
        store.values.flatten(),
    )
    advantages, returns = advantages.flatten(), returns.flatten()
    mask_weights = store.mask_weights.flatten(0, 1) if args.run.method != "vanilla" else None
    batch_size = len(actions)
    totals: dict[str, Tensor] = {}
    for _ in range(ppo.update_epochs):
        order = torch.randperm(batch_size, generator=generator, device=images.device)
        for batch in order.chunk(ppo.num_minibatches):
            output = agent(images[batch])
            all_logprobs = output.logits.log_softmax(dim=1)  # (B, actions)
            log_ratio = all_logprobs.gather(1, actions[batch, None]).squeeze(1) - old_logprobs[batch]
            ratio = log_ratio.exp()
            entropy = -(all_logprobs.exp() * all_logprobs).sum(dim=1).mean()

            advantage = advantages[batch]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped_ratio = ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
            policy_loss = -torch.min(advantage * ratio, advantage * clipped_ratio).mean()

            value_error = (output.value - returns[batch]) ** 2
            if ppo.clip_vloss:
                step = (output.value - old_values[batch]).clamp(-ppo.clip_coef, ppo.clip_coef)
                value_error = torch.max(value_error, (old_values[batch] + step - returns[batch]) ** 2)
            value_loss = 0.5 * value_error.mean()

            loss = policy_loss - ppo.ent_coef * entropy + ppo.vf_coef * value_loss
            means = {"value_loss": value_loss, "policy_loss": policy_loss, "entropy": entropy}
            if mask_weights is not None:
                attention_loss = camal_loss(agent, output, mask_weights[batch], args, generator)
                loss = loss + args.attention.camal_coef * attention_loss
                means["camal_loss"] = attention_loss

            optimizer.zero_grad()
            loss.backward()
            means["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
            optimizer.step()

            means["old_approx_kl"] = -log_ratio.mean()
            means["approx_kl"] = ((ratio - 1) - log_ratio).mean()
            means["clipfrac"] = ((ratio - 1).abs() > ppo.clip_coef).float().mean()
            for name, value in means.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
    minibatches = ppo.update_epochs * ppo.num_minibatches
    variance = returns.var()
    explained = 1 - (returns - old_values).var() / variance if variance > 0 else torch.tensor(float("nan"))
    return {name: float(total) / minibatches for name, total in totals.items()} | {
        "explained_variance": float(explained)
    }


def camal_loss(
    agent: Agent, output: Output, mask_weights: Tensor, args: Args, generator: torch.Generator
) -> Tensor:
    """L_CAMAL of Eq. 2 without lambda, from masks projected to the attention map's resolution (B, 2, h, w)."""
    from camal_rl import attention, camal

    heat = attention.normalize(agent.cam(output, args.attention.attention, generator))
    return camal.projected_loss(
        heat, mask_weights, empty_mask=args.attention.empty_mask, method=args.run.method
    )[0]


# ---------------------------------------------------------------------------------------------------------------------
# Watching attention, for every method alike


class Measurement(NamedTuple):
    """Attention on one minibatch of frames."""

    scalars: dict[str, float]  # by TensorBoard tag
    strip: np.ndarray | None  # uint8 (H, W, 3): frame, mask, heat map, heat map over frame


@torch.no_grad()
def measure(agent: Agent, store: Rollout, args: Args, iteration: int, draw: bool) -> Measurement:
    """How well attention agrees with the masks right now, without gradients and without touching any random state."""
    from camal_rl import attention, camal, metrics

    device = store.images.device
    images = store.images.flatten(0, 1)[torch.from_numpy(store.measured).to(device)]
    masks = torch.from_numpy(store.measured_masks).to(device)
    weights = torch.from_numpy(camal.mask_weights(store.measured_masks, agent.map_shape[1:])).to(device)
    generator = torch.Generator(device).manual_seed(iteration)
    cam = agent.cam(agent(images), args.attention.attention, generator)
    heat = attention.normalize(cam)
    method = "suppress" if args.run.method == "suppress" else "camal"
    loss, alpha, beta, visible = camal.projected_loss(
        heat, weights, empty_mask=args.attention.empty_mask, method=method
    )
    scalars = {
        "camal/dead_map_fraction": float(attention.is_dead(cam).float().mean()),
        "camal/target_visible_fraction": float(visible.float().mean()),
    }
    if visible.any():
        scalars |= {
            "camal/loss": float(loss),
            "camal/alpha": float(alpha[visible].mean()),
            "camal/beta": float(beta[visible].mean()),
            "camal/iou": float(metrics.iou(heat[visible], masks[visible]).mean()),
            "camal/iou_ceiling": float(metrics.iou_ceiling(weights[visible], masks[visible]).mean()),
        }
    rows = torch.cat([visible.nonzero().flatten(), (~visible).nonzero().flatten()])[:4].tolist()
    strip = np.vstack(
        [attention_strip(*(part[row].cpu().numpy() for part in (images, masks, heat))) for row in rows]
    )
    return Measurement(scalars, strip if draw else None)


def attention_strip(image: np.ndarray, mask: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frame, mask, heat map and heat map over frame side by side, uint8 (H, 4 W, 3) RGB, at the mask's resolution.

    Args:
        image: uint8 (stack, h', w'), the newest frame last.
        mask: uint8 {0, 1} (H, W).
        heat: float (h, w) in [0, 1].
    """
    import cv2

    size = (mask.shape[1], mask.shape[0])
    frame = cv2.cvtColor(cv2.resize(image[-1], size, interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2RGB)
    smooth = cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(
        cv2.applyColorMap((255 * smooth).round().astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
    )
    over = cv2.addWeighted(frame, 0.5, colours, 0.5, 0)
    return np.hstack([frame, cv2.cvtColor(mask * 255, cv2.COLOR_GRAY2RGB), colours, over])


# ---------------------------------------------------------------------------------------------------------------------
# The run and its folder


def check_args(args: Args) -> None:
    """Refuse what can't be trained.

    Raises:
        UserError: with the option, what was given and what is valid.
    """
    ppo = args.ppo
    at_least = {
        "total-timesteps": (args.run.total_timesteps, 1),
        "checkpoint-every": (args.run.checkpoint_every, 1),
        "image-every": (args.run.image_every, 1),
        "num-envs": (ppo.num_envs, 1),
        "num-steps": (ppo.num_steps, 1),
        "update-epochs": (ppo.update_epochs, 1),
        "num-minibatches": (ppo.num_minibatches, 1),
        "measure-every": (args.attention.measure_every, 0),
        "torch-threads": (args.machine.torch_threads, 0),
        "seed": (args.run.seed, 0),
        "learning-rate": (ppo.learning_rate, 0),
        "ent-coef": (ppo.ent_coef, 0),
        "vf-coef": (ppo.vf_coef, 0),
        "camal-coef": (args.attention.camal_coef, 0),
        "gamma": (ppo.gamma, 0),
        "gae-lambda": (ppo.gae_lambda, 0),
    }
    for option, (value, least) in at_least.items():
        if not (value >= least and np.isfinite(value)):
            raise UserError(f"--{option} {value}: give a number of at least {least}.")
    for option, value in {"gamma": ppo.gamma, "gae-lambda": ppo.gae_lambda}.items():
        if value > 1:
            raise UserError(f"--{option} {value}: give a number from 0 to 1.")
    for option, value in {"clip-coef": ppo.clip_coef, "max-grad-norm": ppo.max_grad_norm}.items():
        if not value > 0:
            raise UserError(f"--{option} {value}: give a number greater than 0.")
    batch_size = ppo.num_envs * ppo.num_steps
    if batch_size % ppo.num_minibatches:
        raise UserError(
            f"{ppo.num_envs} environments x {ppo.num_steps} steps = {batch_size} do not divide into "
            f"{ppo.num_minibatches} minibatches: choose --num-envs, --num-steps and --num-minibatches that do."
        )
    if batch_size // ppo.num_minibatches < 2:
        raise UserError(
            "minibatches of one step have no variance to normalise: choose fewer --num-minibatches."
        )
    if args.run.total_timesteps < batch_size:
        raise UserError(
            f"--total-timesteps {args.run.total_timesteps} is less than one iteration of {batch_size} steps "
            f"({ppo.num_envs} environments x {ppo.num_steps}): give more, or choose a smaller --num-steps."
        )
    if min(args.environment.frame_size) < 36:
        raise UserError(
            f"--frame-size {' '.join(map(str, args.environment.frame_size))}: the network needs at least 36 36."
        )


def choose_device(name: str) -> torch.device:
    """The device to train on; `auto` is a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}). "
            f"Choose cpu{', or cuda' if torch.cuda.is_available() else ''}."
        ) from error
    return device


# These change where and how fast a run is done, or what is kept of it on the way, but not what is learned.
_FREE_OPTIONS = {"runs_dir", "checkpoint_every", "image_every", "measure_every", "device", "torch_threads"}


def describe(args: Args, definition: Definition) -> dict[str, dict[str, Any]]:
    """All that defines a run, in JSON's types: its options by group, and its environment."""
    groups = json.loads(json.dumps(dataclasses.asdict(args), default=str))
    kept = {
        group: {name: value for name, value in options.items() if name not in _FREE_OPTIONS}
        for group, options in groups.items()
    }
    paths = ("path", "scenario")  # the same environment may lie elsewhere tomorrow
    kept["run"]["env"] = definition.name
    kept["definition"] = {
        name: Path(value).name if name in paths else value
        for name, value in json.loads(json.dumps(dataclasses.asdict(definition), default=str)).items()
    }
    return kept


def open_run_folder(args: Args, definition: Definition) -> Path:
    """The run's folder, which may not exist yet.

    Raises:
        UserError: it holds a run with other arguments; the message shows the difference.
    """
    folder = args.run.runs_dir / definition.name / args.run.method / f"seed{args.run.seed}"
    file = folder / "args.json"
    if not file.exists():
        return folder
    try:
        before = json.loads(file.read_text())
        found = {
            (group, name): value
            for group in before
            if group != "version"
            for name, value in before[group].items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} is not readable as a run's arguments: move {folder} away to start anew."
        ) from error
    now = {
        (group, name): value
        for group, options in describe(args, definition).items()
        for name, value in options.items()
    }
    missing = object()
    differences = [
        f"{name} was {found.get((group, name), 'not there')}, now {now.get((group, name), 'not there')}"
        for group, name in sorted(now.keys() | found.keys())
        if now.get((group, name), missing) != found.get((group, name), missing)
    ]
    if differences:
        raise UserError(
            f"{folder} holds a run with other arguments: {'; '.join(differences)}. "
            "Choose another --runs-dir or --seed, or move that folder away."
        )
    return folder


def save_checkpoint(
    path: Path,
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    envs: DoomVectorEnv,
    progress: Progress,
) -> None:
    """Write all that training needs to go on as if it had not stopped; tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save(
        {
            "version": CHECKPOINT_VERSION,
            "iteration": progress.iteration,
            "agent": agent.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "envs": envs.state_dict(),
            "dones": progress.dones.tolist(),
            "returns": progress.returns.tolist(),
            "lengths": progress.lengths.tolist(),
            "recent": list(progress.recent),
        },
        buffer,
    )
    write_whole(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file can run code.

    Raises:
        UserError: not a checkpoint, or one of another version.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        version = checkpoint["version"]
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint: move it away to start anew.") from error
    if version != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has version {version}, and this camal_rl reads version {CHECKPOINT_VERSION}."
        )
    return dict(checkpoint)


def train(args: Args, interrupted: Callable[[], bool] = lambda: False) -> Path:
    """Train to the end, or until `interrupted()` after an iteration, and return the run's folder.

    Raises:
        UserError: arguments, environment, machine or folder with which that can't be done.
    """
    check_args(args)
    definition = load_definition(args.run.env)
    device = choose_device(args.machine.device)
    folder = open_run_folder(args, definition)
    checkpoint_file = folder / "checkpoint.pt"
    checkpoint = load_checkpoint(checkpoint_file) if checkpoint_file.exists() else None
    batch_size = args.ppo.num_envs * args.ppo.num_steps
    iterations = args.run.total_timesteps // batch_size
    if checkpoint is not None and checkpoint["iteration"] >= iterations:
        print(f"{folder} is already done: {checkpoint['iteration'] * batch_size:,} steps. Nothing to do.")
        return folder

    print(
        f"camal_rl {__version__}: {definition.name}, {args.run.method}, seed {args.run.seed}, {iterations:,} iterations of "
        f"{batch_size:,} steps on {device} ({args.machine.precision})\n"
        f"Run folder:  {folder}\nTensorBoard: tensorboard --logdir {args.run.runs_dir}",
        flush=True,
    )
    torch.manual_seed(args.run.seed)
    torch.backends.cudnn.deterministic = True
    with contextlib.ExitStack() as cleanup:
        envs = DoomVectorEnv(
            definition,
            args.ppo.num_envs,
            args.environment.frame_size,
            args.environment.render_resolution,
            copy=False,
            mask_transform=_projection(args) if args.run.method != "vanilla" else None,
        )
        cleanup.callback(envs.close)
        agent = Agent(
            envs.single_action_space.n, envs.single_observation_space["image"].shape, args.machine.precision
        )
        agent.to(device)
        optimizer = torch.optim.Adam(agent.parameters(), lr=args.ppo.learning_rate, eps=1e-5)
        generator = torch.Generator(device).manual_seed(args.run.seed)
        if checkpoint is None:
            seeds = np.random.SeedSequence(args.run.seed).generate_state(args.ppo.num_envs).tolist()
            observation, infos = envs.reset(seed=seeds)
        else:
            agent.load_state_dict(checkpoint["agent"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            generator.set_state(checkpoint["generator"])
            observation, infos = envs.load_state_dict(checkpoint["envs"])
        start = checkpoint or _beginning(args.ppo.num_envs)
        progress = Progress(
            iteration=start["iteration"],
            observation=observation,
            mask_weights=infos.get("mask_transform"),
            dones=np.array(start["dones"]),
            returns=np.array(start["returns"]),
            lengths=np.array(start["lengths"]),
            recent=deque(start["recent"], maxlen=100),
        )
        first_step = progress.iteration * batch_size
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = {"version": __version__, **describe(args, definition)}
            write_whole(folder / "args.json", (json.dumps(content, indent=2) + "\n").encode())
            # Steps after the checkpoint that an earlier process wrote before it was killed are done again.
            writer = SummaryWriter(str(folder), purge_step=first_step + 1 if checkpoint else None)
        except OSError as error:
            raise UserError(
                f"can't write into {folder}: {error.strerror}. Choose another --runs-dir."
            ) from error
        cleanup.callback(writer.close)
        if checkpoint is None:
            rows = "\n".join(
                f"|{name}|{value}|"
                for options in content.values()
                if isinstance(options, dict)
                for name, value in options.items()
            )
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        else:
            print(f"Going on from step {first_step:,}.", flush=True)
        bar = cleanup.enter_context(
            tqdm(
                total=iterations * batch_size,
                initial=first_step,
                unit="step",
                unit_scale=True,
                mininterval=0.5 if sys.stderr.isatty() else 30,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}",
            )
        )
        store = allocate(args, envs, agent, device)
        update_threads = args.machine.torch_threads or len(os.sched_getaffinity(0))
        began = time.perf_counter()
        while progress.iteration < iterations:
            learning_rate = args.ppo.learning_rate
            if args.ppo.anneal_lr:
                learning_rate *= 1 - progress.iteration / iterations
            optimizer.param_groups[0]["lr"] = learning_rate

            torch.set_num_threads(1)  # the cores belong to the engines
            episodes = rollout(agent, envs, store, progress, args, generator)
            torch.set_num_threads(update_threads)
            with torch.no_grad():
                next_value = agent(torch.from_numpy(progress.observation["image"]).to(device)).value
            next_done = torch.from_numpy(progress.dones).to(device, torch.float32)
            advantages, returns = gae(
                store.rewards,
                store.values,
                store.dones,
                next_value,
                next_done,
                args.ppo.gamma,
                args.ppo.gae_lambda,
            )
            losses = update(agent, optimizer, store, advantages, returns, args, generator)
            progress.iteration += 1

            step = progress.iteration * batch_size
            sps = (step - first_step) / (time.perf_counter() - began)
            last = progress.iteration == iterations or interrupted()
            for episode in episodes:
                writer.add_scalar("charts/episodic_return", episode.total, episode.step)
                writer.add_scalar("charts/episodic_length", episode.length, episode.step)
            writer.add_scalar("charts/learning_rate", learning_rate, step)
            writer.add_scalar("charts/SPS", sps, step)
            for name, value in losses.items():
                writer.add_scalar(f"losses/{name}", value, step)
            status = {"SPS": f"{sps:.0f}"}
            if progress.recent:
                status["return"] = f"{np.mean(progress.recent):.1f}"
            if args.attention.measure_every and (progress.iteration - 1) % args.attention.measure_every == 0:
                draw = progress.iteration == 1 or _crossed(step, batch_size, args.run.image_every)
                measured = measure(agent, store, args, progress.iteration, draw)
                for tag, value in measured.scalars.items():
                    writer.add_scalar(tag, value, step)
                if measured.strip is not None:
                    writer.add_image("camal/attention", measured.strip, step, dataformats="HWC")
                status |= {
                    name: f"{measured.scalars[f'camal/{name}']:.2f}"
                    for name in ("alpha", "beta", "iou")
                    if f"camal/{name}" in measured.scalars
                }
            bar.set_postfix(status, refresh=False)
            bar.update(batch_size)
            if last or _crossed(step, batch_size, args.run.checkpoint_every):
                writer.flush()
                save_checkpoint(checkpoint_file, agent, optimizer, generator, envs, progress)
            if last:
                break
        bar.refresh()
    if progress.iteration == iterations and progress.recent:
        print(
            f"Done. Mean return of the last {len(progress.recent)} episodes: {np.mean(progress.recent):.2f}"
        )
    return folder


def _beginning(num_envs: int) -> dict[str, Any]:
    return {
        "iteration": 0,
        "dones": [True] * num_envs,
        "returns": [0.0] * num_envs,
        "lengths": [0] * num_envs,
        "recent": [],
    }


def _crossed(step: int, batch_size: int, every: int) -> bool:
    """Whether the iteration that ended at `step` passed a multiple of `every`."""
    return step // every > (step - batch_size) // every


def _projection(args: Args) -> Callable[[np.ndarray], np.ndarray]:
    from camal_rl import camal

    return partial(camal.mask_weights, size=feature_map_size(*args.environment.frame_size))


def main(args: Args) -> int:
    """Train, and return the exit code: 0, 2 after a user's mistake, 130 or 143 where a signal stopped the run."""
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print(
            "\nStopping after this iteration; once more to stop at once and lose it.",
            file=sys.stderr,
            flush=True,
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        train(args, lambda: bool(received))
    except UserError as mistake:
        return report(mistake)
    except OSError as error:  # TensorBoard's writer on a full disk
        return report(
            UserError(f"{error.strerror or error}: free some space, then run the same command again.")
        )
    except KeyboardInterrupt:
        pass
    if received:
        print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 128 + received[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
