"""PPO on ViZDoom with CAMAL: CleanRL's `ppo_atari.py`, and the lines marked CAMAL (paper, Eq. 1 to 4).

Reads from top to bottom: arguments, agent, rollout, advantages, losses, update, training. Hyperparameters are
those of the paper's Table 8, and CleanRL's where the table is silent, but for four with which agents learned
better in trials: `--method camal --attention gradcam --reward clip --clip-vloss` are the paper's.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from camal_rl.errors import UserError
from camal_rl.run import command_line
from camal_rl.run.command_line import NAME, Count, Factor, Fraction, Map, Number, Positive, Switch, option

# -------------------------------------------------------------------------------------------------- arguments


@dataclass
class Args:
    """Train a ViZDoom agent with PPO and CAMAL. The same command again goes on where it stopped."""

    # run
    env: Annotated[str, NAME] = "Basic"
    """environment or .toml; python -m camal_rl.environments lists"""
    method: Annotated[command_line.Method, NAME] = "balanced"
    """balanced (lambda adapts), camal, vanilla, suppress (beta)"""
    name: command_line.RunName = ""
    """name of the run's folder, and in reports; the method's unless given"""
    seed: Count = 1
    """seed of weights, episodes and actions"""
    total_timesteps: Positive = 10_000_000
    """agent steps over all games (Table 8)"""
    runs_dir: Path = Path("runs")
    """folder of all runs; this one is <env>/<name>/seed<k> in it"""
    checkpoint_every: Positive = 50_000
    """agent steps between checkpoints and pictures of attention"""
    measure_every: Count = 4
    """iterations between measurements of attention, 0 for none"""
    track: Annotated[str, NAME] = ""
    """project of Weights & Biases that mirrors TensorBoard (pip install wandb)"""

    # environment
    frame_size: Annotated[tuple[int, int], option("H W")] = (84, 84)
    """height and width of what the agent sees, in pixels (CleanRL)"""
    render_resolution: Annotated[
        Literal["160x120", "200x150", "256x192", "320x240"], option("160x120|200x150|256x192|320x240")
    ] = "320x240"
    """what the engine draws, in pixels"""
    reward: Annotated[Literal["clip", "scale", "raw"], NAME] = "scale"
    """scale by the TOML, clip to [-1, 1] (Table 8), or raw"""
    max_episode_steps: Count = 0
    """agent steps after which an episode is truncated, 0 for none"""
    bootstrap_truncated: Switch = False
    """at a time limit, add the discounted value of the last frame"""

    # PPO
    learning_rate: Number = 2.5e-4
    """Adam's learning rate (Table 8)"""
    anneal_lr: Switch = True
    """lower the learning rate linearly to 0 (CleanRL)"""
    num_envs: Positive = 8
    """games played in parallel (Table 8)"""
    num_steps: Positive = 128
    """agent steps of each game in a rollout (Table 8)"""
    update_epochs: Positive = 4
    """passes over a rollout (Table 8)"""
    num_minibatches: Positive = 4
    """minibatches in a pass (Table 8)"""
    gamma: Fraction = 0.99
    """discount of an agent step (Table 8)"""
    gae_lambda: Fraction = 0.95
    """lambda of generalised advantage estimation (Table 8)"""
    clip_coef: Factor = 0.1
    """clip range of the probability ratio (Table 8)"""
    clip_vloss: Switch = False
    """clip the value loss (CleanRL); slow for values beyond 1"""
    ent_coef: Number = 0.01
    """coefficient of the entropy bonus (Table 8)"""
    vf_coef: Number = 0.5
    """coefficient of the value loss (Table 8)"""
    max_grad_norm: Factor = 0.5
    """largest L2 norm of the gradient (Table 8)"""

    # attention
    camal_coef: Number = 1.0
    """lambda of Eq. 2 (Table 8), the largest that balanced allows"""
    attention: Annotated[Map, NAME] = "magnitude"
    """magnitude, gradcam (Eq. 3), layercam, hirescam, diffgradcam, smoothgrad, integrated-gradients"""
    empty_mask: Annotated[Literal["ignore", "suppress"], NAME] = "ignore"
    """frames without a target: ignore, or suppress (beta alone)"""

    # machine
    device: Annotated[str, NAME] = "auto"
    """cpu, cuda, cuda:1, mps; auto: cuda where there is one"""
    precision: Annotated[Literal["auto", "fp32", "tf32", "bf16"], NAME] = "auto"
    """fp32, tf32 (CUDA), bf16; auto: bf16 where it is native"""
    torch_threads: Count = 0
    """CPU threads that play and learn, 0 for all cores"""
    play_in: Annotated[Literal["processes", "threads"], NAME] = "processes"
    """games are played in processes, or in threads of one"""

    @property
    def batch_size(self) -> int:
        """Agent steps of an iteration."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Agent steps of a minibatch."""
        return self.batch_size // self.num_minibatches

    @property
    def mask_stride(self) -> int:
        """Agent steps of a game from one mask that is kept to the next: about 128 of a rollout."""
        return max(1, self.batch_size // 128)

    def __post_init__(self) -> None:
        command_line.check_ranges(self)
        if self.name != self.method and self.name in get_args(command_line.Method):
            raise UserError(f"--name {self.name} is the name of another method: choose another one.")
        if self.batch_size % self.num_minibatches or self.batch_size < 2 * self.num_minibatches:
            raise UserError(
                f"{self.num_envs} games x {self.num_steps} steps do not divide into {self.num_minibatches} "
                "minibatches of two steps or more: change --num-envs, --num-steps or --num-minibatches."
            )
        if self.total_timesteps < self.batch_size:
            raise UserError(
                f"--total-timesteps {self.total_timesteps} is less than one iteration of {self.batch_size} "
                f"steps ({self.num_envs} games x {self.num_steps}): give more, or a smaller --num-steps."
            )
        if min(self.frame_size) < 36:
            raise UserError(f"--frame-size {self.frame_size}: the network needs at least 36 36.")


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return command_line.parse(Args, "python -m camal_rl.ppo", arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from camal_rl import attention, camal
from camal_rl.doom import FRAME_STACK, DoomVectorEnv, single_buttons
from camal_rl.game.definition import RENDER_RESOLUTIONS, Definition, load_definition
from camal_rl.run.device import inference_replica, prepare_device
from camal_rl.run.folder import RunFolder
from camal_rl.run.monitor import Monitor
from camal_rl.run.players import start_games
from camal_rl.run.workers import Workers

# ------------------------------------------------------------------------------------------------------ agent


class Output(NamedTuple):
    """The network's outputs for a batch of images."""

    logits: Tensor  # (B, actions)
    value: Tensor  # (B,)
    hidden: Tensor  # (B, 512), after its ReLU
    feature_maps: Tensor  # (B, K, h, w), after the last convolution's ReLU


def layer_init(layer: Any, std: float = 2**0.5) -> Any:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class PixelConv2d(nn.Conv2d):
    """A convolution of pixels from 0 to 255, whose weights are scaled by 1/255 instead of all the pixels."""

    bias: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        weight, bias = (self.weight / 255).to(pixels.dtype), self.bias.to(pixels.dtype)
        return F.conv2d(pixels, weight, bias, self.stride)


class Agent(nn.Module):
    """CleanRL's network for Atari, flattened channels last, with its feature maps and hidden layer in view.

    Args:
        num_actions: size of the action space.
        image_shape: (stack, H, W) of the observations, H and W at least 36 pixels.
    """

    def __init__(self, num_actions: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        stack, height, width = image_shape
        self.map_shape: tuple[int, ...] = (64, *feature_map_size((height, width)))  # (K, h, w)
        self.conv1 = layer_init(PixelConv2d(stack, 32, 8, stride=4))
        self.conv2 = layer_init(nn.Conv2d(32, 64, 4, stride=2))
        self.conv3 = layer_init(nn.Conv2d(64, 64, 3, stride=1))
        self.fc = layer_init(nn.Linear(math.prod(self.map_shape), 512))
        self.actor = layer_init(nn.Linear(512, num_actions), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)  # twice as fast on a CPU

    def forward(self, images: Tensor) -> Output:
        """Images are uint8 (B, stack, H, W)."""
        x = images.to(self.conv2.weight.dtype, memory_format=torch.channels_last)  # bf16 holds 255 exactly
        x = self.conv2(self.conv1(x).relu_()).relu_()
        feature_maps = self.conv3(x).relu_()  # (B, K, h, w)
        hidden = self.fc(feature_maps.movedim(1, -1).flatten(1)).relu_().to(self.actor.weight.dtype)
        return Output(self.actor(hidden), self.critic(hidden).squeeze(1), hidden, feature_maps)

    def replica(self, dtype: torch.dtype) -> Agent:
        """Return a copy that computes in `dtype`; the first convolution's weight and both heads stay fp32."""
        twin = copy.deepcopy(self)
        for layer in (twin.conv2, twin.conv3, twin.fc):
            layer.to(dtype)
        return twin


def feature_map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the feature maps, and so of attention, for frames of this height and width."""
    height, width = size
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return height, width


# ---------------------------------------------------------------------------------------------------- rollout


class Rollout(NamedTuple):
    """T steps of N games, allocated once and overwritten by the next rollout."""

    images: Tensor  # uint8 (T, N, stack, H, W), channels last in memory
    logits: Tensor  # (T, N, actions)
    values: Tensor  # (T, N)
    actions: Tensor  # int64 (T, N)
    rewards: Tensor  # (T, N), clipped or scaled
    ends: Tensor  # (T, N), 1 where the step ended an episode
    mask_weights: Tensor  # (T, N, 2, h, w), the masks projected to attention's resolution (CAMAL)
    masks: Tensor  # uint8 (ceil(T / mask_stride), N, h_label, w_label), those that attention is measured with


def allocate(args: Args, agent: Agent) -> Rollout:
    """Return an empty rollout in the CPU's memory."""
    shape = (args.num_steps, args.num_envs)
    images = torch.zeros((*shape, *args.frame_size, FRAME_STACK), dtype=torch.uint8).movedim(-1, 2)
    logits = torch.zeros((*shape, agent.actor.out_features))
    actions = torch.zeros(shape, dtype=torch.int64)
    values, rewards, ends = (torch.zeros(shape) for _ in range(3))
    mask_weights = torch.zeros((*shape, 2, *agent.map_shape[1:]))
    kept = len(range(0, args.num_steps, args.mask_stride))
    masks = torch.zeros((kept, args.num_envs, *RENDER_RESOLUTIONS[args.render_resolution]), dtype=torch.uint8)
    return Rollout(images, logits, values, actions, rewards, ends, mask_weights, masks)


def rollout(
    agent: Agent,
    envs: DoomVectorEnv,
    store: Rollout,
    args: Args,
    draws: np.ndarray,
    workers: Workers,
) -> Tensor:
    """Play `num_steps` in every game into `store`; each thread plays its own games and waits for no other.

    `draws`, (T, N), are uniform in [0, 1) and choose the actions. Returns the newest observations' values. A
    replica of the agent on the CPU decides, wherever the agent is: a GPU would be waited for in every step.
    """
    # For small copies numpy keeps the interpreter's lock; torch lets go of it, and threads wait.
    memory: Any = Rollout._make(field.numpy() for field in store)

    @torch.no_grad()
    def play(games: slice) -> Tensor:
        replica = inference_replica(agent, workers.play_dtype, games.stop - games.start)

        def forward(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            output: Output = replica(torch.from_numpy(images))
            return output.logits.numpy(), output.value.numpy()

        for step in range(args.num_steps):
            memory.images[step, games] = envs.images[games]
            if args.method != "vanilla":
                memory.mask_weights[step, games] = envs.mask_weights[games]  # CAMAL
            if step % args.mask_stride == 0:
                memory.masks[step // args.mask_stride, games] = envs.masks[games]
            logits, values = forward(envs.images[games])
            actions = sample(logits, draws[step, games])
            rewards, terminated, truncated, last_images = envs.step_games(games, actions.tolist())
            rewards = shape_rewards(rewards, args.reward, envs.definition.reward_scale)
            if args.bootstrap_truncated and truncated.any():
                cut = truncated.nonzero()[0].tolist()
                rewards[cut] += args.gamma * forward(np.stack([last_images[game] for game in cut]))[1]
            memory.logits[step, games], memory.values[step, games] = logits, values
            memory.actions[step, games], memory.rewards[step, games] = actions, rewards
            memory.ends[step, games] = terminated | truncated

        return torch.from_numpy(forward(envs.images[games])[1])

    return torch.cat(workers.run(play, workers.slices(envs.num_envs)))


def make_envs(definition: Definition, args: Args, num_envs: int) -> DoomVectorEnv:
    """Start games, whose masks are projected to attention's resolution where it is supervised."""
    map_size = None if args.method == "vanilla" else feature_map_size(args.frame_size)
    games = (definition, num_envs, args.frame_size, args.render_resolution)
    return DoomVectorEnv(*games, max_episode_steps=args.max_episode_steps, map_size=map_size)


def sample(logits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draw actions with the probabilities softmax(logits), int (n,), by draws uniform in [0, 1), (n,)."""
    cumulative = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)  # (n, actions)
    actions: np.ndarray = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=1)
    return actions


def shape_rewards(raw: np.ndarray, how: str, scale: float) -> np.ndarray:
    """Rewards that the agent learns from: raw ones, clipped to [-1, 1], or times the environment's factor."""
    return np.clip(raw, -1, 1) if how == "clip" else raw * (scale if how == "scale" else 1.0)


# ------------------------------------------------------------------------------------------------- advantages


def gae(
    rewards: Tensor, values: Tensor, ends: Tensor, next_value: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages and returns, (T, N) each; next_value is (N,)."""
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(next_value)
    for step in reversed(range(len(rewards))):
        continues = 1 - ends[step]
        delta = rewards[step] + gamma * next_value * continues - values[step]
        advantages[step] = following = delta + gamma * gae_lambda * continues * following
        next_value = values[step]
    return advantages, advantages + values


# ----------------------------------------------------------------------------------------------------- losses

CAMAL_SHARE = 0.5
"""Strength of CAMAL's gradient, relative to that of PPO's, that `balanced` allows."""
BALANCE_EVERY = 4
"""Iterations from one measurement of these strengths to the next."""


class Batch(NamedTuple):
    """Steps of a rollout in any order."""

    images: Tensor  # uint8 (B, stack, H, W)
    actions: Tensor  # int64 (B,)
    logprobs: Tensor  # (B,), when the actions were taken
    values: Tensor  # (B,), before the update
    returns: Tensor  # (B,)
    advantages: Tensor  # (B,), normalized over a minibatch
    mask_weights: Tensor  # (B, 2, h, w)
    supervised: Tensor  # (B,), 1 where attention is supervised; over a minibatch they sum to 1


def flatten(store: Rollout, advantages: Tensor, returns: Tensor, args: Args, device: torch.device) -> Batch:
    """Return all steps of a rollout as one batch, on the device that learns."""
    logprobs = store.logits.log_softmax(dim=2).gather(2, store.actions[:, :, None]).squeeze(2)
    has_target = store.mask_weights[:, :, 0].flatten(2).any(dim=2)  # (T, N)
    supervised = (has_target | (args.empty_mask == "suppress")).float()
    fields = (store.images, store.actions, logprobs, store.values, returns, advantages)
    all_fields = (*fields, store.mask_weights, supervised)
    return Batch._make(field.flatten(0, 1).to(device) for field in all_fields)


def take(batch: Batch, index: Tensor) -> Batch:
    """Return the minibatch of the steps at `index`, int64 (B,)."""
    images, *others = batch
    rows = images.movedim(1, -1)  # (T * N, H, W, stack), as they lie in memory, which is far faster to copy
    images = rows.flatten(1).index_select(0, index).view(-1, *rows.shape[1:]).movedim(-1, 1)
    steps = Batch._make((images, *(field[index] for field in others)))
    advantages = (steps.advantages - steps.advantages.mean()) / (steps.advantages.std() + 1e-8)
    supervised = steps.supervised / steps.supervised.sum().clamp(min=1)
    return steps._replace(advantages=advantages, supervised=supervised)


def losses(
    agent: Agent, batch: Batch, args: Args, camal_coef: float | Tensor, generator: Generator | None = None
) -> dict[str, Tensor]:
    """Return the loss of Eq. 2 and its terms for a part of a minibatch; the parts add up to the means of all.

    `camal_coef` is lambda; `generator` is for the methods of attention that draw noise.
    """
    output = agent(batch.images)
    logprobs = output.logits.log_softmax(dim=1)  # (B, actions)
    log_ratio = logprobs.gather(1, batch.actions[:, None]).squeeze(1) - batch.logprobs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    value_error = (output.value - batch.returns) ** 2
    if args.clip_vloss:
        change = (output.value - batch.values).clamp(-args.clip_coef, args.clip_coef)
        value_error = torch.max(value_error, (batch.values + change - batch.returns) ** 2)
    terms = {
        "policy_loss": -torch.min(batch.advantages * ratio, batch.advantages * clipped_ratio),
        "value_loss": 0.5 * value_error,
        "entropy": -(logprobs.exp() * logprobs).sum(dim=1),
        "old_approx_kl": -log_ratio,
        "approx_kl": (ratio - 1) - log_ratio,
        "clipfrac": ((ratio - 1).abs() > args.clip_coef).float(),
    }
    means = {name: term.sum() / args.minibatch_size for name, term in terms.items()}
    loss = means["policy_loss"] - args.ent_coef * means["entropy"] + args.vf_coef * means["value_loss"]
    if args.method != "vanilla":  # CAMAL
        cam = attention.critic_cam(agent, output, args.attention, generator)  # (B, h, w), Eq. 3
        heat = attention.normalize(cam)  # in [0, 1]
        alpha, beta = camal.projected_alpha_beta(heat, batch.mask_weights)  # (B,), Eq. 1
        costs = beta if args.method == "suppress" else beta - alpha
        means["camal_loss"] = (batch.supervised * costs).sum()
        loss = loss + camal_coef * means["camal_loss"]  # Eq. 2
    return {"loss": loss, **means}


def number_of_parts(args: Args) -> int:
    """Return how many parts a minibatch has: 1 where attention draws noise, 0 for as many as are fast."""
    return int(args.attention in attention.RESAMPLING_METHODS)


def balanced_coef(agent: Agent, batch: Batch, args: Args, generator: Generator, workers: Workers) -> float:
    """Return lambda, lowered so that CAMAL now pulls at most `CAMAL_SHARE` times as strongly as PPO.

    Strength is the L2 norm of a minibatch's gradient at the last convolution, which every term of the loss
    passes through (as in GradNorm, Chen et al. 2018).
    """

    def gradients(replica: Agent, part: Batch) -> Tensor:  # (2, weights)
        means = losses(replica, part, args, 0, generator)  # so that the loss is PPO's
        terms = (means["loss"], means["camal_loss"])
        weight = replica.conv3.weight
        each = [torch.autograd.grad(term, weight, retain_graph=True)[0] for term in terms]
        return torch.stack(each).flatten(1).float()

    order = torch.randperm(args.batch_size, generator=generator, device=generator.device)
    minibatch = take(batch, order[: args.minibatch_size])
    of_parts = workers.each(gradients, agent, minibatch, number_of_parts(args))
    ppo, own = torch.stack(of_parts).sum(dim=0).norm(dim=1).tolist()
    return float(min(args.camal_coef, CAMAL_SHARE * ppo / max(own, 1e-12)))


# ----------------------------------------------------------------------------------------------------- update


def update(
    agent: Agent, optimizer: Adam, batch: Batch, args: Args, generator: Generator, workers: Workers
) -> dict[str, float]:
    """Optimise on a rollout for `update_epochs` passes; return every term's mean over all minibatches.

    Raises:
        FloatingPointError: with the name of the first term that is NaN or infinite.
    """

    def learn(replica: Agent, part: Batch, camal_coef: Tensor) -> dict[str, Tensor]:
        means = losses(replica, part, args, camal_coef, generator)
        means["loss"].backward()
        return {name: mean.detach() for name, mean in means.items()}

    coef = torch.tensor(optimizer.param_groups[0].get("camal_coef", args.camal_coef), device=generator.device)
    parts = number_of_parts(args)
    history = []
    for _ in range(args.update_epochs):
        order = torch.randperm(args.batch_size, generator=generator, device=generator.device)
        for index in order.chunk(args.num_minibatches):
            means = workers.learn(learn, agent, take(batch, index), coef, parts=parts)  # adds up gradients
            means["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            history.append(torch.stack(list(means.values())))
    numbers = np.array(torch.stack(history).tolist())  # a GPU is waited for only here
    if not np.isfinite(numbers).all():
        minibatch, term = np.argwhere(~np.isfinite(numbers))[0]
        raise FloatingPointError(f"losses/{list(means)[term]} in minibatch {minibatch + 1}")
    return dict(zip(means, numbers.mean(axis=0).tolist(), strict=True))


# --------------------------------------------------------------------------------------------------- training


def train(args: Args, interrupted: Callable[[], bool] = lambda: False) -> Path:
    """Train to the end, or until `interrupted()` after an iteration, and return the run's folder.

    Raises:
        UserError: an environment, machine or folder with which that can't be done.
    """
    definition = load_definition(args.env)
    with ExitStack() as stack:
        device, precision, workers = prepare_device(args.device, args.precision, args.torch_threads, stack)
        chosen = {"precision": precision, "device_type": device.type}
        run = stack.enter_context(RunFolder(args, definition, chosen))
        if run.is_done():  # and says so
            return run.path
        torch.manual_seed(args.seed)
        agent = Agent(len(single_buttons(definition.buttons())), (FRAME_STACK, *args.frame_size)).to(device)
        store = allocate(args, agent)
        make = partial(make_envs, definition, args)
        envs, play = start_games(make, rollout, agent, store, args, workers)
        stack.enter_context(closing(envs))
        fused = device.type in ("cpu", "cuda")
        optimizer = Adam(agent.parameters(), args.learning_rate, eps=1e-5, fused=fused)
        generator = Generator(device).manual_seed(args.seed)
        state = {"agent": agent, "optimizer": optimizer, "generator": generator, "envs": envs}
        if not run.resume(state):
            envs.reset(seed=np.random.SeedSequence(args.seed).generate_state(args.num_envs).tolist())
        monitor = Monitor(args, run)

        for iteration in run.iterations():  # shows progress
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (iteration - 1) / run.total)
            draws = torch.rand((args.num_steps, args.num_envs), generator=generator, device=device)
            next_value = play(draws.cpu().numpy())
            played = (store.rewards, store.values, store.ends, next_value)
            advantages, returns = gae(*played, args.gamma, args.gae_lambda)
            batch = flatten(store, advantages, returns, args, device)
            if args.method == "balanced" and iteration % BALANCE_EVERY == 1:  # CAMAL
                coef = balanced_coef(agent, batch, args, generator, workers)
                optimizer.param_groups[0]["camal_coef"] = coef  # a part of the checkpoint there
            means = update(agent, optimizer, batch, args, generator, workers)

            means["explained_variance"] = float(1 - (returns - store.values).var() / returns.var())
            scalars = {f"losses/{name}": mean for name, mean in means.items()}
            scalars["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
            if args.method == "balanced":  # CAMAL
                scalars["charts/camal_coef"] = optimizer.param_groups[0]["camal_coef"]
            scalars["charts/engine_restarts"] = envs.restarts
            scalars["charts/SPS"] = run.speed()
            run.log_episodes(envs.finished_episodes())
            run.log(scalars)
            monitor.measure(agent, store, workers)
            stop = iteration < run.total and interrupted()
            if stop or run.passed(args.checkpoint_every):
                run.save(state)
            if stop:
                break
    return run.path


if __name__ == "__main__":
    options = "--num-envs, --num-steps or --frame-size"
    sys.exit(command_line.run_to_checkpoint(partial(train, ARGS), "iteration", options))
