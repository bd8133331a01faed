"""Another library's PPO on the work that our training does, but without masks: its speed as a line of JSON.

Run by `python -m camal_rl.benchmark peers`, by its path, with the interpreter of an environment that holds
the library and nothing of this package. Each library has its own best settings for a machine of few cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
import vizdoom

FRAME_SIZE = 84
FRAME_STACK = 4


def parse_args() -> argparse.Namespace:
    """Read the command line, which `benchmark_parts.peer_command` writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=MEASURE)
    parser.add_argument("--scenario", required=True, help="ViZDoom .cfg file")
    parser.add_argument("--render-resolution", default="320x240")
    parser.add_argument("--device", default="cpu")
    for option, default in {
        "frame-skip": 4,
        "num-envs": 8,
        "num-steps": 128,
        "update-epochs": 4,
        "num-minibatches": 4,
        "warmup": 2,
        "iterations": 10,
        "torch-threads": 1,
    }.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    return parser.parse_args()


class Doom(gymnasium.Env[np.ndarray, np.int64]):
    """Our observations and actions without the mask: grey frames, 84x84, four stacked, one button or none."""

    def __init__(self, scenario: str, render_resolution: str, frame_skip: int) -> None:
        cv2.setNumThreads(1)  # of several such processes each has one core at most
        self.frame_skip = frame_skip
        self.game = vizdoom.DoomGame()
        self.game.load_config(scenario)
        self.game.set_window_visible(False)
        self.game.set_mode(vizdoom.Mode.PLAYER)
        self.game.set_screen_format(vizdoom.ScreenFormat.GRAY8)
        self.game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{render_resolution.upper()}"))
        for buffer in ("labels", "depth", "automap", "audio"):
            getattr(self.game, f"set_{buffer}_buffer_enabled")(False)
        self.game.set_doom_config_path(os.devnull)  # else all games write one file
        self.game.init()
        buttons = self.game.get_available_buttons_size()
        self.buttons = [
            [float(index == pressed) for index in range(buttons)] for pressed in range(-1, buttons)
        ]
        self.frames = np.zeros((FRAME_STACK, FRAME_SIZE, FRAME_SIZE), np.uint8)
        self.observation_space = gymnasium.spaces.Box(0, 255, self.frames.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.buttons))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.game.set_seed(seed)
        self.game.new_episode()
        self._see()
        self.frames[:-1] = self.frames[-1]
        return self.frames.copy(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = self.game.make_action(self.buttons[int(action)], self.frame_skip)
        ended = self.game.is_episode_finished()
        if not ended:
            self._see()
        return self.frames.copy(), float(np.clip(reward, -1, 1)), ended, False, {}

    def _see(self) -> None:
        state = self.game.get_state()
        self.frames[:-1] = self.frames[1:]
        size = (FRAME_SIZE, FRAME_SIZE)
        cv2.resize(state.screen_buffer, size, dst=self.frames[-1], interpolation=cv2.INTER_AREA)

    def render(self) -> None:
        """Nothing to show."""

    def close(self) -> None:
        self.game.close()


def make_doom(*anything: object, **options: object) -> Doom:
    """The environment that the command line asks for, in whatever process: all have the same."""
    args = parse_args()
    return Doom(args.scenario, args.render_resolution, args.frame_skip)


def stable_baselines3(args: argparse.Namespace) -> dict[str, Any]:
    """PPO with CnnPolicy, the same network, and a process for each environment."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import SubprocVecEnv

    began: list[float] = []  # of each iteration

    class Stamps(BaseCallback):  # type: ignore[misc]
        def _on_rollout_start(self) -> None:
            began.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    batch = args.num_envs * args.num_steps
    settings: dict[str, Any] = {
        "n_steps": args.num_steps,
        "batch_size": batch // args.num_minibatches,
        "n_epochs": args.update_epochs,
        "learning_rate": 2.5e-4,
        "clip_range": 0.1,
        "ent_coef": 0.01,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
        "device": args.device,
    }
    torch.set_num_threads(args.torch_threads)
    envs = SubprocVecEnv([make_doom] * args.num_envs)
    try:
        model = PPO("CnnPolicy", envs, **settings)
        model.learn((args.warmup + args.iterations) * batch, Stamps())
        ended = time.perf_counter()
    finally:
        envs.close()
    return {
        "sps": args.iterations * batch / (ended - began[args.warmup]),
        "settings": settings | {"policy": "CnnPolicy", "vec_env": "SubprocVecEnv"},
    }


def sample_factory(args: argparse.Namespace) -> dict[str, Any]:
    """APPO, collecting while it learns: environments on as many processes as there are cores."""
    from sample_factory.algo.runners.runner import AlgoObserver, Runner
    from sample_factory.algo.utils.misc import ExperimentStatus
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import make_runner

    batch = args.num_envs * args.num_steps
    cores = len(os.sched_getaffinity(0))
    workers = max(
        count for count in range(1, args.num_envs + 1) if count <= cores and args.num_envs % count == 0
    )
    per_worker = args.num_envs // workers
    settings = {
        "algo": "APPO",
        "env": "doom",
        "device": "cpu" if args.device == "cpu" else "gpu",
        "async_rl": True,
        "serial_mode": False,
        "num_workers": workers,
        "num_envs_per_worker": per_worker,
        "worker_num_splits": 2 if per_worker % 2 == 0 else 1,
        "rollout": args.num_steps,
        "batch_size": batch // args.num_minibatches,
        "num_batches_per_epoch": args.num_minibatches,
        "num_epochs": args.update_epochs,
        "use_rnn": False,
        "encoder_conv_architecture": "convnet_atari",
        "encoder_conv_mlp_layers": 512,
        "nonlinearity": "relu",
        "obs_scale": 255.0,
        "normalize_input": False,
        "normalize_returns": False,
        "learning_rate": 2.5e-4,
        "ppo_clip_ratio": 0.1,
        "exploration_loss_coeff": 0.01,
        "value_loss_coeff": 0.5,
        "max_grad_norm": 0.5,
        # Else a step counts as many times as its action is held.
        "summaries_use_frameskip": False,
        "train_for_env_steps": (args.warmup + args.iterations) * batch,
    }
    ended: list[float] = []  # of each iteration

    class Stamps(AlgoObserver):  # type: ignore[misc]
        def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        options = [f"--{name}={value}" for name, value in settings.items()]
        options += [f"--train_dir={folder}", "--experiment=benchmark"]
        register_env("doom", make_doom)
        parser, _ = parse_sf_args(options)
        _, runner = make_runner(parse_full_cfg(parser, options))
        runner.register_observer(Stamps())
        status = runner.init()
        if status == ExperimentStatus.SUCCESS:
            status = runner.run()
        if status != ExperimentStatus.SUCCESS:
            raise SystemExit(f"Sample Factory ended with status {status}")
    seconds = ended[args.warmup + args.iterations - 1] - ended[args.warmup - 1]
    return {"sps": args.iterations * batch / seconds, "settings": settings}


MEASURE = {"sample-factory": sample_factory, "stable-baselines3": stable_baselines3}


def more_threads_for_the_learner() -> None:
    """Sample Factory gives every process one thread of torch; let its learner have what was asked for."""
    from sample_factory.algo.learning import learner_worker

    usual = learner_worker.init_torch_runtime
    threads = parse_args().torch_threads
    learner_worker.init_torch_runtime = lambda cfg: usual(cfg, max_num_threads=threads)


def main() -> None:
    """Measure, and print the result."""
    args = parse_args()
    result = MEASURE[args.peer](args)
    names = ("torch", "vizdoom", "gymnasium", "numpy", args.peer)
    result["versions"] = {name: metadata.version(name) for name in names}
    print("\n" + json.dumps(result), flush=True)


if __name__ == "__mp_main__" and sys.argv[1] == "sample-factory":  # a process that it started
    more_threads_for_the_learner()
if __name__ == "__main__":
    main()
