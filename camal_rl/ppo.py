"""PPO on ViZDoom with attention supervision: CleanRL's arithmetic plus the CAMAL loss (Eq. 2).

The critic's value is the scalar whose class activation map is supervised (paper, Sec. 3.3). Hyperparameters
are those of Table 8, and of CleanRL's `ppo_atari.py` where the table is silent. Reads from top to bottom:
arguments, agent, rollout, advantages, update, measurement of attention, the run and its folder.
"""

from __future__ import annotations

import os

# Waiting torch threads spin by default, which takes the cores from the game engines. Read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import dataclasses
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.files import write_whole

if TYPE_CHECKING:
    from camal_rl.masks import Projection

Count = Annotated[int, tyro.conf.arg(metavar="N")]
Number = Annotated[float, tyro.conf.arg(metavar="X")]


@dataclass
class Run:
    env: Annotated[str, tyro.conf.arg(metavar="NAME")] = "Basic"
    """or .toml file; python -m camal_rl.environments lists them"""
    method: Annotated[Literal["camal", "vanilla", "suppress"], tyro.conf.arg(metavar="NAME")] = "camal"
    """camal (Eq. 2), vanilla (PPO), suppress (beta, Table 4)"""
    seed: Count = 1
    """of weights, episodes and actions"""
    total_timesteps: Count = 10_000_000
    """agent steps (Table 8)"""
    runs_dir: Path = Path("runs")
    """holds <env>/<method>/seed<k>, the run's folder"""
    checkpoint_every: Count = 50_000
    """agent steps"""
    image_every: Count = 50_000
    """agent steps between image strips in TensorBoard"""


@dataclass
class Environment:
    frame_size: Annotated[tuple[int, int], tyro.conf.arg(metavar="H W")] = (84, 84)
    """pixels (CleanRL)"""
    render_resolution: Annotated[
        Literal["160x120", "200x150", "256x192", "320x240"], tyro.conf.arg(metavar="WxH")
    ] = "320x240"
    """pixels: 160x120, 200x150, 256x192, 320x240"""
    reward: Annotated[Literal["clip", "scale", "raw"], tyro.conf.arg(metavar="HOW")] = "clip"
    """clip to [-1, 1] (Table 8), scale by TOML's factor, raw"""
    bootstrap_truncated: bool = False
    """at a time limit, count on the last frame's value"""


@dataclass
class PPO:
    learning_rate: Number = 2.5e-4
    """of Adam (Table 8)"""
    anneal_lr: bool = True
    """annealed linearly to 0 (CleanRL), unless given"""
    num_envs: Count = 8
    """games in parallel (Table 8)"""
    num_steps: Count = 128
    """agent steps a game and rollout (Table 8)"""
    update_epochs: Count = 4
    """passes over a rollout (Table 8)"""
    num_minibatches: Count = 4
    """a pass (Table 8)"""
    gamma: Number = 0.99
    """discount an agent step (Table 8)"""
    gae_lambda: Number = 0.95
    """of the advantage estimate (Table 8)"""
    clip_coef: Number = 0.1
    """of the probability ratio (Table 8)"""
    clip_vloss: bool = True
    """value clip (CleanRL): slow where returns leave [-1, 1]"""
    ent_coef: Number = 0.01
    """factor of the entropy (Table 8)"""
    vf_coef: Number = 0.5
    """factor of the value loss (Table 8)"""
    max_grad_norm: Number = 0.5
    """L2, of all gradients together (Table 8)"""


@dataclass
class Attention:
    camal_coef: Number = 1.0
    """lambda of Eq. 2 (Table 8)"""
    attention: Annotated[
        Literal["gradcam", "layercam", "hirescam", "diffgradcam", "smoothgrad", "integrated-gradients"],
        tyro.conf.arg(metavar="NAME"),
    ] = "gradcam"
    """gradcam (Eq. 3), layercam, hirescam, diffgradcam, smoothgrad, integrated-gradients"""
    empty_mask: Annotated[Literal["ignore", "suppress"], tyro.conf.arg(metavar="HOW")] = "ignore"
    """frames without a target: ignore, suppress (beta)"""
    measure_every: Count = 4
    """iterations between camal/ measurements, 0 for none"""


@dataclass
class Machine:
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    precision: Annotated[Literal["auto", "fp32", "tf32", "bf16"], tyro.conf.arg(metavar="NAME")] = "auto"
    """fp32, tf32 (CUDA), bf16, auto: bf16 where it is fast"""
    torch_threads: Count = 0
    """CPU threads that play and learn, 0 for all cores"""
    detect_anomaly: bool = False
    """name the operation that makes NaN; slow"""


@dataclass
class Args:
    """Train a ViZDoom agent with PPO and CAMAL. The same command again goes on where it stopped."""

    run: Run = field(default_factory=Run)
    environment: Environment = field(default_factory=Environment)
    ppo: PPO = field(default_factory=PPO)
    attention: Attention = field(default_factory=Attention)
    machine: Machine = field(default_factory=Machine)


# The two names of every switch: the one that says what is so by default, and the one that changes it.
SWITCHES = {
    "--anneal-lr": "--no-anneal-lr",
    "--clip-vloss": "--no-clip-vloss",
    "--no-bootstrap-truncated": "--bootstrap-truncated",
    "--no-detect-anomaly": "--detect-anomaly",
}


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    # Listing both names of a switch would break the help's columns, so tyro knows only the one that changes
    # something. Of several on a command line the last one counts.
    given = list(sys.argv[1:] if arguments is None else arguments)
    for default, change in SWITCHES.items():
        places = [place for place, one in enumerate(given) if one.replace("_", "-") in (default, change)]
        keep = places[-1:] if places and given[places[-1]].replace("_", "-") == change else []
        given = [one for place, one in enumerate(given) if place not in places or place in keep]
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(Args, prog="python -m camal_rl.ppo", config=config, args=given)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once
    for _number in (signal.SIGINT, signal.SIGTERM):  # until `main` takes over
        signal.signal(_number, lambda number, _: os._exit(128 + number))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from camal_rl.doom import DoomVectorEnv
from camal_rl.game.definition import RENDER_RESOLUTIONS, Definition, load_definition
from camal_rl.game.engine import EngineError
from camal_rl.game.frames import zero_pixels
from camal_rl.masks import Projection, mask_weights
from camal_rl.results import media
from camal_rl.run import folder as run_folder
from camal_rl.run.command_line import run_to_checkpoint
from camal_rl.run.device import Precision, choose_device, choose_precision, keep_freed_memory
from camal_rl.run.machine import cores
from camal_rl.run.workers import Workers

MEASURED_FRAMES = 128
"""Frames, at most, on which attention is measured: more take time and, being alike, hardly tell more."""


NOT_FINITE = (
    "Try a lower --learning-rate or --max-grad-norm, or --precision fp32; --detect-anomaly names the "
    "operation that makes NaN."
)
DEAD_MEASUREMENTS = 10
DEAD_WARNING = (
    f"All attention maps were zero in {DEAD_MEASUREMENTS} measurements, and nothing pulls on a dead map. "
    "A critic of negative returns does this: try --reward scale --no-clip-vloss."
)


# ------------------------------------------------------------------------------------------------------------
# Agent


class Output(NamedTuple):
    """What a forward pass gives."""

    heads: Tensor  # (B, actions + 1): logits and value
    hidden: Tensor  # (B, 512), after the ReLU
    feature_maps: Tensor  # (B, K, h, w), after the last convolution's ReLU, in the network's precision

    @property
    def logits(self) -> Tensor:
        """(B, actions)"""
        return self.heads[:, :-1]

    @property
    def value(self) -> Tensor:
        """(B,)"""
        return self.heads[:, -1]


class Weights(NamedTuple):
    """An agent's weights as it computes with them: in its precision, and joined where that saves work."""

    kernel1: Tensor  # for pixels of 0 to 255
    bias1: Tensor
    kernel2: Tensor
    bias2: Tensor
    kernel3: Tensor
    bias3: Tensor
    fc: Tensor  # (512, h * w * K)
    fc_bias: Tensor
    heads: Tensor  # (actions + 1, 512), fp32: actor and critic
    heads_bias: Tensor
    pooled: Tensor | None  # (512, K), fp32: fc averaged over positions, where attention needs it

    def detached(self) -> Weights:
        """The same numbers, as the leaves of a graph of their own."""
        return Weights._make(one if one is None else one.detach().requires_grad_() for one in self)

    def packed(self, batch_size: int) -> Weights:
        """The same numbers, for many small batches without gradients: `fc` lies as CPU products want it.

        They would lay it out in each pass otherwise, which is most of the layer's time. Only bf16 gains.
        """
        if self.fc.device.type != "cpu" or self.fc.dtype != torch.bfloat16 or not _packs():
            return self
        return self._replace(fc=torch.ops.mkldnn._reorder_linear_weight(self.fc, batch_size))

    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [one for one in self if one is not None]


_KERNELS = ((8, 4), (4, 2), (3, 1))  # of the convolutions: size and stride


def _packs() -> bool:
    """Whether torch has what lays out a weight, which torch.compile uses and which has no public name."""
    ops = torch.ops.mkldnn
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())


class Agent(nn.Module):
    """CleanRL's five-layer network for Atari, whose feature maps and hidden layer can be seen.

    Args:
        num_actions: size of the action space.
        image_shape: (stack, H, W) of the observations, H and W at least 36 pixels.
        precision: `fp32`; `bf16` for convolutions and hidden layer, while heads and attention are fp32
            anyway; or `tf32`, which is fp32 but for products on a GPU.
    """

    def __init__(self, num_actions: int, image_shape: tuple[int, ...], precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.convolutions = nn.ModuleList(
            _initialized(nn.Conv2d(channels, filters, kernel, stride))
            for channels, filters, (kernel, stride) in zip(
                (image_shape[0], 32, 64), (32, 64, 64), _KERNELS, strict=True
            )
        )
        self.map_shape = (64, *feature_map_size(*image_shape[1:]))  # (K, h, w)
        self.fc = _initialized(nn.Linear(int(np.prod(self.map_shape)), 512))
        self.actor = _initialized(nn.Linear(512, num_actions), std=0.01)
        self.critic = _initialized(nn.Linear(512, 1), std=1.0)
        # About twice as fast on a CPU, and what a GPU's tensor cores want.
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def weights(self, attention_method: str | None = None) -> Weights:
        """All weights as the network computes with them, with what this attention method needs of them.

        Who calls `forward` often, or in parts, makes them once.
        """
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        first, *others = list(self.convolutions.parameters()) + list(self.fc.parameters())
        # Scaled weights are far fewer numbers than scaled pixels, which bf16 holds exactly as they are.
        body = [one.to(dtype) for one in (first / 255, *others)]
        pairs = zip(self.actor.parameters(), self.critic.parameters(), strict=True)
        heads = [torch.cat(pair) for pair in pairs]
        pooled = None
        if attention_method is not None:
            from camal_rl import attention

            if attention_method in attention.POOLED_METHODS:
                pooled = attention.pooled_weight(self.fc.weight, self.map_shape, channels_last=True)
        return Weights._make((*body, *heads, pooled))

    @torch.no_grad()
    def set_gradients(self, parts: Sequence[Weights]) -> None:
        """Set the parameters' gradients from those of `weights`, one `Weights` for each part of a minibatch.

        What automatic differentiation of `weights` would do, in fewer passes over memory.
        """

        def total(gradients: Sequence[Tensor]) -> Tensor:
            # Laid out as the parameters are: the optimiser takes that for granted.
            layout = torch.channels_last if gradients[0].dim() == 4 else torch.contiguous_format
            result = gradients[0].to(torch.float32, memory_format=layout)
            for more in gradients[1:]:
                result += more
            return result

        *body, heads, heads_bias = (total(one) for one in zip(*(part[:-1] for part in parts), strict=True))
        body[0] /= 255
        pooled = [part.pooled for part in parts if part.pooled is not None]
        if pooled:
            channels, height, width = self.map_shape
            by_position = body[6].view(-1, height * width, channels)
            by_position.add_(total(pooled)[:, None], alpha=1 / (height * width))
        ends = (heads[:-1], heads_bias[:-1], heads[-1:], heads_bias[-1:])  # the actor's and the critic's
        for parameter, gradient in zip(self.parameters(), (*body, *ends), strict=True):
            parameter.grad = gradient

    def forward(self, images: Tensor, weights: Weights | None = None) -> Output:
        """Images are uint8 (B, stack, H, W)."""
        w = self.weights() if weights is None else weights
        feature_maps = images.to(w.kernel1.dtype, memory_format=torch.channels_last)
        layers = ((w.kernel1, w.bias1), (w.kernel2, w.bias2), (w.kernel3, w.bias3))
        for (kernel, bias), (_, stride) in zip(layers, _KERNELS, strict=True):
            feature_maps = F.conv2d(feature_maps, kernel, bias, stride).relu_()
        hidden = _linear(_flatten(feature_maps), w.fc, w.fc_bias).relu_().float()
        return Output(F.linear(hidden, w.heads, w.heads_bias), hidden, feature_maps)

    def cam(
        self,
        output: Output,
        method: str,
        generator: torch.Generator | None = None,
        weights: Weights | None = None,
    ) -> Tensor:
        """Attention of the critic's value, (B, h, w), not normalised (Eq. 3); methods: `attention.METHODS`.

        `diffgradcam` contrasts classes, which a value does not have: it is taken of the actor's best action.
        In closed form where that is exact, else by automatic differentiation of the last two layers.
        """
        from camal_rl import attention

        w = self.weights(method) if weights is None else weights
        if method in attention.POOLED_METHODS:
            last_weight = w.heads[-1]  # (512,)
            if method == "diffgradcam":  # y_c - log sum of exp of the others: their softmax weighs their rows
                best = output.logits.argmax(dim=1, keepdim=True)
                others = output.logits.scatter(1, best, float("-inf")).softmax(dim=1)
                last_weight = w.heads[best.squeeze(1)] - others @ w.heads[:-1]  # (B, 512)
            assert w.pooled is not None
            return attention.closed_form_map(output.feature_maps, output.hidden, w.pooled, last_weight)
        feature_maps, fc = output.feature_maps.float(), w.fc.float()
        if method not in attention.RESAMPLING_METHODS:
            gradients = attention.head_gradient(
                output.hidden, fc, w.heads[-1], self.map_shape, channels_last=True
            )
            return attention.gradient_to_map(feature_maps, gradients, method)

        def value(maps: Tensor) -> Tensor:
            hidden = F.linear(_flatten(maps), fc, w.fc_bias.float()).relu()
            return F.linear(hidden, w.heads, w.heads_bias)[:, -1]  # (B,)

        return attention.class_activation_map(feature_maps, value, method, generator=generator)


def _flatten(feature_maps: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, h * w * K), as it lies in memory: nothing is copied, nor is its gradient."""
    return feature_maps.movedim(1, -1).flatten(1)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, also of a weight that `Weights.packed` made."""
    if weight.is_mkldnn:
        return cast("Tensor", torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], ""))
    return F.linear(inputs, weight, bias)


def feature_map_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the agent's feature maps, and so of its attention, for frames of this size."""
    for kernel, stride in _KERNELS:
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return height, width


def _initialized(layer: Any, std: float = 2**0.5) -> Any:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


# ------------------------------------------------------------------------------------------------------------
# One iteration: rollout, advantages, update


@dataclass
class Rollout:
    """What one rollout collects: T steps of N environments, allocated once, overwritten by the next."""

    images: Tensor  # uint8 (T, N, stack, H, W), channels last in memory as the network wants them
    actions: Tensor  # int64 (T, N)
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T, N)
    rewards: Tensor  # (T, N), as the agent learns from them
    dones: Tensor  # (T, N), 1 where the observation is an episode's first
    mask_weights: Tensor  # (T, N, 2, h, w), or empty where attention is not supervised
    measured: np.ndarray  # int (M,), ascending flat indices of the frames on which attention is measured
    measured_masks: np.ndarray  # uint8 (M, h_label, w_label)


def projection_of(args: Args) -> Projection | None:
    """What a run's environments do with every mask, where attention is supervised."""
    if args.run.method == "vanilla":
        return None

    mask_size = RENDER_RESOLUTIONS[args.environment.render_resolution]
    return Projection(mask_size, feature_map_size(*args.environment.frame_size))


def allocate(args: Args, envs: DoomVectorEnv, agent: Agent, device: torch.device) -> Rollout:
    """An empty rollout of the right size."""
    shape = (args.ppo.num_steps, envs.num_envs)
    supervised = args.run.method != "vanilla"
    measured = min(MEASURED_FRAMES, shape[0] * shape[1]) if args.attention.measure_every else 0
    stack, height, width = envs.images.shape[1:]
    return Rollout(
        images=torch.zeros((*shape, height, width, stack), dtype=torch.uint8, device=device).movedim(-1, 2),
        actions=torch.zeros(shape, dtype=torch.int64, device=device),
        logprobs=torch.zeros(shape, device=device),
        values=torch.zeros(shape, device=device),
        rewards=torch.zeros(shape, device=device),
        dones=torch.zeros(shape, device=device),
        mask_weights=torch.zeros((*shape, 2, *agent.map_shape[1:]) if supervised else (0,), device=device),
        measured=np.zeros(measured, np.int64),
        measured_masks=np.zeros((measured, *envs.masks.shape[1:]), np.uint8),
    )


@dataclass
class Progress:
    """Where training stands between two iterations, but for weights, optimiser and environments."""

    iteration: int
    """Iterations done."""
    dones: np.ndarray
    """Whether the newest observation is an episode's first, bool (N,)."""
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
    workers: Workers,
) -> list[Episode]:
    """Play `num_steps` in every environment into `store`, and return the episodes that ended.

    Each thread plays some games by itself, deciding and acting in turns, so that no core waits for another.

    Raises:
        FloatingPointError: a reward or what the network gives is NaN or infinite.
    """
    device = store.images.device
    steps, num_envs = store.actions.shape
    chances = torch.rand((steps, num_envs, 1), generator=generator, device=device).cpu().numpy()
    choice = np.random.default_rng((args.run.seed, progress.iteration))
    store.measured[:] = np.sort(choice.choice(steps * num_envs, len(store.measured), replace=False))
    measured_steps, measured_envs = np.divmod(store.measured, num_envs)
    heads = np.zeros((steps, num_envs, agent.actor.out_features + 1), np.float32)
    actions = np.zeros((steps, num_envs), np.int64)
    sums = np.zeros((steps, num_envs, *agent.map_shape[1:]))  # of masks, projected
    raw, extra = np.zeros((2, steps, num_envs))
    ends = np.zeros((steps, num_envs), np.bool_)
    games_of_threads = workers.slices(num_envs)
    with torch.no_grad():
        weights = agent.weights().packed(-(-num_envs // len(games_of_threads)))

    @torch.no_grad()
    def play(games: slice) -> None:
        own = (games.start <= measured_envs) & (measured_envs < games.stop)
        for step in range(steps):
            images = store.images[step, games]
            images.copy_(torch.from_numpy(envs.images[games]), non_blocking=True)
            if envs.transformed is not None:
                sums[step, games] = envs.transformed[games]
            here = np.flatnonzero(own & (measured_steps == step))
            store.measured_masks[here] = envs.masks[measured_envs[here]]
            heads[step, games] = agent(images, weights).heads.cpu().numpy()
            actions[step, games] = sample(heads[step, games, :-1], chances[step, games])
            result = envs.step_some(games, actions[step, games].tolist())
            raw[step, games], terminations, truncations, last_frames = result
            ends[step, games] = terminations | truncations
            if args.environment.bootstrap_truncated and truncations.any():
                cut = np.flatnonzero(truncations).tolist()
                frames = torch.from_numpy(np.stack([last_frames[index] for index in cut]))
                extra[step, games][cut] = agent(frames.to(device), weights).value.cpu().numpy()

    workers.run(play, games_of_threads)
    check_finite({"a reward of the game": raw, "the network's output": heads})
    rewards = shape_rewards(raw, args.environment.reward, envs.definition) + args.ppo.gamma * extra
    store.rewards.copy_(torch.from_numpy(rewards))
    store.dones.copy_(torch.from_numpy(np.concatenate([progress.dones[None], ends[:-1]])))
    store.actions.copy_(torch.from_numpy(actions))
    outputs = torch.from_numpy(heads).to(device)  # (T, N, actions + 1)
    store.values.copy_(outputs[..., -1])
    store.logprobs.copy_(outputs[..., :-1].log_softmax(dim=2).gather(2, store.actions[..., None]).squeeze(2))
    if (projection := projection_of(args)) is not None:
        store.mask_weights.copy_(torch.from_numpy(projection.weights(sums)))
    progress.dones = ends[-1]

    episodes = []
    for step in range(steps):
        progress.returns += raw[step]
        progress.lengths += 1
        for index in np.flatnonzero(ends[step]):
            total, length = float(progress.returns[index]), int(progress.lengths[index])
            episodes.append(Episode((progress.iteration * steps + step + 1) * num_envs, total, length))
            progress.recent.append(total)
            progress.returns[index] = progress.lengths[index] = 0
    return episodes


def check_finite(terms: Mapping[str, float | np.ndarray | Tensor]) -> None:
    """Stop where a number is NaN or infinite: nothing good comes of training with it.

    Raises:
        FloatingPointError: with the name of the first such term.
    """
    finite = torch.stack([torch.as_tensor(numbers).isfinite().all() for numbers in terms.values()]).tolist()
    for name, good in zip(terms, finite, strict=True):
        if not good:
            raise FloatingPointError(name)


def sample(logits: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Actions drawn with the probabilities softmax(logits), int (n,).

    Args:
        logits: (n, actions).
        chances: (n, 1), uniform in [0, 1).
    """
    likelihood = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    return np.asarray((likelihood <= chances * likelihood[:, -1:]).sum(axis=1))


def shape_rewards(raw: np.ndarray, how: str, definition: Definition) -> np.ndarray:
    """What the agent learns from: raw rewards, clipped to [-1, 1], or times the environment's factor."""
    if how == "clip":
        return np.asarray(np.clip(raw, -1, 1))
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


def learn(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    envs: DoomVectorEnv,
    store: Rollout,
    progress: Progress,
    args: Args,
    generator: torch.Generator,
    workers: Workers,
) -> dict[str, float]:
    """Learn from a rollout, and return what `update` does.

    Raises:
        FloatingPointError: with the name of the first number that is NaN or infinite.
    """
    device = store.images.device
    with torch.no_grad():
        next_value = agent(torch.from_numpy(envs.images).to(device)).value
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
    try:
        means = update(agent, optimizer, store, advantages, returns, args, generator, workers)
    except RuntimeError as error:
        if torch.is_anomaly_enabled() and "nan values" in str(error):
            raise FloatingPointError(f"a gradient ({error})") from error
        raise
    check_finite({f"the agent's {name}": one for name, one in agent.state_dict().items()})
    return means


SMALLEST_PART = 64
"""Samples below which a minibatch is not divided further: convolutions of fewer take longer for each."""


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    store: Rollout,
    advantages: Tensor,
    returns: Tensor,
    args: Args,
    generator: torch.Generator,
    workers: Workers,
) -> dict[str, float]:
    """Optimise on one rollout for `update_epochs` passes; the means of all losses over all minibatches.

    Each thread takes a part of a minibatch through the network and back. Losses are those of the whole; each
    of the two is one thread's.

    Raises:
        FloatingPointError: with the name of the first loss that is NaN or infinite.
    """
    ppo = args.ppo
    frames = store.images.flatten(0, 1).movedim(1, -1)  # (B, H, W, stack), as they lie in memory
    rows = frames.flatten(1)  # so that taking samples copies whole rows
    flat = (store.actions, store.logprobs, store.values, returns, advantages)
    batch = Batch._make((*(one.flatten() for one in flat), *_attention_costs(store, args)))
    batch_size = len(rows)
    method = None if batch.costs is None else args.attention.attention
    parts = _parts(batch_size // ppo.num_minibatches, method, workers)

    def forward(weights: Weights, index: Tensor) -> list[Tensor]:
        images = rows.index_select(0, index).view(-1, *frames.shape[1:]).movedim(-1, 1)
        output = agent(images, weights)
        attention = [] if method is None else [agent.cam(output, method, generator, weights)]
        return [output.heads, *attention]

    def backward(weights: Weights, outputs: list[Tensor], upstream: list[Tensor]) -> Weights:
        gradients = iter(torch.autograd.grad(outputs, weights.tensors(), upstream))
        return Weights._make(one if one is None else next(gradients) for one in weights)

    history: list[Tensor] = []  # of each minibatch, all terms
    for _ in range(ppo.update_epochs):
        order = torch.randperm(batch_size, generator=generator, device=rows.device)
        for index in order.chunk(ppo.num_minibatches):
            with torch.no_grad():
                weights = agent.weights(method)
            copies = [weights.detached() for _ in range(parts)]
            outputs = workers.run(forward, copies, index.tensor_split(parts))
            ends = [torch.cat(one).detach() for one in zip(*outputs, strict=True)]
            slopes = partial(_slopes, batch=batch.at(index), args=args)
            of_ends, terms = zip(*workers.run(slopes, LOSSES[: len(ends)], ends), strict=True)
            upstream = list(zip(*(one.tensor_split(parts) for one in of_ends), strict=True))
            agent.set_gradients(workers.run(backward, copies, outputs, upstream))
            means = {name: value for term in terms for name, value in term.items()}
            means["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), ppo.max_grad_norm)
            optimizer.step()
            names = list(means)
            history.append(torch.stack(list(means.values())))
    unexplained = (batch.returns - batch.values).var() / batch.returns.var()  # not finite where all are equal
    # All at once: a GPU is waited for only here.
    *numbers, explained = torch.cat([*history, 1 - unexplained[None]]).tolist()
    table = np.array(numbers).reshape(len(history), len(names))
    if not np.isfinite(table).all():
        minibatch, term = np.argwhere(~np.isfinite(table))[0]
        raise FloatingPointError(f"losses/{names[term]} in minibatch {minibatch + 1}")
    return dict(zip(names, table.mean(axis=0).tolist(), strict=True)) | {"explained_variance": explained}


def _parts(size: int, attention_method: str | None, workers: Workers) -> int:
    """How many parts a minibatch of this size is divided into."""
    if workers.device.type != "cpu":
        return 1
    if attention_method is not None:
        from camal_rl import attention

        if attention_method in attention.RESAMPLING_METHODS:  # their noise comes from one generator
            return 1
    return workers.parts(size, SMALLEST_PART)


def _attention_costs(store: Rollout, args: Args) -> tuple[Tensor | None, Tensor | None]:
    if args.run.method == "vanilla":
        return None, None
    from camal_rl import camal

    return camal.costs(
        store.mask_weights.flatten(0, 1), empty_mask=args.attention.empty_mask, method=args.run.method
    )


class Batch(NamedTuple):
    """Steps of a rollout, in whatever order, without their images."""

    actions: Tensor  # int64 (B,)
    logprobs: Tensor  # (B,), when they were taken
    values: Tensor  # (B,), before the update
    returns: Tensor  # (B,)
    advantages: Tensor  # (B,)
    costs: Tensor | None  # (B, h, w), what attention adds to the loss, where it is supervised
    counted: Tensor | None  # bool (B,), whether it does, where it is supervised

    def at(self, index: Tensor) -> Batch:
        """Some of them."""
        return Batch._make(one if one is None else one[index] for one in self)


def ppo_loss(heads: Tensor, batch: Batch, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """What PPO minimises, of a minibatch's heads, (B, actions + 1); its terms and other means by name."""
    ppo = args.ppo
    value = heads[:, -1]
    all_logprobs = heads[:, :-1].log_softmax(dim=1)  # (B, actions)
    log_ratio = all_logprobs.gather(1, batch.actions[:, None]).squeeze(1) - batch.logprobs
    ratio = log_ratio.exp()
    entropy = -(all_logprobs.exp() * all_logprobs).sum(dim=1).mean()

    advantage = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    clipped_ratio = ratio.clamp(1 - ppo.clip_coef, 1 + ppo.clip_coef)
    policy_loss = -torch.min(advantage * ratio, advantage * clipped_ratio).mean()

    value_error = (value - batch.returns) ** 2
    if ppo.clip_vloss:
        step = (value - batch.values).clamp(-ppo.clip_coef, ppo.clip_coef)
        value_error = torch.max(value_error, (batch.values + step - batch.returns) ** 2)
    value_loss = 0.5 * value_error.mean()

    loss = policy_loss - ppo.ent_coef * entropy + ppo.vf_coef * value_loss
    return loss, {
        "value_loss": value_loss,
        "policy_loss": policy_loss,
        "entropy": entropy,
        "old_approx_kl": -log_ratio.mean(),
        "approx_kl": ((ratio - 1) - log_ratio).mean(),
        "clipfrac": ((ratio - 1).abs() > ppo.clip_coef).float().mean(),
    }


def attention_loss(cam: Tensor, batch: Batch, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """What Eq. 2 adds, of a minibatch's maps, (B, h, w), not normalised; L_CAMAL itself by name."""
    from camal_rl import attention, camal

    assert batch.costs is not None
    assert batch.counted is not None
    loss = camal.mean_cost(attention.normalize(cam), batch.costs, batch.counted.sum())
    return args.attention.camal_coef * loss, {"camal_loss": loss}


Loss = Callable[[Tensor, Batch, Args], tuple[Tensor, dict[str, Tensor]]]
"""Output of the network, the rest of the minibatch -> what is minimised, and means by name."""

LOSSES: tuple[Loss, ...] = (ppo_loss, attention_loss)
"""Terms of what is minimised (Eq. 2), each of one output of the network."""


def _slopes(loss: Loss, output: Tensor, batch: Batch, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of one of the losses with respect to the output that it is of, and its means."""
    minimised, means = loss(output.requires_grad_(), batch, args)
    (gradient,) = torch.autograd.grad(minimised, output)
    return gradient, {name: value.detach() for name, value in means.items()}


# ------------------------------------------------------------------------------------------------------------
# Watching attention, for every method alike


class Measurement(NamedTuple):
    """Attention on one minibatch of frames."""

    scalars: dict[str, float]  # by TensorBoard tag
    strip: np.ndarray | None  # uint8 (H, W, 3): frame, mask, heat map, heat map over frame


@torch.no_grad()
def measure(
    agent: Agent, store: Rollout, args: Args, iteration: int, draw: bool, workers: Workers
) -> Measurement:
    """How well attention agrees with the masks now; without gradients, and no random state is touched."""
    from camal_rl import attention, camal, metrics

    device = store.images.device
    images = store.images.flatten(0, 1)[torch.from_numpy(store.measured).to(device)]
    masks = store.measured_masks
    method = args.attention.attention
    model_weights = agent.weights(method)
    parts = _parts(len(masks), method, workers)

    @torch.no_grad()
    def agreement(part: Tensor, part_masks: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Maps, projected masks, and IoU and its ceiling: NaN where there is no target."""
        generator = torch.Generator(device).manual_seed(iteration)
        cam = agent.cam(agent(part, model_weights), method, generator, model_weights)
        maps = attention.normalize(cam).cpu().numpy()
        weights = mask_weights(part_masks, agent.map_shape[1:])
        seen = weights[:, 0].any(axis=(1, 2))
        scores = np.full((len(maps), 2), np.nan)
        scores[seen, 0] = metrics.iou(maps[seen], part_masks[seen])
        scores[seen, 1] = metrics.iou_ceiling(weights[seen], part_masks[seen])
        return cam, torch.from_numpy(weights).to(device), torch.from_numpy(scores)

    results = workers.run(agreement, images.tensor_split(parts), np.array_split(masks, parts))
    cam, weights, scores = (torch.cat(one) for one in zip(*results, strict=True))
    heat = attention.normalize(cam)
    loss, alpha, beta, visible = camal.projected_loss(
        heat,
        weights,
        empty_mask=args.attention.empty_mask,
        method="suppress" if args.run.method == "suppress" else "camal",
    )
    scalars = {
        "camal/dead_map_fraction": float(attention.is_dead(cam).float().mean()),
        "camal/target_visible_fraction": float(visible.float().mean()),
    }
    seen = visible.cpu().numpy()
    if seen.any():
        scalars |= {
            "camal/loss": float(loss),
            "camal/alpha": float(alpha[visible].mean()),
            "camal/beta": float(beta[visible].mean()),
            "camal/iou": float(scores[seen, 0].mean()),
            "camal/iou_ceiling": float(scores[seen, 1].mean()),
        }
    if not draw:
        return Measurement(scalars, None)
    maps = heat.cpu().numpy()
    rows = np.argsort(~seen, kind="stable")[:4]  # frames with a target first
    return Measurement(
        scalars,
        media.stack_strips(
            [
                media.attention_strip(images[row, -1].cpu().numpy(), masks[row], {"": maps[row]})
                for row in rows
            ]
        ),
    )


# ------------------------------------------------------------------------------------------------------------
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
        if not least <= value < 2**63:
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
            f"{ppo.num_minibatches} minibatches: change --num-envs, --num-steps or --num-minibatches."
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
            f"--frame-size {args.environment.frame_size[0]} {args.environment.frame_size[1]}: "
            "the network needs at least 36 36."
        )


def pinned_pixels(shape: tuple[int, ...]) -> np.ndarray:
    """Black pixels, uint8, in memory that a GPU reads directly."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()


class Plan(NamedTuple):
    """What a run's arguments come to on this machine."""

    definition: Definition
    device: torch.device
    precision: Precision
    folder: Path
    described: dict[str, dict[str, Any]]  # the content of args.json
    batch_size: int  # agent steps an iteration
    iterations: int


def plan(args: Args) -> Plan:
    """Check arguments and the run's folder before anything is started or written.

    Raises:
        UserError: arguments, environment, machine or folder with which they can't be trained.
    """
    check_args(args)
    definition = load_definition(args.run.env)
    device = choose_device(args.machine.device)
    precision = choose_precision(args.machine.precision, device)
    folder = args.run.runs_dir / definition.name / args.run.method / f"seed{args.run.seed}"
    described = run_folder.describe(dataclasses.asdict(args), definition)
    described["machine"] |= {
        "precision": precision,
        "device_type": device.type,  # the random state of one kind means nothing to another
    }
    run_folder.check_args_file(folder, described)
    batch_size = args.ppo.num_envs * args.ppo.num_steps
    iterations = args.run.total_timesteps // batch_size
    return Plan(definition, device, precision, folder, described, batch_size, iterations)


def train(args: Args, interrupted: Callable[[], bool] = lambda: False) -> Path:
    """Train to the end, or until `interrupted()` after an iteration, and return the run's folder.

    Raises:
        UserError: arguments, environment, machine or folder with which that can't be done.
    """
    planned = plan(args)
    with run_folder.lock(planned.folder, "train"):
        return _train(args, planned, interrupted)


def _train(args: Args, planned: Plan, interrupted: Callable[[], bool]) -> Path:
    definition, device, precision, folder, described, batch_size, iterations = planned
    checkpoint = run_folder.load_checkpoint(folder / "checkpoint.pt")
    if checkpoint is not None and not (folder / "args.json").exists():
        raise UserError(f"{folder} has a checkpoint but no args.json: move it away to start anew.")
    if checkpoint is not None and checkpoint["iteration"] >= iterations:
        print(f"{folder} is already done: {checkpoint['iteration'] * batch_size:,} steps. Nothing to do.")
        return folder

    print(
        f"camal_rl {__version__}: {definition.name}, {args.run.method}, seed {args.run.seed}, "
        f"{iterations:,} iterations of {batch_size:,} steps on {device} ({precision})\n"
        f"Run folder:  {folder}\nTensorBoard: tensorboard --logdir {args.run.runs_dir}",
        flush=True,
    )
    keep_freed_memory()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(torch.set_num_threads, torch.get_num_threads())
        threads = args.machine.torch_threads or min(torch.get_num_threads(), cores())
        torch.set_num_threads(1)  # the rounding of the initial weights depends on it
        torch.manual_seed(args.run.seed)
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        envs = DoomVectorEnv(
            definition,
            args.ppo.num_envs,
            args.environment.frame_size,
            args.environment.render_resolution,
            mask_transform=projection_of(args),
            allocate=pinned_pixels if device.type == "cuda" else zero_pixels,
        )
        cleanup.callback(envs.close)
        workers = cleanup.enter_context(Workers(threads, device))
        agent = Agent(len(envs.envs[0].actions), envs.images.shape[1:], precision).to(device)
        torch.set_num_threads(threads)
        optimizer = torch.optim.Adam(
            agent.parameters(), lr=args.ppo.learning_rate, eps=1e-5, fused=device.type in ("cpu", "cuda")
        )
        generator = torch.Generator(device).manual_seed(args.run.seed)
        if checkpoint is None:
            envs.reset(seed=np.random.SeedSequence(args.run.seed).generate_state(args.ppo.num_envs).tolist())
        else:
            agent.load_state_dict(checkpoint["agent"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            generator.set_state(checkpoint["generator"])
            envs.load_state_dict(checkpoint["envs"])
        start = checkpoint or _beginning(args.ppo.num_envs)
        progress = Progress(
            iteration=start["iteration"],
            dones=np.array(start["dones"]),
            returns=np.array(start["returns"]),
            lengths=np.array(start["lengths"]),
            recent=deque(start["recent"], maxlen=100),
        )
        first_step = progress.iteration * batch_size
        restarts_before = start["engine_restarts"]
        run_folder.write_args_file(folder, described)
        run_folder.remove_remains(folder)
        # What a killed process logged after its last checkpoint, or without one, is done and logged again.
        writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        cleanup.callback(writer.close)
        if checkpoint is None:
            rows = "\n".join(f"|{name}|{value}|" for one in described.values() for name, value in one.items())
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
        if args.machine.detect_anomaly:
            cleanup.enter_context(torch.autograd.set_detect_anomaly(True))
        store = allocate(args, envs, agent, device)

        def state() -> dict[str, Any]:
            """Where the run stands between two iterations, but for what an update changes."""
            return {
                "iteration": progress.iteration,
                "generator": generator.get_state(),
                "envs": envs.state_dict(),
                "dones": progress.dones.tolist(),
                "returns": progress.returns.tolist(),
                "lengths": progress.lengths.tolist(),
                "recent": list(progress.recent),
                "engine_restarts": restarts_before + envs.restarts,
            }

        def save(between: dict[str, Any]) -> None:
            writer.flush()
            learned = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict()}
            run_folder.save_checkpoint(folder / "checkpoint.pt", between | learned)

        now = state()
        began = time.perf_counter()
        dead = 0  # measurements in a row in which all maps were
        status: dict[str, str] = {}  # beside the progress bar
        while progress.iteration < iterations:
            learning_rate = args.ppo.learning_rate
            if args.ppo.anneal_lr:
                learning_rate *= 1 - progress.iteration / iterations
            optimizer.param_groups[0]["lr"] = learning_rate

            try:
                episodes = rollout(agent, envs, store, progress, args, generator, workers)
                means = learn(agent, optimizer, envs, store, progress, args, generator, workers)
            except EngineError:
                save(now)
                raise
            except FloatingPointError as error:
                raise UserError(
                    f"iteration {progress.iteration + 1:,}: {error} is NaN or infinite, and training has "
                    f"stopped. The last checkpoint is as it was. {NOT_FINITE}"
                ) from error
            progress.iteration += 1
            now = state()

            step = progress.iteration * batch_size
            sps = (step - first_step) / (time.perf_counter() - began)
            last = progress.iteration == iterations or interrupted()
            for episode in episodes:
                writer.add_scalar("charts/episodic_return", episode.total, episode.step)
                writer.add_scalar("charts/episodic_length", episode.length, episode.step)
            writer.add_scalar("charts/learning_rate", learning_rate, step)
            writer.add_scalar("charts/SPS", sps, step)
            writer.add_scalar("charts/engine_restarts", now["engine_restarts"], step)
            for name, value in means.items():
                writer.add_scalar(f"losses/{name}", value, step)
            status["SPS"] = f"{sps:.0f}"
            if progress.recent:
                status["return"] = f"{np.mean(progress.recent):.1f}"
            every = args.attention.measure_every
            draw = every > 0 and (progress.iteration == 1 or _crossed(step, batch_size, args.run.image_every))
            if draw or (every and (progress.iteration - 1) % every == 0):
                measured = measure(agent, store, args, progress.iteration, draw, workers)
                for tag, value in measured.scalars.items():
                    writer.add_scalar(tag, value, step)
                if measured.strip is not None:
                    writer.add_image("camal/attention", measured.strip, step, dataformats="HWC")
                    (folder / "media").mkdir(exist_ok=True)
                    write_whole(folder / "media" / "attention.png", media.encode_png(measured.strip))
                dead = dead + 1 if measured.scalars["camal/dead_map_fraction"] > 0.99 else 0
                if dead == DEAD_MEASUREMENTS and args.run.method != "vanilla":
                    bar.write(DEAD_WARNING, file=sys.stderr)
                status |= {
                    name: f"{measured.scalars[f'camal/{name}']:.2f}"
                    for name in ("alpha", "beta", "iou")
                    if f"camal/{name}" in measured.scalars
                }
            bar.set_postfix(status, refresh=False)
            bar.update(batch_size)
            if last or _crossed(step, batch_size, args.run.checkpoint_every):
                save(now)
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
        "engine_restarts": 0,
    }


def _crossed(step: int, batch_size: int, every: int) -> bool:
    """Whether the iteration that ended at `step` passed a multiple of `every`."""
    return step // every > (step - batch_size) // every


def main(args: Args) -> int:
    """Train, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_to_checkpoint(partial(train, args), "iteration", "--num-envs, --num-steps or --frame-size")


if __name__ == "__main__":
    sys.exit(main(ARGS))
