"""Attention measured while an agent trains."""

import numpy as np
import pytest
import torch
from conftest import small_args
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import attention, camal, doom, metrics, ppo
from camal_rl.results import media
from camal_rl.run import monitor as run_monitor
from camal_rl.run.monitor import Monitor
from camal_rl.run.workers import Workers


class Logged:
    """Takes what a run folder would log."""

    def __init__(self) -> None:
        self.iteration = 1
        self.scalars: dict[str, float] = {}
        self.status: dict[str, str] = {}

    def passed(self, every: int) -> bool:
        return False

    def log(self, scalars: dict[str, float]) -> None:
        self.scalars |= scalars


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["camal", "vanilla", "suppress"])
def test_what_is_logged_is_what_the_functions_on_full_masks_say(
    fake_engine, tmp_path, monkeypatch, method, threads
):
    args = small_args(tmp_path, method=method, checkpoint_every=10**6)
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    envs = doom.DoomVectorEnv("Basic", 4, args.frame_size, args.render_resolution, map_size=(3, 4))
    envs.reset(seed=1)
    run = Logged()
    monitor = Monitor(args, run)
    monkeypatch.setattr(monitor, "_draw", lambda *_: None)
    store = ppo.allocate(args, agent)
    with Workers(threads) as workers:
        ppo.rollout(agent, envs, store, args, np.random.default_rng(0).random((16, 4)), workers)
        monitor.measure(agent, store, workers)
    envs.close()
    masks = store.masks.reshape(64, 120, 160).numpy()
    cam = attention.critic_cam(agent, agent(store.images.flatten(0, 1))).detach()
    heat = attention.normalize(cam)
    seen = masks.any(axis=(1, 2))
    assert 0 < seen.sum() < 64
    loss = camal.camal_loss(heat, torch.from_numpy(masks), method="camal" if method == "vanilla" else method)
    alpha, beta = camal.alpha_beta(attention.upsample(heat, (120, 160)), torch.from_numpy(masks))
    expected = {
        "loss": loss.item(),
        "alpha": alpha[seen].mean().item(),
        "beta": beta[seen].mean().item(),
        "iou": metrics.iou(heat[seen].numpy(), masks[seen]).mean(),
        "dead_map_fraction": attention.is_dead(cam)[seen].float().mean().item(),
        "target_visible_fraction": seen.mean(),
    }
    for name, value in expected.items():
        assert run.scalars[f"camal/{name}"] == pytest.approx(value, abs=1e-5), name
    assert run.status["iou"] == f"{expected['iou']:.2f}"


def test_attention_is_measured_on_about_128_frames(tmp_path):
    for steps, games, frames in ((16, 4, 64), (128, 4, 128), (100, 4, 136)):
        args = small_args(tmp_path, num_steps=steps, num_envs=games, total_timesteps=10**4)
        assert len(ppo.allocate(args, ppo.Agent(4, (4, 52, 60))).masks.flatten(0, 1)) == frames


@pytest.mark.parametrize(("method", "warnings"), [("camal", 1), ("vanilla", 0)])
def test_a_run_whose_maps_stay_dead_is_told_so_once(
    fake_engine, tmp_path, monkeypatch, capsys, method, warnings
):
    monkeypatch.setattr(attention, "critic_cam", lambda agent, output, *_: output.feature_maps.sum(1) * 0)
    monkeypatch.setattr(run_monitor, "DEAD_MEASUREMENTS", 2)
    folder = ppo.train(small_args(tmp_path, method=method, total_timesteps=192))
    assert capsys.readouterr().err.count("nothing pulls on a dead map") == warnings
    events = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("camal/dead_map_fraction")] == [1.0] * 3


def test_dead_maps_are_counted_on_the_frames_whose_iou_is_measured(fake_engine, tmp_path, monkeypatch):
    run = Logged()
    run.iteration = 2  # at the first one attention is drawn
    args, agent = small_args(tmp_path, checkpoint_every=10**6), ppo.Agent(4, (4, 52, 60))
    monitor = Monitor(args, run)
    cams, weights, scores = torch.zeros(64, 3, 4), torch.zeros(64, 2, 3, 4), np.full((64, 2), np.nan)
    weights[:8, 0], scores[:8] = 1, 0.5  # eight frames with a target,
    cams[:6, 0, 0] = 1  # six of them with a map that isn't dead
    monkeypatch.setattr(monitor, "_maps", lambda *_: (cams, weights, scores))
    with Workers(1) as workers:
        monitor.measure(agent, ppo.allocate(args, agent), workers)
    assert run.scalars["camal/dead_map_fraction"] == 0.25


def test_frames_are_measured_where_the_agent_is(fake_engine, tmp_path, monkeypatch):
    """Rollouts lie in the CPU's memory; the device `meta` stands for a GPU, which computes nothing here."""
    args = small_args(tmp_path, checkpoint_every=10**6)
    run = Logged()
    run.iteration = 2  # at the first one attention is drawn
    monitor = Monitor(args, run)
    devices = []

    def maps(agent: ppo.Agent, images: torch.Tensor, masks: np.ndarray, workers: Workers) -> tuple:
        devices.append(images.device.type)
        return torch.zeros(64, 3, 4), torch.zeros(64, 2, 3, 4), np.zeros((64, 2))

    monkeypatch.setattr(monitor, "_maps", maps)
    agent = ppo.Agent(4, (4, 52, 60))
    store = ppo.allocate(args, agent)
    with Workers(1) as workers:
        monitor.measure(agent.to("meta"), store, workers)
    assert devices == ["meta"]


@pytest.mark.slow
def test_the_picture_is_of_the_end_and_of_four_frames_that_differ(fake_engine, tmp_path, monkeypatch):
    strips = []
    real = media.attention_strip
    monkeypatch.setattr(media, "attention_strip", lambda *given: strips.append(given) or real(*given))
    folder = ppo.train(small_args(tmp_path, checkpoint_every=10**6, total_timesteps=128))
    last = strips[-4:]
    assert all(mask.any() for _, mask, *_ in last)
    assert len({frame.tobytes() for frame, *_ in last}) == 4
    assert [caption.split(",")[0] for *_, caption in last] == ["step 128"] * 4
    assert len({caption for *_, caption in last}) == 4
    drawn = media.encode_png(media.stack_strips([real(*given) for given in last]))
    assert (folder / "media/attention.png").read_bytes() == drawn
