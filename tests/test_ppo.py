"""The training loop: arithmetic against independent computations, the run as a user sees it, and resuming."""

import contextlib
import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import (
    SMALL,
    FakeGame,
    assert_same,
    left_of,
    orphaned_segments,
    own_engines,
    small_args,
    wait_until,
)
from faults import Faults, held, leaked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from camal_rl import attention, camal, doom, ppo
from camal_rl.errors import UserError, print_mistake
from camal_rl.game.definition import available, load_definition
from camal_rl.masks import mask_weights
from camal_rl.results import media
from camal_rl.run import folder as run_folder
from camal_rl.run import workers as run_workers
from camal_rl.run.workers import Workers

CPU = torch.device("cpu")
ALONE = Workers(1)
ROOT = Path(__file__).resolve().parent.parent


def stop_after(iterations: int):
    """An `interrupted` for `train` that stops it after so many iterations."""
    calls = iter([False] * (iterations - 1) + [True])
    return lambda: next(calls)


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


ENGINE_RUN = [
    *("--total-timesteps", "512", "--num-envs", "4", "--num-steps", "32"),
    *("--torch-threads", "1", "--precision", "fp32", "--update-epochs", "1"),
    *("--frame-size", "52", "60", "--render-resolution", SMALL),
]


def command(*options: object, module: str = "ppo") -> list[str]:
    return [sys.executable, "-m", f"camal_rl.{module}", *map(str, options)]


# ------------------------------------------------------------------------------------------------------------
# Arithmetic


def test_gae_equals_the_sum_of_discounted_errors_written_out():
    generator = torch.Generator().manual_seed(0)
    steps, envs, gamma, lam = 7, 3, 0.9, 0.8
    rewards, values = torch.randn(2, steps, envs, dtype=torch.float64, generator=generator)
    ends = (torch.rand(steps, envs, generator=generator) < 0.3).double()
    ends[-1] = torch.tensor([0.0, 1.0, 0.0])
    next_value = torch.randn(envs, dtype=torch.float64, generator=generator)
    advantages, returns = ppo.gae(rewards, values, ends, next_value, gamma, lam)
    all_values = torch.cat([values, next_value[None]])
    for env in range(envs):
        for start in range(steps):
            expected, weight = 0.0, 1.0
            for step in range(start, steps):
                goes_on = 1 - ends[step, env]
                error = rewards[step, env] + gamma * goes_on * all_values[step + 1, env] - values[step, env]
                expected += weight * error
                weight *= gamma * lam * goes_on
            assert advantages[start, env] == pytest.approx(float(expected), abs=1e-12)
    assert torch.equal(returns, advantages + values)


def test_rewards_are_clipped_scaled_or_left_as_they_are():
    raw = np.array([-4.0, 0.5, 101.0])
    assert ppo.shape_rewards(raw, "clip", 0.01).tolist() == [-1.0, 0.5, 1.0]
    assert ppo.shape_rewards(raw, "scale", 0.01) == pytest.approx([-0.04, 0.005, 1.01])
    assert ppo.shape_rewards(raw, "raw", 0.01).tolist() == raw.tolist()


@pytest.mark.parametrize("size", [(84, 84), (36, 50), (240, 320)])
@pytest.mark.slow
def test_feature_maps_have_the_size_that_is_computed_beforehand(size, monkeypatch):
    monkeypatch.setattr(nn.init, "orthogonal_", lambda *_: None)  # of 30 million weights takes seconds
    agent = ppo.Agent(3, (4, *size))
    output = agent(torch.zeros(2, 4, *size, dtype=torch.uint8))
    assert output.feature_maps.shape == (2, *agent.map_shape) == (2, 64, *ppo.feature_map_size(size))
    assert output.logits.shape == (2, 3)
    assert output.value.shape == (2,)


def test_agent_computes_what_cleanrls_network_computes():
    torch.manual_seed(0)
    agent = ppo.Agent(3, (4, 84, 84))
    images = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    conv1 = nn.Conv2d(4, 32, 8, stride=4)
    conv1.load_state_dict(agent.conv1.state_dict())
    convolutions = [layer for conv in (conv1, agent.conv2, agent.conv3) for layer in (conv, nn.ReLU())]
    fc = nn.Linear(3136, 512)  # CleanRL flattens (K, h, w), ours (h, w, K): the same columns in another order
    fc.bias = agent.fc.bias
    fc.weight = nn.Parameter(agent.fc.weight.unflatten(1, (7, 7, 64)).movedim(-1, 1).flatten(1))
    network = nn.Sequential(*convolutions, nn.Flatten(), fc, nn.ReLU())
    hidden = network(images / 255.0)
    output = agent(images)
    torch.testing.assert_close(output.value, agent.critic(hidden).squeeze(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.logits, agent.actor(hidden), rtol=1e-5, atol=1e-6)
    assert agent.actor.weight.norm(dim=1).tolist() == pytest.approx([0.01] * 3, rel=1e-4)
    assert agent.fc.weight.norm(dim=1).tolist() == pytest.approx([2**0.5] * 512, rel=1e-4)


def test_a_bf16_replica_is_close_to_fp32_and_gives_fp32_outputs():
    torch.manual_seed(0)
    agent = ppo.Agent(3, (4, 84, 84))
    replica = agent.replica(torch.bfloat16)
    images = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8)
    exact, coarse = agent(images), replica(images)
    cam = attention.critic_cam(replica, coarse)
    assert {coarse.logits.dtype, coarse.value.dtype, coarse.hidden.dtype, cam.dtype} == {torch.float32}
    assert coarse.feature_maps.dtype == torch.bfloat16
    difference = (exact.feature_maps - coarse.feature_maps.float()).norm()
    assert 0 < difference < 0.02 * exact.feature_maps.norm()
    assert {parameter.dtype for parameter in agent.parameters()} == {torch.float32}


def filled_rollout(args, agent, envs, workers=ALONE) -> ppo.Rollout:
    store = ppo.allocate(args, agent)
    envs.reset(seed=[1, 2, 3, 4])
    draws = torch.rand((args.num_steps, 4), generator=torch.Generator().manual_seed(0)).numpy()
    ppo.rollout(agent, envs, store, args, draws, workers)
    return store


def make_envs(args: ppo.Args) -> doom.DoomVectorEnv:
    map_size = None if args.method == "vanilla" else ppo.feature_map_size(args.frame_size)
    return doom.DoomVectorEnv("Basic", 4, args.frame_size, args.render_resolution, map_size=map_size)


def random_batch(args: ppo.Args, agent: ppo.Agent) -> ppo.Batch:
    """A rollout on the fake engine, with advantages and returns at random."""
    envs = make_envs(args)
    store = filled_rollout(args, agent, envs)
    envs.close()
    advantages, returns = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(1))
    return ppo.flatten(store, advantages, returns, args, CPU)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("clip_vloss", [True, False])
def test_a_vanilla_update_is_cleanrls(fake_engine, tmp_path, monkeypatch, clip_vloss, threads):
    monkeypatch.setattr(run_workers, "SMALLEST_PART", 16)  # two parts of a minibatch of 32
    args = small_args(tmp_path, method="vanilla", clip_vloss=clip_vloss)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    batch = random_batch(args, agent)
    reference = ppo.Agent(4, (4, 52, 60))
    reference.load_state_dict(agent.state_dict())

    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
    generator = torch.Generator().manual_seed(5)
    with Workers(threads) as workers:
        means = ppo.update(agent, optimizer, batch, args, generator, workers)

    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, eps=1e-5)
    generator = torch.Generator().manual_seed(5)
    value_losses, clip_fractions = [], []
    for _ in range(2):
        order = torch.randperm(64, generator=generator)
        for start in (0, 32):
            index = order[start : start + 32]
            output = reference(batch.images[index])
            logits, value = output.logits, output.value
            policy = torch.distributions.Categorical(logits=logits)
            ratio = (policy.log_prob(batch.actions[index]) - batch.logprobs[index]).exp()
            clip_fractions.append(((ratio - 1).abs() > 0.1).float().mean().item())
            advantage = batch.advantages[index]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.9, 1.1)).mean()
            target, old_value = batch.returns[index], batch.values[index]
            if clip_vloss:
                clipped = old_value + torch.clamp(value - old_value, -0.1, 0.1)
                value_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
            else:
                value_loss = 0.5 * ((value - target) ** 2).mean()
            value_losses.append(value_loss.item())
            loss = policy_loss - 0.01 * policy.entropy().mean() + 0.5 * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            optimizer.step()
    for (name, mine), theirs in zip(agent.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert len(set(value_losses)) == 4
    assert means["value_loss"] == pytest.approx(np.mean(value_losses), rel=1e-4)
    assert means["clipfrac"] == pytest.approx(np.mean(clip_fractions), abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_the_parts_add_up_to_those_of_the_whole_minibatch(
    fake_engine, tmp_path, monkeypatch, dtype, tolerance, threads
):
    monkeypatch.setattr(run_workers, "SMALLEST_PART", 8)
    args = small_args(tmp_path, num_minibatches=1)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    batch = ppo.take(random_batch(args, agent), torch.arange(64))
    ppo.losses(agent, batch, args, 1.0)["loss"].backward()
    expected = {name: parameter.grad.clone() for name, parameter in agent.named_parameters()}

    def learn(replica: ppo.Agent, part: ppo.Batch) -> dict[str, torch.Tensor]:
        if dtype == torch.float64:
            part = ppo.Batch._make(field.double() if field.is_floating_point() else field for field in part)
        means = ppo.losses(replica, part, args, 1.0)
        means["loss"].backward()
        return means

    if dtype == torch.float64:
        agent.double()
        agent.zero_grad()
        exact = ppo.Batch._make(field.double() if field.is_floating_point() else field for field in batch)
        ppo.losses(agent, exact, args, 1.0)["loss"].backward()
        expected = {name: parameter.grad.clone() for name, parameter in agent.named_parameters()}
    with Workers(threads, dtype) as workers:
        means = workers.learn(learn, agent, batch)
    assert set(means) >= {"loss", "policy_loss", "value_loss", "entropy", "camal_loss"}
    for name, parameter in agent.named_parameters():
        assert parameter.grad.stride() == parameter.stride()  # Adam goes through both as they lie in memory
        assert (parameter.grad - expected[name]).norm() <= tolerance * expected[name].norm(), name


def test_the_supervised_loss_is_the_plain_one_at_the_masks_resolution(fake_engine, tmp_path):
    args = small_args(tmp_path, num_minibatches=1)
    torch.manual_seed(1)
    agent = ppo.Agent(4, (4, 52, 60))
    envs = make_envs(args)
    store = filled_rollout(args, agent, envs)
    envs.close()
    batch = ppo.take(ppo.flatten(store, *torch.randn(2, 16, 4), args, CPU), torch.arange(64))
    heat = attention.normalize(attention.critic_cam(agent, agent(batch.images)))
    plain = camal.camal_loss(heat, store.masks.flatten(0, 1))
    means = ppo.losses(agent, batch, args, 0.5)
    assert means["camal_loss"].item() == pytest.approx(plain.item(), abs=1e-6)
    ppo_alone = means["policy_loss"] - 0.01 * means["entropy"] + 0.5 * means["value_loss"]
    assert (means["loss"] - ppo_alone).item() == pytest.approx(0.5 * plain.item(), abs=1e-5)
    assert plain.item() != 0


@pytest.mark.parametrize("threads", [1, 3])
def test_balanced_camal_pulls_with_a_share_of_ppos_strength_at_the_last_convolution(
    fake_engine, tmp_path, monkeypatch, threads
):
    monkeypatch.setattr(run_workers, "SMALLEST_PART", 8)
    args = small_args(tmp_path, method="balanced", num_minibatches=1, camal_coef=3.0)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    batch = random_batch(args, agent)
    generator = torch.Generator()
    with Workers(threads) as workers:
        found = ppo.balanced_coef(agent, batch, args, generator, workers)
        monkeypatch.setattr(ppo, "CAMAL_SHARE", 1e6)
        assert ppo.balanced_coef(agent, batch, args, generator, workers) == 3.0
    assert all(parameter.grad is None for parameter in agent.parameters())
    means = ppo.losses(agent, ppo.take(batch, torch.arange(64)), args, found)
    (means["loss"] - found * means["camal_loss"]).backward(retain_graph=True)
    strength = agent.conv3.weight.grad.norm()
    agent.zero_grad()
    (found * means["camal_loss"]).backward()
    assert agent.conv3.weight.grad.norm() == pytest.approx(0.5 * strength.item(), rel=1e-4)
    assert 0 < found < 3


def test_lambda_is_balanced_every_few_iterations_also_in_a_run_that_goes_on(
    fake_engine, tmp_path, monkeypatch
):
    found = iter([0.25, 0.125])
    monkeypatch.setattr(ppo, "balanced_coef", lambda *_: next(found))
    args = small_args(tmp_path, method="balanced", total_timesteps=64 * 6)
    ppo.train(args, stop_after(2))
    events = events_of(ppo.train(args))
    names = ("losses/policy_loss", "losses/entropy", "losses/value_loss", "losses/camal_loss", "losses/loss")
    policy, entropy, value, camal_loss, loss, coef = (
        np.array([scalar.value for scalar in events.Scalars(tag)]) for tag in (*names, "charts/camal_coef")
    )
    assert coef.tolist() == [0.25] * 4 + [0.125] * 2
    assert policy - 0.01 * entropy + 0.5 * value + coef * camal_loss == pytest.approx(loss, abs=1e-5)


def test_a_run_stopped_in_its_last_iteration_is_done(fake_engine, tmp_path, capsys):
    folder = ppo.train(small_args(tmp_path, total_timesteps=64), lambda: True)
    assert checkpoint_of(folder)["iteration"] == 1
    assert f"Evaluate it: python -m camal_rl.evaluate {folder}" in capsys.readouterr().out


def test_vanilla_calls_no_function_of_attention_or_camal(fake_engine, tmp_path, monkeypatch):
    called = []
    for module in (attention, camal):
        for name, function in vars(module).copy().items():
            if callable(function) and getattr(function, "__module__", "") == module.__name__:
                monkeypatch.setattr(module, name, lambda *_, name=name, **__: called.append(name))
    ppo.train(small_args(tmp_path, method="vanilla", measure_every=0, total_timesteps=64))
    assert called == []


def without_camal() -> str:
    """ppo.py without its lines on CAMAL: what is imported, what a rollout stores, the terms of the loss."""
    lines = (ROOT / "camal_rl/ppo.py").read_text().splitlines(keepends=True)
    kept = []
    skipping = -1  # indentation of a block that is being left out
    for line in lines:
        indentation = len(line) - len(line.lstrip())
        if skipping >= 0 and (indentation > skipping or not line.strip()):
            continue
        skipping = -1
        if line.strip().startswith('if args.method != "vanilla":'):
            skipping = indentation
        elif "import attention, camal" not in line:
            kept.append(line)
    return "".join(kept)


@pytest.mark.slow
def test_vanilla_gives_the_same_bits_as_the_file_without_the_lines_on_camal(fake_engine, tmp_path):
    bare = types.ModuleType("bare_ppo")
    source = without_camal()
    assert "attention.critic_cam" not in source
    assert "camal." not in source.split("import numpy")[1].replace("camal_rl.", "")
    sys.modules["bare_ppo"] = bare  # where dataclasses look for their annotations
    exec(compile(source.replace("attention.RESAMPLING_METHODS", "()"), "bare_ppo", "exec"), bare.__dict__)
    args = small_args(tmp_path / "with", method="vanilla", total_timesteps=128)
    folder = ppo.train(args)
    args.runs_dir = tmp_path / "without"
    assert_same(*map(checkpoint_of, (folder, bare.train(args))))


def test_the_rollout_keeps_each_frame_with_its_own_mask_and_reward(fake_engine, tmp_path):
    args = small_args(tmp_path, reward="raw")
    agent = ppo.Agent(4, (4, 52, 60))
    envs = make_envs(args)
    store = filled_rollout(args, agent, envs)
    twin = doom.DoomVectorEnv("Basic", 4, (52, 60), "160x120")
    observation, _ = twin.reset(seed=[1, 2, 3, 4])
    for step in range(16):
        assert np.array_equal(store.images[step].numpy(), observation["image"])
        assert np.array_equal(store.masks[step], observation["mask"])
        observation, rewards, terminated, truncated, _ = twin.step(store.actions[step].numpy())
        assert store.ends[step].tolist() == (terminated | truncated).tolist()
        assert store.rewards[step].tolist() == rewards.tolist()
    envs.close()
    twin.close()


def test_the_rollout_keeps_what_the_network_said(fake_engine, tmp_path):
    args = small_args(tmp_path)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    with torch.no_grad():
        agent.actor.weight.normal_(std=0.1)  # its initial weights make all actions equally likely
    envs = make_envs(args)
    store = filled_rollout(args, agent, envs)
    envs.close()
    batch = ppo.flatten(store, *torch.zeros(2, 16, 4), args, CPU)
    with torch.no_grad():
        output = agent(batch.images)
    policy = torch.distributions.Categorical(logits=output.logits)
    torch.testing.assert_close(batch.values, output.value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.logprobs, policy.log_prob(batch.actions), rtol=1e-5, atol=1e-5)
    expected = mask_weights(store.masks.reshape(64, 120, 160).numpy(), agent.map_shape[1:])
    assert np.array_equal(batch.mask_weights.numpy(), expected)
    assert batch.supervised.tolist() == expected[:, 0].any(axis=(1, 2)).tolist()


def test_rollouts_are_the_same_however_many_threads_play(fake_engine, tmp_path):
    args = small_args(tmp_path)
    agent = ppo.Agent(4, (4, 52, 60))
    stores = []
    for threads in (1, 3, 8):
        envs = make_envs(args)
        with Workers(threads) as workers:
            stores.append(filled_rollout(args, agent, envs, workers))
        envs.close()
    for store in stores[1:]:
        for name in ("images", "actions", "rewards", "ends", "mask_weights"):
            assert torch.equal(getattr(store, name), getattr(stores[0], name)), name
        torch.testing.assert_close(store.values, stores[0].values)  # batches of another size round otherwise


def test_actions_are_drawn_with_the_policys_probabilities():
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.0, 0.3, 0.0]], np.float32) + 1e-30) + 50
    draws = (np.arange(1000) + 0.5) / 1000
    drawn = np.array([ppo.sample(logits, np.full(2, draw, np.float32)) for draw in draws])
    counts = np.array([np.bincount(drawn[:, row], minlength=4) for row in range(2)])
    assert np.abs(counts - [[100, 200, 300, 400], [700, 0, 300, 0]]).max() <= 1
    extremes = [np.zeros(1, np.float32), np.full(1, np.nextafter(np.float32(1), 0))]
    assert [ppo.sample(logits[1:], draw).item() for draw in extremes] == [0, 2]


@pytest.mark.parametrize("method", ["camal", "vanilla"])
def test_an_update_waits_for_the_device_once(fake_engine, tmp_path, monkeypatch, method):
    """Reading a number off a GPU stops everything until it is there."""
    args = small_args(tmp_path, method=method)
    agent = ppo.Agent(4, (4, 52, 60))
    batch = random_batch(args, agent)
    optimizer = torch.optim.Adam(agent.parameters(), fused=True)
    reads = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *given, real=real, name=name: (reads.append(name), real(*given))[1]
        )
    ppo.update(agent, optimizer, batch, args, torch.Generator(), ALONE)
    assert reads == ["tolist"]


def test_a_time_limit_counts_on_the_value_of_the_last_real_frame(fake_engine, tmp_path):
    stores = {}
    for bootstrap in (False, True):
        args = small_args(tmp_path, reward="raw", bootstrap_truncated=bootstrap)
        torch.manual_seed(0)
        agent = ppo.Agent(4, (4, 52, 60))
        envs = make_envs(args)
        stores[bootstrap] = filled_rollout(args, agent, envs)
        envs.close()
    assert torch.equal(stores[False].actions, stores[True].actions)
    twin = doom.DoomVectorEnv("Basic", 4, (52, 60), "160x120")
    twin.reset(seed=[1, 2, 3, 4])
    truncations = 0
    for step in range(16):
        _, _, _, truncated, infos = twin.step(stores[True].actions[step].numpy())
        for env in range(4):
            extra = (stores[True].rewards[step, env] - stores[False].rewards[step, env]).item()
            if truncated[env]:
                truncations += 1
                with torch.no_grad():
                    value = agent(torch.from_numpy(infos["final_obs"][env]["image"])[None]).value
                assert extra == pytest.approx(0.99 * value.item(), abs=1e-5)
            else:
                assert extra == 0
    twin.close()
    assert truncations > 0


# ------------------------------------------------------------------------------------------------------------
# The command line


def test_help_fits_one_screen_and_gives_every_option_a_text():
    environment = os.environ | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    text = subprocess.run(command("--help"), env=environment, capture_output=True, check=True).stdout.decode()
    assert len(text.splitlines()) <= 50
    words = " ".join(re.sub("[│╭╰─╮╯]", " ", text).split())
    for option in dataclasses.fields(ppo.Args):
        name = option.name.replace("_", "-")
        assert re.search(rf"--{name}(, --no-{name})? ([A-Z]+ |WxH |H W )?\w\w", words), name


def test_defaults_and_four_options_are_those_of_table_8():
    paper = ["--method", "camal", "--attention", "gradcam", "--reward", "clip", "--clip-vloss"]
    assert " ".join(paper) in " ".join(ppo.__doc__.split())
    args = ppo.parse_args(paper)
    assert (args.method, args.attention, args.clip_vloss) == ("camal", "gradcam", True)
    assert (args.num_envs, args.total_timesteps, args.num_steps) == (8, 10_000_000, 128)
    assert (args.update_epochs, args.num_minibatches, args.learning_rate) == (4, 4, 0.00025)
    assert (args.gamma, args.gae_lambda, args.clip_coef) == (0.99, 0.95, 0.1)
    assert (args.ent_coef, args.vf_coef, args.max_grad_norm) == (0.01, 0.5, 0.5)
    assert (args.camal_coef, args.reward, doom.FRAME_STACK) == (1.0, "clip", 4)
    assert {load_definition(name).frame_skip for name in available()} == {4}


def test_both_names_of_a_switch_are_understood():
    assert ppo.parse_args(["--clip-vloss"]).clip_vloss
    assert not ppo.parse_args(["--no-clip-vloss"]).clip_vloss
    assert not ppo.parse_args(["--clip-vloss", "--no-clip-vloss"]).clip_vloss
    assert ppo.parse_args(["--no-clip-vloss", "--clip_vloss"]).clip_vloss
    assert ppo.parse_args(["--anneal-lr", "--no-bootstrap-truncated"]) == ppo.Args()
    assert ppo.parse_args(["--bootstrap-truncated"]).bootstrap_truncated


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_minibatches": 3}, "do not divide into 3 minibatches"),
        ({"num_minibatches": 64}, "do not divide into 64 minibatches of two steps or more"),
        ({"num_envs": 0}, "--num-envs 0: should be greater than or equal to 1"),
        ({"total_timesteps": 63}, "less than one iteration of 64"),
        ({"frame_size": (35, 84)}, "needs at least 36 36"),
        ({"frame_size": (121, 84)}, "that are rendered"),
        ({"gamma": 1.5}, "--gamma 1.5: should be less than or equal to 1"),
        ({"learning_rate": float("nan")}, "--learning-rate nan"),
        ({"max_grad_norm": 0.0}, "--max-grad-norm 0.0: should be greater than 0"),
        ({"device": "cuda:9"}, "--device cuda:9: not usable here"),
        ({"device": "abacus"}, "--device abacus: not usable here"),
        ({"device": "cpu", "precision": "tf32"}, "--precision tf32 is for CUDA"),
        ({"env": "Basik"}, "did you mean Basic"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**70}, "--seed 1180591620717411303424"),
        ({"device": "meta"}, "--device meta: not usable here"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(fake_engine, tmp_path, options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        ppo.train(small_args(tmp_path, **options))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------
# A run, with the fake engine


@pytest.mark.parametrize("method", ["camal", "balanced", "vanilla", "suppress"])
def test_a_run_logs_cleanrls_tags_and_attention_for_every_method(fake_engine, tmp_path, method, capsys):
    folder = ppo.train(small_args(tmp_path, method=method, checkpoint_every=128))
    assert folder == tmp_path / "Basic" / method / "seed1"
    events = events_of(folder)
    names = ("episodic_return", "episodic_length", "SPS", "learning_rate", "engine_restarts")
    charts = {f"charts/{name}" for name in names}
    names = ("loss", "value_loss", "policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac")
    losses = {f"losses/{name}" for name in (*names, "explained_variance", "grad_norm")}
    if method != "vanilla":
        losses.add("losses/camal_loss")
    if method == "balanced":
        charts.add("charts/camal_coef")
    names = ("loss", "alpha", "beta", "iou", "iou_mask", "dead_map_fraction", "target_visible_fraction")
    assert set(events.Tags()["scalars"]) == charts | losses | {f"camal/{name}" for name in names}
    assert [event.step for event in events.Scalars("camal/iou")] == [64, 128, 192, 256]
    assert [event.step for event in events.Images("camal/attention")] == [64, 128, 256]
    frame, mask, heat = np.zeros((52, 60), np.uint8), np.ones((120, 160), np.uint8), np.zeros((3, 4))
    (_, width, _) = row = media.attention_strip(frame, mask, {"": heat}, "step 64").shape
    image = events.Images("camal/attention")[0]
    assert (image.height, image.width) == (4 * row[0], width)
    assert "hyperparameters/text_summary" in events.Tags()["tensors"]
    rates = [event.value for event in events.Scalars("charts/learning_rate")]
    assert rates == pytest.approx([2.5e-4, 1.875e-4, 1.25e-4, 0.625e-4])
    strip = cv2.imread(str(folder / "media/attention.png"))
    assert strip.shape == (image.height, image.width, 3)
    output = capsys.readouterr().out
    assert f"Run folder:  {folder}" in output
    assert f"tensorboard --logdir {tmp_path}" in output


def test_episodic_return_is_the_raw_one(trained_template):
    """Though rewards are clipped, as they usually are."""
    events = events_of(trained_template)
    lengths = [event.value for event in events.Scalars("charts/episodic_length")]
    returns = [event.value for event in events.Scalars("charts/episodic_return")]
    assert len(returns) > 10
    # -1 a step and +3 for each shot, so the return differs from -length by a multiple of 4
    assert all((total + length) % 4 == 0 for total, length in zip(returns, lengths, strict=True))
    assert max(total + length for total, length in zip(returns, lengths, strict=True)) > 0


@pytest.mark.slow
def test_measuring_can_be_rarer_or_left_out(fake_engine, tmp_path):
    events = events_of(ppo.train(small_args(tmp_path, measure_every=3)))
    assert [event.step for event in events.Scalars("camal/alpha")] == [64, 256]
    events = events_of(ppo.train(small_args(tmp_path, measure_every=9, checkpoint_every=128, seed=3)))
    assert [event.step for event in events.Images("camal/attention")] == [64, 128, 256]
    events = events_of(ppo.train(small_args(tmp_path, measure_every=0, seed=2, total_timesteps=64)))
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("camal/")]


@pytest.mark.parametrize("method", ["camal", "vanilla"])
@pytest.mark.slow
def test_a_run_with_the_same_seed_is_the_same_and_measuring_changes_nothing(fake_engine, tmp_path, method):
    options = {"method": method, "total_timesteps": 128}
    one, measured, other = (
        checkpoint_of(ppo.train(small_args(tmp_path / str(every), **options, seed=seed, measure_every=every)))
        for seed, every in ((1, 0), (1, 1), (2, 0))
    )
    assert_same(one, measured)
    assert not torch.equal(other["agent"]["fc.weight"], one["agent"]["fc.weight"])


@pytest.mark.parametrize("method", attention.METHODS)
@pytest.mark.slow
def test_every_attention_method_trains_and_resumes(fake_engine, tmp_path, method):
    options = {"attention": method, "method": "balanced", "total_timesteps": 128}
    straight = ppo.train(small_args(tmp_path / "straight", **options))
    ppo.train(small_args(tmp_path / "stopped", **options), stop_after(1))
    resumed = ppo.train(small_args(tmp_path / "stopped", **options))
    assert_same(*map(checkpoint_of, (straight, resumed)))
    assert all(np.isfinite(event.value) for event in events_of(straight).Scalars("losses/camal_loss"))


@pytest.mark.slow
def test_supervision_changes_what_is_learned(fake_engine, tmp_path):
    weights = {
        name: checkpoint_of(ppo.train(small_args(tmp_path / name, total_timesteps=128, **options)))["agent"][
            "fc.weight"
        ]
        for name, options in {
            "vanilla": {"method": "vanilla"}, "camal": {}, "suppress": {"method": "suppress"},
            "zero": {"camal_coef": 0.0}, "empty": {"empty_mask": "suppress"},
        }.items()
    }  # fmt: skip
    assert torch.equal(weights["vanilla"], weights["zero"])
    assert len({weight.double().sum().item() for weight in weights.values()}) == 4


def test_a_checkpoint_without_its_arguments_is_refused(fake_engine, tmp_path):
    (ppo.train(small_args(tmp_path), stop_after(1)) / "args.json").unlink()
    with pytest.raises(UserError, match=r"a checkpoint but no args\.json"):
        ppo.train(small_args(tmp_path))


class Unbounded(FakeGame):
    """Its rewards are infinite from the fifth episode on."""

    def set_seed(self, seed: int) -> None:
        self.seeds = getattr(self, "seeds", 0) + 1
        super().set_seed(seed)

    def make_action(self, action: list[float], tics: int) -> float:
        return math.inf if self.seeds > 4 else super().make_action(action, tics)


def test_a_number_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(doom, "start_engine", lambda config, *options: Unbounded(*options))
    named = r"iteration 2: losses/\w+ in minibatch 1 is NaN or infinite.*--precision fp32"
    with pytest.raises(UserError, match=named):
        ppo.train(small_args(tmp_path, checkpoint_every=64, reward="raw"))
    checkpoint = run_folder.load_checkpoint(tmp_path / "Basic/camal/seed1/checkpoint.pt")
    assert checkpoint["iteration"] == 1
    assert all(weight.isfinite().all() for weight in checkpoint["agent"].values())


def test_training_leaves_torchs_number_of_threads_as_it_was(fake_engine, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    ppo.train(small_args(tmp_path), stop_after(1))
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_a_finished_run_is_left_as_it_is(fake_engine, trained_folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained_folder.iterdir()}
    assert ppo.train(small_args(tmp_path)) == trained_folder
    assert "already done: 256 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained_folder.iterdir()} == before


def test_games_at_their_first_frame_can_be_saved_and_read_back(fake_engine, tmp_path):
    envs = make_envs(small_args(tmp_path))
    envs.reset(seed=1)
    assert [state["episode_actions"] for state in envs.state_dict()["envs"]] == [[]] * 4
    run_folder.save_checkpoint(tmp_path / "checkpoint.pt", {"envs": envs.state_dict()})
    assert run_folder.load_checkpoint(tmp_path / "checkpoint.pt")["envs"] == envs.state_dict()
    envs.close()


def test_other_arguments_in_the_same_folder_are_refused_with_the_difference(fake_engine, tmp_path):
    length = {"total_timesteps": 128}
    folder = ppo.train(small_args(tmp_path, **length), stop_after(1))
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"gamma was 0\.99, now 0\.9\b.*Choose another --name"):
        ppo.train(small_args(tmp_path, **length, gamma=0.9))
    assert (folder / "checkpoint.pt").read_bytes() == before
    # These change nothing learned.
    ppo.train(small_args(tmp_path, **length, torch_threads=2, checkpoint_every=64))


@pytest.mark.parametrize(("checkpoint_every", "kept"), [(128, 2), (1000, 0)])
@pytest.mark.slow
def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(
    fake_engine, trained_template, tmp_path, monkeypatch, checkpoint_every, kept
):
    args = small_args(tmp_path / "killed", checkpoint_every=checkpoint_every)
    real, calls = ppo.update, []

    def killed(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt  # as abrupt as a kill: no checkpoint of iteration 3
        return real(*arguments)

    monkeypatch.setattr(ppo, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo.train(args)
    monkeypatch.setattr(ppo, "update", real)
    stopped_at = run_folder.load_checkpoint(tmp_path / "killed/Basic/camal/seed1/checkpoint.pt")
    assert (stopped_at or {"iteration": 0})["iteration"] == kept
    resumed = ppo.train(args)
    assert_same(*map(checkpoint_of, (trained_template, resumed)))
    for tag in ("losses/value_loss", "charts/episodic_return", "camal/iou"):
        both = [
            [(event.step, event.value) for event in events_of(folder).Scalars(tag)]
            for folder in (trained_template, resumed)
        ]
        assert both[0] == both[1], tag


# ------------------------------------------------------------------------------------------------------------
# The real engine


def engines_started_with(marker: str) -> dict[int, int]:
    """Engine processes alive that inherited an environment with this marker, with what started them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may just have ended
            is_engine = (process / "comm").read_text().strip() == "vizdoom"
            if is_engine and marker.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = int((process / "stat").read_text().split()[3])
    return found


@pytest.fixture
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch):
    marker = uuid.uuid4().hex
    monkeypatch.setenv("CAMAL_RL_TEST", marker)
    before = orphaned_segments()
    yield marker
    deadline = time.monotonic() + 10
    while left := {*engines_started_with(marker), *(orphaned_segments() - before)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("env", "method", "play_in"),
    [
        ("Basic", "camal", "processes"),
        ("DefendCenter", "vanilla", "threads"),
        ("TakeCover", "camal", "threads"),
    ],
)
def test_resuming_gives_the_weights_of_a_run_that_was_not_interrupted(
    env, method, play_in, tmp_path, nothing_left_behind
):
    """Nor does it matter whether threads or processes play, before and after."""
    options = {
        "env": env, "method": method, "frame_size": (84, 84), "render_resolution": "320x240",
        "num_envs": 3, "num_steps": 16, "total_timesteps": 192, "reward": "scale", "precision": "auto",
        "torch_threads": 2, "num_minibatches": 1, "update_epochs": 1, "measure_every": 0,
    }  # fmt: skip
    straight = ppo.train(small_args(tmp_path / "straight", **options))
    ppo.train(small_args(tmp_path / "stopped", play_in=play_in, **options), stop_after(2))
    resumed = ppo.train(small_args(tmp_path / "stopped", **options))
    assert checkpoint_of(straight)["iteration"] == 4
    assert_same(*map(checkpoint_of, (straight, resumed)))


@pytest.mark.engine
def test_engines_that_are_killed_or_hang_change_no_bit_and_leave_nothing(
    tmp_path, monkeypatch, nothing_left_behind
):
    """In small; `endurance.py` has a hundred kills and twenty hangs."""

    def args_of(folder: Path) -> ppo.Args:
        length = ["--total-timesteps", "1024", "--torch-threads", "2", "--runs-dir", str(folder)]
        return ppo.parse_args([*ENGINE_RUN, *length, "--play-in", "threads"])

    calm = ppo.train(args_of(tmp_path / "calm"))
    before = held()
    faults = Faults([signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL], 0.1)
    with faults.during(monkeypatch):
        harmed = ppo.train(args_of(tmp_path / "harmed"))
    assert faults.done == 3
    assert faults.envs.restarts == faults.done - faults.unnoticed >= 2
    assert events_of(harmed).Scalars("charts/engine_restarts")[-1].value == faults.envs.restarts
    assert_same(checkpoint_of(calm)["agent"], checkpoint_of(harmed)["agent"])
    assert wait_until(lambda: not leaked(before)), leaked(before)
    assert left_of(own_engines()) == []


@pytest.mark.engine
@pytest.mark.parametrize("env", available())
def test_every_environment_trains_and_twice_to_the_same_bits(env, tmp_path, nothing_left_behind):
    length = ("--num-envs", "2", "--num-steps", "16", "--total-timesteps", "64", "--torch-threads", "2")
    options = [*ENGINE_RUN, "--env", env, *length]
    folders = [
        ppo.train(ppo.parse_args([*options, "--reward", "scale", "--runs-dir", str(tmp_path / name)]))
        for name in ("one", "other")
    ]
    one, other = map(checkpoint_of, folders)
    assert_same(one, other)
    losses = events_of(folders[0]).Scalars("losses/camal_loss")
    assert [event.step for event in losses] == [32, 64]
    assert all(np.isfinite(event.value) for event in losses)


def stopped(run: list[str], folder: Path, number: signal.Signals, code: int) -> int:
    """Start a training and signal all its processes, as a terminal does; how many iterations were done."""
    trainer = subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("events*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(trainer.pid, number)
    _, errors = trainer.communicate(timeout=60)
    assert trainer.returncode == code, errors
    assert "Stopping after this iteration" in errors
    done: int = checkpoint_of(folder)["iteration"]
    return done


PROCESSES = ("--play-in", "processes", "--torch-threads", "2")


@pytest.mark.engine
def test_an_engine_that_is_killed_under_a_process_that_plays_changes_no_bit(tmp_path, nothing_left_behind):
    run = command("--total-timesteps", 2048, *ENGINE_RUN[2:], *PROCESSES, "--runs-dir", tmp_path)
    trainer = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "Basic/balanced/seed1"
    assert wait_until(lambda: list(folder.glob("events*")), 60)
    os.kill(min(engines_started_with(nothing_left_behind)), signal.SIGKILL)
    _, errors = trainer.communicate(timeout=60)
    assert trainer.returncode == 0, errors
    assert "Warning" not in errors
    assert events_of(folder).Scalars("charts/engine_restarts")[-1].value == 1
    in_threads = ("--total-timesteps", "2048", "--torch-threads", "2", "--play-in", "threads")
    calm = ppo.train(ppo.parse_args([*ENGINE_RUN[2:], *in_threads, "--runs-dir", str(tmp_path / "calm")]))
    assert_same(checkpoint_of(calm)["agent"], checkpoint_of(folder)["agent"])


@pytest.mark.engine
def test_sigterm_to_the_whole_process_group_saves_and_ends(tmp_path, nothing_left_behind):
    run = command("--total-timesteps", 2048, *ENGINE_RUN[2:], *PROCESSES, "--runs-dir", tmp_path)
    assert 1 <= stopped(run, tmp_path / "Basic/balanced/seed1", signal.SIGTERM, 143) < 16


@pytest.mark.engine
def test_ctrl_c_saves_and_the_same_command_goes_on_as_if_nothing_had_happened(
    tmp_path, capsys, nothing_left_behind
):
    run = command("--total-timesteps", 1280, *ENGINE_RUN[2:], "--runs-dir", tmp_path)
    folder = tmp_path / "Basic/balanced/seed1"
    done = stopped(run, folder, signal.SIGINT, 130)
    assert 1 <= done < 10
    ppo.train(ppo.parse_args(run[3:]))
    assert f"Going on from step {done * 128:,}" in capsys.readouterr().out
    length = ("--total-timesteps", "1280", "--runs-dir", str(tmp_path / "straight"))
    straight = ppo.train(ppo.parse_args([*ENGINE_RUN[2:], *length]))
    assert_same(checkpoint_of(folder), checkpoint_of(straight))


@pytest.mark.engine
def test_a_killed_trainer_goes_on_from_its_last_checkpoint(tmp_path, capsys):
    run = command(
        "--total-timesteps", 1280, *ENGINE_RUN[2:], "--checkpoint-every", 256, "--runs-dir", tmp_path
    )
    folder = tmp_path / "Basic/balanced/seed1"
    trainer = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    trainer.kill()
    trainer.wait()
    ppo.train(ppo.parse_args(run[3:]))
    assert re.search(r"Going on from step (256|512|768|1,024)", capsys.readouterr().out)
    steps = [event.step for event in events_of(folder).Scalars("losses/value_loss")]
    assert steps == list(range(128, 1281, 128))


@pytest.mark.engine
def test_a_killed_process_that_plays_ends_the_training_in_one_line(tmp_path, nothing_left_behind):
    run = command("--total-timesteps", 10**6, *ENGINE_RUN[2:], *PROCESSES, "--runs-dir", tmp_path)
    trainer = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: len(engines_started_with(nothing_left_behind)) == 4, 60)
    os.kill(max(engines_started_with(nothing_left_behind).values()), signal.SIGKILL)
    _, errors = trainer.communicate(timeout=60)
    assert trainer.returncode == 2
    assert "a process that plays has ended (exit code -9)" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.engine
def test_processes_that_play_end_with_a_trainer_that_is_killed(tmp_path, nothing_left_behind):
    run = command("--total-timesteps", 10**6, *ENGINE_RUN[2:], *PROCESSES, "--runs-dir", tmp_path)
    trainer = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: len(engines_started_with(nothing_left_behind)) == 4, 60)
    players = set(engines_started_with(nothing_left_behind).values())
    assert len(players) == 2
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in players))


BAD_TOML = (ROOT / "envs/Basic.toml").read_text().replace("frame_skip", "frame_skp")


def code_and_message(options: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """What a command ends with, without a process of its own, which takes seconds to start."""
    code: object = 0
    try:
        ppo.train(ppo.parse_args(options))
    except UserError as mistake:
        code = print_mistake(mistake)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--env", "Basik"], "did you mean Basic"),
        (["--env", "bad.toml"], "frame_skp: unknown key"),
        (["--env", "missing.toml"], "missing.toml: No such file"),
        (["--env", "nowad.toml"], "can't read its WAD"),
        (["--device", "cuda:7"], "--device cuda:7: not usable here"),
        (["--num-minibatches", "7"], "do not divide into 7 minibatches"),
        (["--frame-size", "121", "36"], "that are rendered"),
        (["--runs-dir", "/proc/no"], "can't make /proc/no/Basic/balanced/seed1"),
        (["--runs-dir", "a-file"], "can't make a-file/Basic/balanced/seed1"),
        (["--methd", "camal"], "--methd"),
        (["--method", "camel"], "camel"),
    ],
)
def test_a_mistake_gets_a_clear_message_exit_code_2_and_leaves_nothing(
    options, words, tmp_path, monkeypatch, capsys, nothing_left_behind
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text(BAD_TOML)
    (tmp_path / "nowad.cfg").write_text("doom_scenario_path = nowhere.wad\navailable_buttons = { ATTACK }\n")
    (tmp_path / "nowad.toml").write_text(
        (ROOT / "envs/Basic.toml").read_text().replace('"basic.cfg"', '"nowad.cfg"', 1)
    )
    (tmp_path / "a-file").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, told = code_and_message([*ENGINE_RUN, *options], capsys)
    assert code == 2, told
    assert words in told
    assert "Traceback" not in told
    if options[0] not in ("--methd", "--method"):  # those are tyro's own, in a box
        assert len([line for line in told.splitlines() if line.startswith("camal_rl: ")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.engine
@pytest.mark.parametrize("size", ["300k", "45m"])
def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(size, tmp_path, nothing_left_behind):
    """300 kB are too little for TensorBoard; 45 MB hold one checkpoint of 20 MB and the next, and no more."""
    folder = tmp_path / "Basic/balanced/seed1"
    sizes = ("--checkpoint-every", 128, "--frame-size", 84, 84)
    options = (*ENGINE_RUN, *sizes, "--runs-dir", tmp_path)
    script = """
        mount -t tmpfs -o size=$SIZE tmpfs $DISK || exit 77
        (for i in $(seq 600); do
            [ -f $FOLDER/checkpoint.pt ] && head -c 24m /dev/zero > $DISK/filler
            sleep 0.1
        done) &
        "$@"; code=$?
        kill $!; rm -f $DISK/filler; ls -A $FOLDER; cp $FOLDER/checkpoint.pt $KEPT
        exit $code
    """
    kept = tmp_path.with_name(f"kept-{size}.pt")
    names = {"SIZE": size, "DISK": tmp_path, "FOLDER": folder, "KEPT": kept, "PYTHONPATH": ROOT}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command(*options)],
        env=os.environ | {name: str(value) for name, value in names.items()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode in (77, 1) and "No space" not in done.stderr:
        pytest.skip("mounting a small disk needs root")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert ".checkpoint" not in done.stdout
    if size == "45m":
        assert torch.load(kept, weights_only=True)["iteration"] in (1, 2, 3)


@pytest.mark.engine
def test_a_read_only_folder_is_one_line_and_leaves_the_run_as_it_was(tmp_path, nothing_left_behind):
    """Of an interrupted run, which could go on."""
    options = (*ENGINE_RUN, "--runs-dir", tmp_path)
    ppo.train(ppo.parse_args([str(option) for option in options]), lambda: True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "checkpoint.pt" for path in before)
    script = 'mount --bind $DISK $DISK && mount -o remount,ro,bind $DISK || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command(*options)],
        env=os.environ | {"DISK": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode in (77, 1) and "Read-only" not in done.stderr:
        pytest.skip("mounting a folder read-only needs root")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.engine
def test_attention_turns_to_the_target_within_a_few_thousand_steps(tmp_path, nothing_left_behind):
    args = ppo.Args()
    args.runs_dir, args.total_timesteps = tmp_path, 6144
    args.reward, args.clip_vloss, args.render_resolution = "scale", False, SMALL
    events = events_of(ppo.train(args))
    alphas = [event.value for event in events.Scalars("camal/alpha")]
    betas = [event.value for event in events.Scalars("camal/beta")]
    assert alphas[-1] > 0.7
    assert betas[-1] < 0.25
    assert alphas[0] - betas[0] < alphas[-1] - betas[-1]
