"""Other libraries' PPO on our training's work, but without masks and attention: time an iteration.

Each library needs an environment of its own:

    python3 -m venv sf && sf/bin/pip install torch sample-factory==2.1.1 vizdoom
    python3 -m venv sb3 && sb3/bin/pip install torch stable-baselines3==2.9.2 vizdoom opencv-python-headless
    python tests/peers.py sample-factory=sf/bin/python stable-baselines3=sb3/bin/python

measures camal_rl, with CAMAL, and both libraries in turns, and writes peers.json and peers.md; it takes half
an hour on two cores. Each library has its own best settings for a machine of few cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
import vizdoom

FRAME_SIZE, FRAME_STACK = 84, 4
NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES = 8, 128, 4, 4
BATCH_SIZE = NUM_ENVS * NUM_STEPS
WARMUP, ITERATIONS = 2, 10


def parse_args() -> argparse.Namespace:
    """Read the command line: all libraries in turns, or, with NAME alone, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("libraries", nargs="+", metavar="NAME=PYTHON", help="interpreters that have them")
    parser.add_argument("--env", default="Basic", help="environment or .toml file")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads to try")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder for the results")
    for option, default in {"scenario": "", "render-resolution": "320x240", "device": "cpu"}.items():
        parser.add_argument(f"--{option}", default=default, help=argparse.SUPPRESS)
    parser.add_argument("--frame-skip", type=int, default=4, help=argparse.SUPPRESS)
    return parser.parse_args()


# -------------------------------------------------------------------------------------------- all, in turns


def compare(args: argparse.Namespace) -> None:
    """Measure camal_rl and the libraries in turns, and write the results."""
    from camal_rl import benchmark, ppo
    from camal_rl.game.definition import load_definition
    from camal_rl.results.figures import markdown

    definition = load_definition(args.env)
    found: dict[str, dict[str, list[float]]] = {}
    versions = {}
    for _ in range(args.repetitions):
        for resolution in ("160x120", "320x240"):
            for threads in args.threads:
                times = found.setdefault(f"rendered at {resolution}, torch threads: {threads}", {})
                options: dict[str, Any] = {"render_resolution": resolution, "torch_threads": threads}
                ours = ppo.Args(env=args.env, device=args.device, **options)
                sps, _ = benchmark.train(ours, ITERATIONS)
                times.setdefault("camal_rl", []).append(1000 * BATCH_SIZE / sps)
                for library, python in (word.split("=", 1) for word in args.libraries):
                    words = [
                        python,
                        __file__,
                        library,
                        "--scenario",
                        definition.scenario,
                        "--threads",
                        threads,
                    ]
                    words += ["--render-resolution", resolution, "--device", args.device]
                    words += ["--frame-skip", definition.frame_skip]
                    said = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, check=True).stdout
                    row = json.loads(said.splitlines()[-1])
                    times.setdefault(library, []).append(row["ms"])
                    versions[library] = row["versions"]
                print(json.dumps(found), flush=True)
    note = f"An iteration of {BATCH_SIZE:,} agent steps. {json.dumps(versions)}"
    table = benchmark.tabulate("Other libraries", found, "camal_rl", note)
    about = {"machine": benchmark.machine(ppo.Args(device=args.device)), "versions": versions}
    content = {"format": benchmark.FORMAT, "parts": {"peers": {**about, "found": found}}}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "peers.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.output / "peers.md").write_text(f"{markdown(table)}\n{about['machine']}\n")
    print(markdown(table))


# --------------------------------------------------------------------------------------------- the same games


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
        self.buttons = np.eye(buttons + 1, buttons, -1).tolist()  # none first, then one each
        self.frames = np.zeros((FRAME_STACK, FRAME_SIZE, FRAME_SIZE), np.uint8)
        self.observation_space = gymnasium.spaces.Box(0, 255, self.frames.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.buttons))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
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
        screen = self.game.get_state().screen_buffer
        self.frames[:-1] = self.frames[1:]
        self.frames[-1] = cv2.resize(screen, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)

    def render(self) -> None:
        """Show nothing."""

    def close(self) -> None:
        self.game.close()


def make_doom(*anything: object, **options: object) -> Doom:
    """Make the environment that the command line asks for, in whatever process: all have the same."""
    args = parse_args()
    return Doom(args.scenario, args.render_resolution, args.frame_skip)


# --------------------------------------------------------------------------------------------- each library


def stable_baselines3(args: argparse.Namespace) -> float:
    """Seconds an iteration of PPO with CnnPolicy, the same network, and a process for each environment."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import SubprocVecEnv

    began: list[float] = []  # of each iteration

    class Stamps(BaseCallback):  # type: ignore[misc]
        def _on_rollout_start(self) -> None:
            began.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    torch.set_num_threads(args.threads[0])
    envs = SubprocVecEnv([make_doom] * NUM_ENVS)
    try:
        model = PPO(
            "CnnPolicy",
            envs,
            n_steps=NUM_STEPS,
            batch_size=BATCH_SIZE // MINIBATCHES,
            n_epochs=EPOCHS,
            learning_rate=2.5e-4,
            clip_range=0.1,
            ent_coef=0.01,
            vf_coef=0.5,
            max_grad_norm=0.5,
            device=args.device,
        )
        model.learn((WARMUP + ITERATIONS) * BATCH_SIZE, Stamps())
        return (time.perf_counter() - began[WARMUP]) / ITERATIONS
    finally:
        envs.close()


def sample_factory(args: argparse.Namespace) -> float:
    """Seconds an iteration of APPO, which collects while it learns, in as many processes as cores."""
    from sample_factory.algo.runners.runner import AlgoObserver, Runner
    from sample_factory.algo.utils.misc import ExperimentStatus
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import make_runner

    ended: list[float] = []  # of each iteration

    class Stamps(AlgoObserver):  # type: ignore[misc]
        def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
            ended.append(time.perf_counter())

    cores = len(os.sched_getaffinity(0))
    workers = max(count for count in range(1, NUM_ENVS + 1) if count <= cores and NUM_ENVS % count == 0)
    per_worker = NUM_ENVS // workers
    settings = f"""
        --algo=APPO --env=doom --device={"cpu" if args.device == "cpu" else "gpu"} --experiment=benchmark
        --async_rl=True --serial_mode=False --num_workers={workers} --num_envs_per_worker={per_worker}
        --worker_num_splits={2 if per_worker % 2 == 0 else 1} --rollout={NUM_STEPS}
        --batch_size={BATCH_SIZE // MINIBATCHES} --num_batches_per_epoch={MINIBATCHES} --num_epochs={EPOCHS}
        --use_rnn=False --encoder_conv_architecture=convnet_atari --encoder_conv_mlp_layers=512
        --nonlinearity=relu --obs_scale=255.0 --normalize_input=False --normalize_returns=False
        --learning_rate=2.5e-4 --ppo_clip_ratio=0.1 --exploration_loss_coeff=0.01 --value_loss_coeff=0.5
        --max_grad_norm=0.5 --train_for_env_steps={(WARMUP + ITERATIONS) * BATCH_SIZE}
        --summaries_use_frameskip=False
    """  # the last: or a step would count as many times as its action is held
    with tempfile.TemporaryDirectory() as folder:
        options = [*settings.split(), f"--train_dir={folder}"]
        register_env("doom", make_doom)
        parser, _ = parse_sf_args(options)
        _, runner = make_runner(parse_full_cfg(parser, options))
        runner.register_observer(Stamps())
        status = runner.init()
        if status == ExperimentStatus.SUCCESS:
            status = runner.run()
        if status != ExperimentStatus.SUCCESS:
            raise SystemExit(f"Sample Factory ended with status {status}")
    return (ended[WARMUP + ITERATIONS - 1] - ended[WARMUP - 1]) / ITERATIONS


def give_learner_threads() -> None:
    """Let the learner of Sample Factory, which gives every process one thread of torch, have more."""
    from sample_factory.algo.learning import learner_worker

    usual = learner_worker.init_torch_runtime
    threads = parse_args().threads[0]
    learner_worker.init_torch_runtime = lambda cfg: usual(cfg, max_num_threads=threads)


LIBRARIES = {"sample-factory": sample_factory, "stable-baselines3": stable_baselines3}

if __name__ == "__mp_main__" and sys.argv[1] == "sample-factory":  # a process that it started
    give_learner_threads()
if __name__ == "__main__":
    ARGS = parse_args()
    if "=" in ARGS.libraries[0]:
        compare(ARGS)
    else:
        LIBRARY = ARGS.libraries[0]
        MILLISECONDS = 1000 * LIBRARIES[LIBRARY](ARGS)
        VERSIONS = {name: metadata.version(name) for name in (LIBRARY, "torch", "vizdoom")}
        print("\n" + json.dumps({"ms": MILLISECONDS, "versions": VERSIONS}), flush=True)
