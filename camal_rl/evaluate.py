"""A trained run -> scores.json, pictures and a video of fresh episodes.

Scores say how well the agent plays (raw return) and how well the attention of its critic agrees with the
targets (Eq. 8 and other measures), whether that attention is faithful (removal and insertion of pixels,
Sec. 4.2, here for the critic's value and the policy) and whether it depends on what was learned at all
(cascading randomisation, Adebayo et al. 2018).
"""

from __future__ import annotations

import os

# Waiting torch threads spin by default, which takes the cores from the game engines. Read by torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dataclasses
import io
import json
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from camal_rl import __version__
from camal_rl.errors import UserError
from camal_rl.run.files import write_together

Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass
class Args:
    """Play a trained agent in fresh episodes; write scores.json, pictures and a video into its folder."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """folder of a trained run, such as runs/Basic/camal/seed1"""
    episodes: Count = 100
    """episodes to play"""
    seed: Count = 0
    """of episodes and actions; no episode is one that training can have seen"""
    greedy: bool = False
    """take the most probable action instead of sampling"""
    max_steps: Count = 2100
    """agent steps after which an episode is cut short, and counted as such"""
    num_envs: Count = 8
    """games in parallel"""
    compare: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """another run to show beside this one, on the same episodes"""
    shift: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME")] = None
    """visual changes to evaluate under as well; without a name, all of them"""
    faithfulness_frames: Count = 1000
    """frames on which pixels are removed and inserted, 0 for none"""
    faithfulness_stack: Annotated[Literal["all", "newest"], tyro.conf.arg(metavar="WHICH")] = "all"
    """where pixels are removed: in all stacked frames, or the newest"""
    video_episodes: Count = 3
    """episodes in the video, 0 for none"""
    attention: Annotated[
        Literal["gradcam", "layercam", "hirescam", "diffgradcam", "smoothgrad", "integrated-gradients"]
        | None,
        tyro.conf.arg(metavar="NAME"),
    ] = None
    """map to evaluate, of those of training; the one it was trained with, unless given"""
    env: Annotated[Path | None, tyro.conf.arg(metavar="TOML")] = None
    """the environment's file, where it is one of your own"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder to write to instead of the run's own"""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    torch_threads: Count = 0
    """CPU threads of the network, 0 for all cores"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return tyro.cli(
        Args, prog="python -m camal_rl.evaluate", config=(tyro.conf.FlagCreatePairsOff,), args=arguments
    )


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once
    for _number in (signal.SIGINT, signal.SIGTERM):  # until `main` takes over
        signal.signal(_number, lambda number, _: os._exit(128 + number))

import cv2
import gymnasium
import numpy as np
import torch
import vizdoom
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from camal_rl import attention, metrics
from camal_rl.doom import replay
from camal_rl.game.definition import Definition
from camal_rl.game.engine import engine_errors_told
from camal_rl.game.shift import SHIFTS
from camal_rl.results import media
from camal_rl.results.faithfulness import SANITY_FRAMES, faithfulness, sanity
from camal_rl.results.play import (
    NO_TARGET,
    SAMPLE,
    Episode,
    Sample,
    Settings,
    TrainedRun,
    Undefined,
    episode_seeds,
    generator,
    load_run,
    play,
)
from camal_rl.run import folder as run_folder
from camal_rl.run.command_line import run_at_once
from camal_rl.run.device import choose_device

FORMAT = 1
"""Of scores.json."""
GIF_STEPS = 200
"""Agent steps, at most, that are shown in TensorBoard."""
MOST_GAMES = 256
"""Of `--num-envs`."""


# ------------------------------------------------------------------------------------------------------------
# Scores


AGREEMENT = ("alpha", "beta", "iou", "iou_ceiling", "pointing_game", "relevance_mass", "roc_auc")


def summarise(episodes: Sequence[Episode], definition: Definition) -> dict[str, Any]:
    """Means over episodes and over frames, as scores.json has them."""
    totals = np.array([episode.total for episode in episodes])
    lengths = np.array([len(episode.actions) for episode in episodes])
    frames = int(lengths.sum())
    with_target = sum(len(episode.agreement) for episode in episodes)
    scale = definition.reference_return - definition.random_return
    summary: dict[str, Any] = {
        "return": {
            "mean": totals.mean(),
            "standard_error": totals.std(ddof=1) / np.sqrt(len(totals))
            if len(totals) > 1
            else Undefined("one episode has no spread"),
            "median": np.median(totals),
            "min": totals.min(),
            "max": totals.max(),
            "normalised_mean": (totals.mean() - definition.random_return) / scale,
        },
        "length": {"mean": lengths.mean(), "min": lengths.min(), "max": lengths.max()},
        "endings": {
            ending: sum(episode.ending == ending for episode in episodes)
            for ending in ("terminated", "truncated", "cut")
        },
        "frames": frames,
        "frames_with_target": with_target,
        "target_visible_fraction": with_target / frames,
        "dead_map_fraction": sum(map(sum, (episode.dead for episode in episodes))) / frames,
    }
    for name in AGREEMENT:
        summary[name] = _mean(np.concatenate([episode.column(name) for episode in episodes]))
    sweeps = [frame["iou_sweep"] for episode in episodes for frame in episode.agreement]
    sweep = np.mean(sweeps, axis=0) if sweeps else np.full(len(metrics.TAUS), np.nan)
    by_episode = np.array([episode.column("iou").mean() for episode in episodes if episode.agreement])
    summary["iou_by_episode"] = {
        "mean": _mean(by_episode),
        "standard_error": by_episode.std(ddof=1) / np.sqrt(len(by_episode))
        if len(by_episode) > 1
        else Undefined("fewer than two episodes had a target in view"),
        "episodes": len(by_episode),
    }
    summary["iou_sweep"] = {
        "tau": metrics.TAUS,
        "iou": [_mean(np.array([one])) for one in sweep],
        "area": _mean(np.array([metrics.area(sweep, np.array(metrics.TAUS))])),
    }
    return summary


def _mean(values: np.ndarray) -> float | Undefined:
    """The mean of what is defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else Undefined(NO_TARGET)


def to_json(scores: dict[str, Any]) -> bytes:
    """The content of scores.json: null where there is no number, and its reason under `undefined`."""
    undefined: dict[str, str] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Undefined):
            undefined[path] = value.reason
            return None
        if isinstance(value, dict):
            return {name: plain(one, f"{path}.{name}" if path else name) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one, f"{path}.{index}") for index, one in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    content = plain(scores, "")
    content["undefined"] = undefined
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------------------
# Pictures and video


def pictures(
    runs: Sequence[TrainedRun], episodes: Sequence[Episode], settings: Settings
) -> np.ndarray | None:
    """The frames of highest, median and lowest IoU of the first run, and every run's attention on them.

    uint8 (H, W, 3) RGB, or None where no target was in view.
    """
    frames = [
        (frame["iou"], index, frame["step"])
        for index, episode in enumerate(episodes)
        for frame in episode.agreement
    ]
    if not frames:
        return None
    frames.sort(key=lambda frame: (-frame[0], frame[1:]))
    strips = []
    for word, place in (("highest", 0), ("median", len(frames) // 2), ("lowest", -1)):
        iou, index, step = frames[place]
        episode = episodes[index]
        screen, mask = next(
            (screen, mask)
            for at, screen, mask in replay(runs[0].definition, episode.seed, episode.actions)
            if at == step
        )
        heats = {
            name: _heat(run, episode.seed, episode.actions[:step], settings)
            for name, run in zip(names(runs), runs, strict=True)
        }
        caption = f"{runs[0].title}: {word} IoU, {iou:.2f} (episode {index}, step {step})"
        strips.append(media.attention_strip(screen, mask, heats, caption))
    return media.stack_strips(strips)


def names(runs: Sequence[TrainedRun]) -> list[str]:
    """What tells runs apart: nothing for a single one, else method and seed, and a folder if those agree."""
    labels = [run.label for run in runs]
    if len(runs) == 1:
        return [""]
    if len(set(labels)) == len(labels):
        return labels
    paths = [run.folder.resolve().parts for run in runs]
    differ = next(index for index, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    return [f"{label} of {path[differ]}" for label, path in zip(labels, paths, strict=True)]


@torch.no_grad()
def _heat(run: TrainedRun, seed: int, actions: Sequence[int], settings: Settings) -> np.ndarray:
    """The run's attention, (h, w) in [0, 1], on the frame after these actions; `smoothgrad` draws anew."""
    env = run.env()
    try:
        env.load_state_dict(
            {
                "episode_seed": seed,
                "episode_actions": actions,
                "np_random": env.np_random.bit_generator.state,
            }
        )
        images = torch.from_numpy(np.repeat(env.image[None], settings.num_envs, axis=0))
    finally:
        env.close()
    noise = torch.Generator(run.device).manual_seed(settings.seed)
    cam = run.agent.cam(run.agent(images.to(run.device)), run.method, noise)
    return np.asarray(attention.normalize(cam)[0].cpu().numpy())


def video(
    runs: Sequence[TrainedRun],
    played: Sequence[Sequence[Episode]],
    shown: Callable[[], object] = lambda: None,
) -> tuple[bytes, bytes]:
    """Every run's same episodes side by side at the game's speed: an mp4 file, and the first one as a GIF."""
    skip = runs[0].definition.frame_skip
    gif: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for number, episodes in enumerate(zip(*played, strict=True)):
            traces = [
                media.Trace(
                    title=f"{run.definition.name}, {name}" if name else run.title,
                    heats=np.stack(episode.heats),
                    values=np.array(episode.values),
                    actions=np.array(episode.actions),
                    rewards=np.array(episode.rewards),
                    action_names=run.action_names,
                    tics=replay(run.definition, episode.seed, episode.actions),
                )
                for run, name, episode in zip(runs, names(runs), episodes, strict=True)
            ]
            for tic, frame in enumerate(media.video_frames(traces)):
                if number == 0 and tic % skip == 0 and len(gif) < GIF_STEPS:
                    gif.append(frame.copy())
                shown()
                yield frame

    film = media.encode_video(frames(), vizdoom.DEFAULT_TICRATE)
    return film, media.encode_gif(gif, vizdoom.DEFAULT_TICRATE / skip)


def events(images: Mapping[str, bytes], step: int, wall_time: float) -> bytes:
    """The content of a TensorBoard events file with these PNG or GIF files by tag."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
    for tag, encoded in images.items():
        width, height = Image.open(io.BytesIO(encoded)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        event = Event(
            wall_time=wall_time, step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])
        )
        writer.write(event.SerializeToString())
    return content.getvalue()


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


def check_args(args: Args) -> None:
    """Refuse what can't be evaluated.

    Raises:
        UserError: with the option, what was given and what is valid.
    """
    at_least = {
        "episodes": (args.episodes, 1),
        "seed": (args.seed, 0),
        "max-steps": (args.max_steps, 1),
        "num-envs": (args.num_envs, 1),
        "faithfulness-frames": (args.faithfulness_frames, 0),
        "video-episodes": (args.video_episodes, 0),
        "torch-threads": (args.torch_threads, 0),
    }
    for option, (value, least) in at_least.items():
        if not least <= value < 2**63:
            raise UserError(f"--{option} {value}: give a number of at least {least}.")
    if args.num_envs > MOST_GAMES:
        raise UserError(f"--num-envs {args.num_envs}: give at most {MOST_GAMES}.")
    for name in args.shift or ():
        if name not in SHIFTS:
            raise UserError(
                f"--shift {name}: no such change; choose of {', '.join(SHIFTS)}, or name none for all."
            )


def evaluate(args: Args) -> tuple[dict[str, Any], list[Path]]:
    """Evaluate a run, write its files, and return the content of scores.json and what was written.

    Raises:
        UserError: arguments, run, machine or folder with which that can't be done; nothing was written then.
    """
    check_args(args)
    device = choose_device(args.device)
    run = load_run(args.run, args.env, device, args.attention)
    runs = [run]
    if args.compare is not None:
        other = load_run(args.compare, args.env, device, args.attention)
        run_folder.check_definition(args.run, run.trained, other.definition)
        if other.folder.resolve() == run.folder.resolve():
            raise UserError(f"--compare {args.compare}: that is the run itself; give another one.")
        if other.method != run.method:
            print(
                f"camal_rl: this run's map is {run.method}, the other's {other.method}; "
                "--attention chooses one for both.",
                file=sys.stderr,
            )
        runs.append(other)
    folder = args.output or args.run
    _check_writable(folder)
    settings = Settings(args.seed, args.greedy, args.max_steps, args.num_envs)
    seeds = episode_seeds(args.seed, args.episodes)
    keep = min(args.video_episodes, args.episodes)
    shifts = chosen_shifts(args)
    with ExitStack() as cleanup:
        cleanup.enter_context(run_folder.lock(folder, "evaluate"))
        cleanup.callback(torch.set_num_threads, torch.get_num_threads())
        threads = args.torch_threads or torch.get_num_threads()
        torch.set_num_threads(1)  # the cores belong to the engines
        few, many = (
            Sample(size, generator(args.seed, SAMPLE, size))
            for size in (SANITY_FRAMES, args.faithfulness_frames)
        )
        with _bar("episodes", args.episodes) as bar:
            episodes = play(run, seeds, settings, keep=keep, samples=(few, many), done=bar.update)
        scores: dict[str, Any] = {
            "format": FORMAT,
            "env": run.definition.name,
            "method": run.trained["run"]["method"],
            "seed": run.trained["run"]["seed"],
            "steps": run.steps,
            **summarise(episodes, run.definition),
        }
        shifted = {}
        for name in shifts:
            with _bar(f"shift {name}", args.episodes) as bar:
                under = play(run, seeds, settings, shift=SHIFTS[name], done=bar.update)
            shifted[name] = {"description": SHIFTS[name].description, **summarise(under, run.definition)}
        scores["shift"] = shifted
        torch.set_num_threads(threads)
        scores["sanity"] = sanity(run, few, args.seed)
        if args.faithfulness_frames:
            with _bar("faithfulness", 6) as bar:
                scores["faithfulness"] = faithfulness(
                    run, many, args.faithfulness_stack, args.seed, bar.update
                )
        else:
            scores["faithfulness"] = Undefined("not asked for")
        scores["episodes"] = [_described(episode) for episode in episodes]
        scores["settings"] = _settings(args, device, run, shifts)
        scores["training"] = run.trained
        torch.set_num_threads(1)

        versus = "".join(f"-versus-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}" for name in names(runs)[1:])
        files: dict[Path, bytes] = {}
        shown: dict[str, bytes] = {}
        if (strips := pictures(runs, episodes, settings)) is not None:
            shown["evaluation/attention"] = media.encode_png(strips)
            files[folder / "media" / f"evaluation{versus}.png"] = shown["evaluation/attention"]
        if keep:
            played = [episodes[:keep], *(play(one, seeds[:keep], settings, keep=keep) for one in runs[1:])]
            with _bar("video frames", None) as bar:
                film, shown["evaluation/episode"] = video(runs, played, bar.update)
            files[folder / "media" / f"evaluation{versus}.mp4"] = film
        if shown:
            when = (args.run / "checkpoint.pt").stat().st_mtime
            files[folder / "evaluation" / "events.out.tfevents.0.evaluation"] = events(shown, run.steps, when)
        files[folder / "scores.json"] = to_json(scores)
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_together(files)
    content: dict[str, Any] = json.loads(files[folder / "scores.json"])
    return content, list(files)


def _bar(what: str, total: int | None) -> Any:
    return tqdm(total=total, desc=what, mininterval=0.5 if sys.stderr.isatty() else 30, unit="")


def _check_writable(folder: Path) -> None:
    """Before hours of work, not after; nothing is made yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "can't be written" if there.is_dir() else "is not a folder"
        raise UserError(f"can't write to {folder}: {there} {problem}. Choose another --output.")


def _described(episode: Episode) -> dict[str, Any]:
    return {
        "seed": episode.seed,
        "return": episode.total,
        "length": len(episode.actions),
        "ending": episode.ending,
        "frames_with_target": len(episode.agreement),
        "iou": _mean(episode.column("iou")),
    }


def chosen_shifts(args: Args) -> list[str]:
    """Names of the visual changes to evaluate under."""
    return [] if args.shift is None else list(args.shift or SHIFTS)


def wanted_settings(args: Args) -> dict[str, Any]:
    """What of the settings in scores.json decides the scores, as these arguments have it.

    `attention` is None where it is the run's own.
    """
    names = ("episodes", "seed", "greedy", "max_steps", "faithfulness_frames", "faithfulness_stack")
    options = {name: getattr(args, name) for name in names}
    return options | {"attention": args.attention, "shift": chosen_shifts(args)}


def _settings(args: Args, device: torch.device, run: TrainedRun, shifts: Sequence[str]) -> dict[str, Any]:
    """What a repetition needs to get the same file."""
    options = {
        name: value
        for name, value in dataclasses.asdict(args).items()
        if name not in ("run", "compare", "env", "output", "device", "attention")
    }
    return options | {
        "shift": list(shifts),
        "tau": metrics.TAU,
        "attention": run.method,
        "checkpoint_sha256": run.checkpoint,
        "device": device.type,
        "precision": run.agent.precision,
        "cpu_threads": torch.get_num_threads(),
        "versions": {
            "camal_rl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "vizdoom": vizdoom.__version__,
            "gymnasium": gymnasium.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "av": metadata.version("av"),
            "pillow": metadata.version("pillow"),
        },
    }


def summary(scores: Mapping[str, Any], files: Sequence[Path]) -> str:
    """What the command line prints in the end, of the content of scores.json."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    total = scores["return"]
    lines = [
        f"{scores['env']}, {scores['method']} seed {scores['seed']}, trained {scores['steps']:,} steps, "
        f"{len(scores['episodes'])} episodes",
        f"  return {number(total['mean'])} (standard error {number(total['standard_error'])}), "
        f"length {number(scores['length']['mean'], 1)}, cut short {scores['endings']['cut']}",
        f"  {'':12} {'return':>9} {'iou':>6} {'ceiling':>7} {'alpha':>6} {'beta':>6} {'dead':>6}",
    ]
    for name, row in {"no shift": scores, **scores["shift"]}.items():
        lines.append(
            f"  {name:12} {number(row['return']['mean']):>9} {number(row['iou'], 3):>6} "
            f"{number(row['iou_ceiling'], 3):>7} {number(row['alpha']):>6} {number(row['beta']):>6} "
            f"{number(row['dead_map_fraction']):>6}"
        )
    return "\n".join([*lines, *(f"  {path}" for path in files)])


def main(args: Args) -> int:
    """Evaluate, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""

    def run() -> None:
        with engine_errors_told():
            print(summary(*evaluate(args)))

    return run_at_once(run)


if __name__ == "__main__":
    sys.exit(main(ARGS))
