"""The examples for other trainers, in runs/reference/own-trainer, do what they say."""

import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from camal_rl.attention import class_activation_map, normalize
from camal_rl.camal import camal_loss, projected_loss
from camal_rl.masks import mask_weights
from camal_rl.results import study

TEXT = (ROOT / "runs" / "reference" / "own-trainer" / "README.md").read_text(encoding="utf-8")


@pytest.mark.engine
def test_the_examples_for_stable_baselines3_run_and_the_loss_reaches_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("stable_baselines3")
    script, evaluation = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(script.splitlines()) < 60
    script = script.replace("STEPS, LAMBDA, ENTROPY = 100_000", "STEPS, LAMBDA, ENTROPY = 512")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(script, "README", "exec"), names)
    assert re.search(r"beta - alpha: -?\d\.\d\d", printed.getvalue())
    model = names["model"]
    assert model.num_timesteps == 512
    observation, actions = next(iter(model.rollout_buffer.get(64)))[:2]
    policy, loss = model.policy, {}
    for part in (names["LAMBDA"], 0.0):
        names["LAMBDA"] = part
        _, _, entropy = policy.evaluate_actions(observation, actions.long().flatten())
        policy.zero_grad()
        (-names["ENTROPY"] * entropy.mean()).backward()
        loss[part] = entropy.mean().item(), policy.features_extractor.convolutions[0].weight.grad.clone()
    (with_it, pulled), (without, plain) = loss.values()
    assert with_it == pytest.approx(without)
    policy.zero_grad()
    policy.evaluate_actions(observation, actions.long().flatten())
    policy.camal_loss.backward()
    own = policy.features_extractor.convolutions[0].weight.grad
    torch.testing.assert_close(pulled - plain, 0.1 * own, rtol=1e-3, atol=1e-6)
    names["envs"].close()

    monkeypatch.chdir(tmp_path)
    evaluation = evaluation.replace("episodes=50", "episodes=3, video_episodes=1, faithfulness_frames=20")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(evaluation, "README", "exec"), names)
    assert "Basic, sb3 seed 1, trained 512 steps, 3 episodes" in printed.getvalue()
    (run,) = study.read_study(tmp_path / "runs").runs
    assert run.title == run.said == "Basic/sb3/seed1"
    assert run.scores.iou is not None
    assert run.scores.removal_black is not None


def test_the_lines_for_cleanrl_are_the_loss() -> None:
    """The added lines, run with the names that ppo_atari.py has."""
    added = [line[1:].strip() for line in TEXT.split("## CleanRL")[1].splitlines() if line.startswith("+")]
    assert len(added) == 7
    keep, hidden, allocate, store, flatten, cam, loss = added
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
    layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU()]
    agent = SimpleNamespace(network=nn.Sequential(*layers))
    critic = nn.Linear(512, 1)
    images = torch.randint(256, (6, 4, 84, 84)).float()
    masks = (np.random.default_rng(0).random((3, 2, 240, 320)) < 0.1).astype(np.uint8)
    names: dict[str, Any] = {"self": agent, "x": images, "torch": torch, "device": "cpu"}
    names |= {"args": SimpleNamespace(num_steps=3, num_envs=2), "agent": agent, "mask_weights": mask_weights}
    names |= {"class_activation_map": class_activation_map, "normalize": normalize, "loss": torch.zeros(())}
    names |= {"projected_loss": projected_loss, "mb_inds": np.array([4, 0, 3])}
    exec(allocate, names)
    for step in range(3):
        exec(store, names | {"step": step, "next_mask": masks[step]})
    exec(flatten, names)
    names["x"] = images[names["mb_inds"]]
    exec(f"{keep}\n{hidden}", names)
    names["newvalue"] = critic(names["hidden"])
    exec(f"{cam}\n{loss}", names)
    chosen = torch.from_numpy(masks.reshape(6, 240, 320)[names["mb_inds"]])
    expected = camal_loss(normalize(names["cam"]), chosen)
    torch.testing.assert_close(names["loss"], 0.1 * expected)
    names["loss"].backward()
    assert layers[0].weight.grad.abs().max() > 0  # type: ignore[union-attr]
