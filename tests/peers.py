"""PPO of other libraries on the work that our training does, but without masks: milliseconds an iteration.

Each library needs an environment of its own, and has its own best settings:

    python3 -m venv sf && sf/bin/pip install torch sample-factory==2.1.1 vizdoom
    python3 -m venv sb3 && sb3/bin/pip install torch stable-baselines3==2.9.2 vizdoom opencv-python-headless
    python tests/peers.py sample-factory=sf/bin/python stable-baselines3=sb3/bin/python

measures camal_rl, with CAMAL, and the libraries in turns, and writes peers.json and peers.md; it takes half
an hour on two cores. On a machine with a GPU and 16 cores, add --device cuda --num-envs 32 --threads 16.
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
NUM_STEPS, EPOCHS, MINIBATCHES = 128, 4, 4
WARMUP = 2  # iterations that do not count


def parse_args() -> argparse.Namespace:
    """Read the command line: of all libraries in turns or, where NAME stands alone, of one here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("libraries", nargs="+", metavar="NAME=PYTHON", help="interpreters that have them")
    parser.add_argument("--env", default="Basic", help="environment or .toml file")
    parser.add_argument("--repetitions", type=int, default=3, help="repetitions of every measurement")
    parser.add_argument("--iterations", type=int, default=10, help="iterations of every measurement")
    parser.add_argument("--num-envs", type=int, default=8, help="games at once, a multiple of 4")
    parser.add_argument("--sizes", nargs="+", default=["160x120", "320x240"], help="what is drawn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads to try")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder for the results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    for option in ("scenario", "frame-skip"):
        parser.add_argument(f"--{option}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch_size = args.num_envs * NUM_STEPS
    args.total_steps = (WARMUP + args.iterations) * args.batch_size
    return args


# -------------------------------------------------------------------------------------------- all, in turns


def compare(args: argparse.Namespace) -> None:
    """Measure camal_rl and the libraries in turns, and write the results."""
    from camal_rl import benchmark, ppo
    from camal_rl.game.definition import load_definition
    from camal_rl.results.figures import Table, markdown

    definition = load_definition(args.env)
    game = {"scenario": definition.scenario, "frame-skip": definition.frame_skip, "device": args.device}
    game |= {"num-envs": args.num_envs, "iterations": args.iterations}
    ours = {"env": args.env, "device": args.device, "num_envs": args.num_envs}
    cases: benchmark.Cases = {}
    versions = {}
    kinds = [(size, threads) for size in args.sizes for threads in args.threads]
    for size, threads in kinds * args.repetitions:
        values = cases.setdefault(f"rendered at {size}, torch threads: {threads}", {})
        looks: dict[str, Any] = {"render_resolution": size, "torch_threads": threads}
        sps, _ = benchmark.train(ppo.Args(**ours, **looks), args.iterations)
        values.setdefault("camal_rl", []).append(1000 * args.batch_size / sps)
        for name, python in (word.split("=", 1) for word in args.libraries):
            options = {**game, "sizes": size, "threads": threads}
            words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
            command = [python, __file__, name, *words]
            with tempfile.TemporaryFile() as output:  # a pipe stays open while a lost game runs
                subprocess.run(command, stdout=output, check=True)
                output.seek(0)
                said = json.loads(output.readlines()[-1])
            versions[name] = said["versions"]
            values.setdefault(name, []).append(said["ms"])
            print(json.dumps(cases), flush=True)
    base = ppo.Args(device=args.device, torch_threads=max(args.threads))
    machine = f"{benchmark.machine(base)} {json.dumps(versions)}"
    title = f"Other libraries: an iteration of {args.batch_size:,} steps"
    speeds = [
        [case, *(f"{1000 * args.batch_size / np.median(ms):.0f}" for ms in values.values())]
        for case, values in cases.items()
    ]
    tables = (
        benchmark.tabulate(title, cases, "camal_rl"),
        Table("Other libraries: median SPS", ["", *next(iter(cases.values()))], speeds),
    )
    table = "\n".join(map(markdown, tables))
    content = {"format": benchmark.FORMAT, "parts": {"peers": {"machine": machine, "cases": cases}}}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "peers.json").write_text(json.dumps(content, indent=1) + "\n")
    (args.output / "peers.md").write_text(f"{table}\n{machine}\n")
    print(table)


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
        self.buttons = np.eye(buttons + 1, buttons, -1).tolist()  # none, then each
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
    """Make the environment that the command line asks for, which is the same in every process."""
    args = parse_args()
    return Doom(args.scenario, args.sizes[0], int(args.frame_skip))


# ----------------------------------------------------------------------------------------------- each library


def stable_baselines3(args: argparse.Namespace) -> float:
    """Seconds of all iterations that count, of PPO with CnnPolicy, the same network, and a process a game."""
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
    settings = {"n_steps": NUM_STEPS, "batch_size": args.batch_size // MINIBATCHES, "n_epochs": EPOCHS}
    settings |= {"learning_rate": 2.5e-4, "clip_range": 0.1, "ent_coef": 0.01, "vf_coef": 0.5}
    envs = SubprocVecEnv([make_doom] * args.num_envs)
    try:
        model = PPO("CnnPolicy", envs, max_grad_norm=0.5, device=args.device, **settings)
        model.learn(args.total_steps, Stamps())
        return time.perf_counter() - began[WARMUP]
    finally:
        envs.close()


def sample_factory(args: argparse.Namespace) -> float:
    """Seconds of all iterations that count, of APPO, which plays while it learns, in a process a core."""
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
    workers = max(count for count in range(1, cores + 1) if args.num_envs % count == 0)
    per_worker = args.num_envs // workers
    settings = f"""
        --algo=APPO --env=doom --experiment=benchmark --device={"cpu" if args.device == "cpu" else "gpu"}
        --async_rl=True --serial_mode=False --num_workers={workers} --num_envs_per_worker={per_worker}
        --worker_num_splits={2 if per_worker % 2 == 0 else 1} --rollout={NUM_STEPS}
        --batch_size={args.batch_size // MINIBATCHES} --num_batches_per_epoch={MINIBATCHES}
        --num_epochs={EPOCHS} --use_rnn=False
        --encoder_conv_architecture=convnet_atari --encoder_conv_mlp_layers=512
        --nonlinearity=relu --obs_scale=255.0 --normalize_input=False --normalize_returns=False
        --learning_rate=2.5e-4 --ppo_clip_ratio=0.1 --exploration_loss_coeff=0.01 --value_loss_coeff=0.5
        --max_grad_norm=0.5 --train_for_env_steps={args.total_steps}
        --summaries_use_frameskip=False
    """  # with the last, a step counts once however long its action is held
    with tempfile.TemporaryDirectory() as folder:
        options = [*settings.split(), f"--train_dir={folder}"]
        register_env("doom", make_doom)
        parser, _ = parse_sf_args(options)
        _, runner = make_runner(parse_full_cfg(parser, options))
        runner.register_observer(Stamps())
        for stage in (runner.init, runner.run):
            if (status := stage()) != ExperimentStatus.SUCCESS:
                raise SystemExit(f"Sample Factory ended with status {status}")
    return ended[WARMUP - 1 + int(args.iterations)] - ended[WARMUP - 1]


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
    NAME = ARGS.libraries[0]
    if NAME not in LIBRARIES:
        compare(ARGS)
    else:
        SECONDS = LIBRARIES[NAME](ARGS)
        VERSIONS = {name: metadata.version(name) for name in (NAME, "torch", "vizdoom")}
        print("\n" + json.dumps({"ms": 1000 * SECONDS / ARGS.iterations, "versions": VERSIONS}), flush=True)
