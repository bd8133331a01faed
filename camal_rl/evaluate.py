"""A trained run -> scores.json, pictures and a video of fresh episodes.

Scores say how well the agent plays (raw return) and how well the attention of its critic agrees with the
targets (Eq. 8 and other measures), whether that attention is faithful (removal and insertion of pixels,
Sec. 4.2, here for the critic's value and the policy) and whether it depends on what was learned at all
(cascading randomisation, Adebayo et al. 2018).
"""

from __future__ import annotations

import dataclasses
import io
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro

from camal_rl.errors import UserError
from camal_rl.run.command_line import NAME, Count, Map, Positive, Switch, option, parse, run_at_once
from camal_rl.run.files import write_together

RUN = option("RUN")
Look = Literal[
    "hud", "crosshair", "no-weapon", "no-effects", "flashes", "dim", "flat", "gamma", "noise", "distractor"
]


@dataclass
class Args:
    """Play a trained agent in fresh episodes; write scores.json, pictures and a video into its folder."""

    # runs
    run: tyro.conf.Positional[Annotated[Path, RUN]]
    """folder of a trained run, such as runs/Basic/balanced/seed1"""
    compare: Annotated[Path | None, RUN] = None
    """folder of another run, to be shown beside this one on the same episodes"""
    env: Annotated[Path | None, option("TOML")] = None
    """file of an environment of your own, if the run's folder has no copy"""
    output: Annotated[Path | None, option("DIR")] = None
    """folder to write to, instead of the run's own"""

    # episodes
    episodes: Positive = 100
    """episodes to play"""
    seed: Count = 0
    """seed of episodes and actions; training never uses the same episodes"""
    greedy: Switch = False
    """take the most probable action instead of sampling"""
    max_steps: Positive = 2100
    """agent steps after which an episode is cut short, and counted as such"""
    num_envs: Annotated[Positive, pydantic.Field(le=256)] = 8
    """games played in parallel"""

    # measures
    attention: Annotated[Map | None, NAME] = None
    """kind of map to evaluate, as for training, if not the run's own"""
    shift: Annotated[tuple[Look, ...] | None, NAME] = None
    """visual changes to evaluate under as well, all if none is named:
    hud, crosshair, no-weapon, no-effects, flashes, dim, flat, gamma, noise, distractor"""
    faithfulness_frames: Count = 1000
    """frames on which pixels are removed and inserted, 0 for none"""
    faithfulness_stack: Annotated[Literal["all", "newest"], option("WHICH")] = "all"
    """where pixels are removed: in all stacked frames, or in the newest"""
    video_episodes: Count = 3
    """episodes in the video, 0 for none"""

    # machine
    device: Annotated[str, NAME] = "auto"
    """cpu, cuda, cuda:1, mps; auto: cuda where there is one"""
    torch_threads: Count = 0
    """CPU threads of the network, 0 for all cores"""


def parse_args(arguments: list[str] | None = None) -> Args:
    """Read the command line; exits with code 2 and a message where it can't be understood."""
    return parse(Args, "python -m camal_rl.evaluate", arguments)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported, so that --help and a typing mistake are answered at once

import av
import cv2
import gymnasium
import numpy as np
import PIL
import torch
import vizdoom
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

import camal_rl
from camal_rl import attention, metrics
from camal_rl.doom import replay
from camal_rl.game.definition import Definition
from camal_rl.game.engine import engine_errors_told
from camal_rl.game.shift import SHIFTS
from camal_rl.results import faithfulness, media, play
from camal_rl.results.play import Episode, TrainedRun, Undefined
from camal_rl.run import folder as run_folder
from camal_rl.run.device import choose_device
from camal_rl.run.machine import cores

FORMAT = 1
"""Version of scores.json."""
GIF_STEPS = 200
"""Most agent steps that are shown in TensorBoard."""
AGREEMENT = (
    *("alpha", "beta", "iou", "iou_gradcam", "iou_mask", "iou_constant"),
    *("pointing_game", "relevance_mass", "roc_auc", "dead_map_fraction"),
)
"""Measures of attention against the targets."""


def chosen_shifts(args: Args) -> list[str]:
    """Names of the visual changes under which to evaluate."""
    return [] if args.shift is None else list(args.shift or SHIFTS)


def wanted_settings(args: Args) -> dict[str, Any]:
    """Settings of scores.json that decide the scores; `attention` is None where it is the run's own."""
    names = ("episodes", "seed", "greedy", "max_steps", "faithfulness_frames", "faithfulness_stack")
    options = {name: getattr(args, name) for name in names}
    return options | {"attention": args.attention, "shift": chosen_shifts(args)}


# ------------------------------------------------------------------------------------------------------------
# Scores


def measure(run: TrainedRun, args: Args, threads: int) -> tuple[dict[str, Any], list[Episode]]:
    """Play a run's episodes and measure it; without games, the network computes on so many CPU threads.

    Returns:
        The content of scores.json, with `Undefined` where there is no number; and the episodes.
    """
    seeds = play.episode_seeds(args.seed, args.episodes)
    few, many = (
        play.Sample(size, play.generator(args.seed, play.SAMPLE, size))
        for size in (faithfulness.SANITY_FRAMES, args.faithfulness_frames)
    )
    with _bar("episodes", args.episodes) as bar:
        keep = args.video_episodes
        episodes = play.play(run, seeds, args, keep=keep, samples=(few, many), done=bar.update)
    shifts = {}
    for name in chosen_shifts(args):
        with _bar(f"shift {name}", args.episodes) as bar:
            shifted = play.play(run, seeds, args, shift=SHIFTS[name], done=bar.update)
        shifts[name] = {"description": SHIFTS[name].description, **summarise(shifted, run.definition)}
    curves: object = Undefined("not asked for")
    with cpu_threads(threads):
        sanity = faithfulness.sanity(run, few, args.seed)
        if args.faithfulness_frames:
            with _bar("faithfulness", 6) as bar:
                stack = args.faithfulness_stack
                curves = faithfulness.faithfulness(run, many, stack, args.seed, bar.update)
    scores = {
        "format": FORMAT,
        "env": run.trained["args"]["env"],
        "method": run.trained["args"]["method"],
        "name": run.trained["args"]["name"],
        "seed": run.trained["args"]["seed"],
        "steps": run.steps,
        **summarise(episodes, run.definition),
        "shift": shifts,
        "sanity": sanity,
        "faithfulness": curves,
        "episodes": [
            {
                "seed": episode.seed,
                "return": episode.total,
                "length": len(episode.actions),
                "ending": episode.ending,
                "frames_with_target": len(episode.agreement),
                "iou": _mean(episode.column("iou")),
            }
            for episode in episodes
        ],
        "settings": used_settings(args, run, threads),
        "training": run.trained,
    }
    return scores, episodes


def used_settings(args: Args, run: TrainedRun, threads: int) -> dict[str, Any]:
    """Return what a repetition needs to get the same scores.json."""
    options = dataclasses.asdict(args)
    for name in ("run", "compare", "env", "output"):
        del options[name]
    modules = {"camal_rl": camal_rl, "torch": torch, "vizdoom": vizdoom, "gymnasium": gymnasium}
    modules |= {"numpy": np, "opencv": cv2, "av": av, "pillow": PIL}
    return options | {
        "shift": chosen_shifts(args),
        "tau": metrics.TAU,
        "attention": run.method,
        "checkpoint_sha256": run.checkpoint_sha256,
        "device": run.device.type,
        "precision": run.trained["args"]["precision"],
        "cpu_threads": threads,
        "versions": {"python": platform.python_version()}
        | {name: module.__version__ for name, module in modules.items()},
    }


def summarise(episodes: Sequence[Episode], definition: Definition) -> dict[str, Any]:
    """Return means over episodes and over frames, as scores.json has them."""
    totals = np.array([episode.total for episode in episodes])
    lengths = np.array([len(episode.actions) for episode in episodes])
    frames = int(lengths.sum())
    with_target = sum(len(episode.agreement) for episode in episodes)
    scale = definition.reference_return - definition.random_return
    sweeps = [frame["iou_sweep"] for episode in episodes for frame in episode.agreement]
    sweep = np.mean(sweeps, axis=0) if sweeps else np.full(len(metrics.TAUS), np.nan)
    iou_by_episode = np.array([episode.column("iou").mean() for episode in episodes if episode.agreement])
    return {
        "return": {
            "mean": totals.mean(),
            "standard_error": _standard_error(totals, "one episode has no spread"),
            "median": np.median(totals),
            "min": totals.min(),
            "max": totals.max(),
            "normalized_mean": (totals.mean() - definition.random_return) / scale,
        },
        "length": {"mean": lengths.mean(), "min": lengths.min(), "max": lengths.max()},
        "endings": {
            ending: sum(episode.ending == ending for episode in episodes)
            for ending in ("terminated", "truncated", "cut")
        },
        "frames": frames,
        "frames_with_target": with_target,
        "target_visible_fraction": with_target / frames,
        **{name: _mean(np.concatenate([episode.column(name) for episode in episodes])) for name in AGREEMENT},
        "iou_by_episode": {
            "mean": _mean(iou_by_episode),
            "standard_error": _standard_error(iou_by_episode, "fewer than two episodes had a target in view"),
            "episodes": len(iou_by_episode),
        },
        "iou_sweep": {
            "tau": metrics.TAUS,
            "iou": [_mean(height) for height in sweep],
            "area": _mean(metrics.area(sweep, metrics.TAUS)),
        },
    }


def _mean(values: np.ndarray) -> float | Undefined:
    """Return the mean of the values that are defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else Undefined(play.NO_TARGET)


def _standard_error(values: np.ndarray, otherwise: str) -> float | Undefined:
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else Undefined(otherwise)


def to_json(scores: dict[str, Any]) -> bytes:
    """Return the content of scores.json: null where there is no number, and its reason under `undefined`."""
    undefined: dict[str, str] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Undefined):
            undefined[path] = value.reason
            return None
        if isinstance(value, dict):
            return {name: plain(inner, f"{path}.{name}" if path else name) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner, f"{path}.{index}") for index, inner in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    content = plain(scores, "")
    content["undefined"] = undefined
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


# ------------------------------------------------------------------------------------------------------------
# Pictures and video


def draw(
    runs: Sequence[TrainedRun], episodes: Sequence[Episode], args: Args
) -> tuple[dict[Path, bytes], dict[str, bytes]]:
    """Draw the first run's episodes, the other run beside it.

    Returns:
        Files by path in the results' folder, and PNG or GIF files by tag of TensorBoard.
    """
    keep = min(args.video_episodes, args.episodes)
    versus = "".join("-versus-" + re.sub(r"[^\w.+=-]+", "-", name) for name in names(runs)[1:])
    files: dict[Path, bytes] = {}
    shown: dict[str, bytes] = {}
    if (strips := pictures(runs, episodes, args)) is not None:
        shown["evaluation/attention"] = media.encode_png(strips)
        files[Path("media", f"evaluation{versus}.png")] = shown["evaluation/attention"]
    if keep:
        seeds = [episode.seed for episode in episodes[:keep]]
        others = [play.play(run, seeds, args, keep=keep) for run in runs[1:]]
        with _bar("video frames", None) as bar:
            film, shown["evaluation/episode"] = video(runs, [episodes[:keep], *others], bar.update)
        files[Path("media", f"evaluation{versus}.mp4")] = film
    return files, shown


def names(runs: Sequence[TrainedRun]) -> list[str]:
    """Return what tells runs apart: nothing for a single one, else name and seed, or a folder as well."""
    labels = [run.label for run in runs]
    if len(runs) == 1:
        return [""]
    if len(set(labels)) == len(labels):
        return labels
    paths = [run.folder.resolve().parts for run in runs]
    differ = next(index for index, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    return [f"{label} of {path[differ]}" for label, path in zip(labels, paths, strict=True)]


def pictures(runs: Sequence[TrainedRun], episodes: Sequence[Episode], args: Args) -> np.ndarray | None:
    """Draw frames of high, middle and low IoU of the first run, with every run's attention on them.

    Each is from another episode if there are so many. The picture is None where no target was in view.
    """
    frames = sorted(
        (-frame["iou"], index, frame["step"])
        for index, episode in enumerate(episodes)
        for frame in episode.agreement
    )
    if not frames:
        return None
    ranks: list[int] = []
    for place in (0, len(frames) - 1, len(frames) // 2):
        shown = {frames[rank][1] for rank in ranks}
        others = [rank for rank, (_, index, _) in enumerate(frames) if index not in shown]
        ranks.append(min(others or range(len(frames)), key=lambda rank: abs(rank - place)))
    strips = []
    for rank in sorted(ranks):
        negative_iou, index, step = frames[rank]
        seed, actions = episodes[index].seed, episodes[index].actions
        tics = replay(runs[0].definition, seed, actions)
        screen, mask = next((screen, mask) for at, screen, mask in tics if at == step)
        maps = (heat(run, seed, actions[:step], args) for run in runs)
        heats = dict(zip(names(runs), maps, strict=True))
        which = f"rank {rank + 1:,} of {len(frames):,}, episode {index}, step {step}"
        caption = f"{runs[0].title}: IoU {-negative_iou:.2f} ({which})"
        strips.append(media.attention_strip(screen, mask, heats, caption))
    return media.stack_strips(strips)


@torch.no_grad()
def heat(run: TrainedRun, seed: int, actions: Sequence[int], args: Args) -> np.ndarray:
    """Return the run's attention, (h, w) in [0, 1], on an episode's frame after these actions."""
    with closing(run.env()) as env:
        env.begin_episode(seed)
        env.load_state_dict(env.state_dict() | {"episode_actions": actions})
        # As many rows as when it was played, because rounding depends on the size of a batch.
        images = np.repeat(env.image[None], args.num_envs, axis=0)
    _, cam = run.attend(images, torch.Generator(run.device).manual_seed(args.seed))
    return np.asarray(attention.normalize(cam)[0].cpu())


def video(
    runs: Sequence[TrainedRun],
    played: Sequence[Sequence[Episode]],
    shown: Callable[[], object] = lambda: None,
) -> tuple[bytes, bytes]:
    """Film all runs' same episodes side by side at the game's speed; `shown` is called after each frame.

    An MP4 file of all episodes is returned, and a GIF file of the first.
    """
    skip = runs[0].definition.frame_skip
    gif: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for number, episodes in enumerate(zip(*played, strict=True)):
            traces = [
                media.Trace(
                    title=f"{run.definition.name}, {name or run.label}, episode {number}",
                    heats=np.stack(episode.heats),
                    values=np.array(episode.values),
                    actions=np.array(episode.actions),
                    rewards=np.array(episode.rewards),
                    ious=episode.ious,
                    action_names=run.action_names,
                    tics=replay(run.definition, episode.seed, episode.actions),
                )
                for run, name, episode in zip(runs, names(runs), episodes, strict=True)
            ]
            for tic, frame in enumerate(media.video_frames(traces)):
                if number == 0 and tic % skip == 0 and len(gif) < GIF_STEPS:
                    gif.append(frame)
                shown()
                yield frame

    film = media.encode_video(frames(), vizdoom.DEFAULT_TICRATE)
    return film, media.encode_gif(gif, vizdoom.DEFAULT_TICRATE / skip)


def numbers(scores: Mapping[str, Any], prefix: str = "evaluation") -> dict[str, float]:
    """Return what TensorBoard shows of scores, by tag: means, without a change of looks and with each."""
    values = {name: scores[name] for name in AGREEMENT}
    values |= {name: scores[name]["mean"] for name in ("return", "length")}
    found = {f"{prefix}/{name}": value for name, value in values.items() if not isinstance(value, Undefined)}
    for shift, of_shift in scores.get("shift", {}).items():
        found |= numbers(of_shift, f"{prefix}-{shift}")
    return found


def events(scalars: Mapping[str, float], images: Mapping[str, bytes], step: int, wall_time: float) -> bytes:
    """Return the content of a TensorBoard events file with numbers, and PNG or GIF files, by tag."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    for tag, encoded in images.items():
        width, height = Image.open(io.BytesIO(encoded)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        values.append(Summary.Value(tag=tag, image=image))
    for value in values:
        event = Event(wall_time=wall_time, step=step, summary=Summary(value=[value]))
        writer.write(event.SerializeToString())
    return content.getvalue()


# ------------------------------------------------------------------------------------------------------------
# From the command line to the files


@engine_errors_told()
def evaluate(args: Args, adopted: TrainedRun | None = None) -> tuple[dict[str, Any], list[Path]]:
    """Evaluate a run and write its files; return the content of scores.json and the paths of all files.

    Args:
        adopted: an agent from elsewhere, from `play.adopt`, instead of the one in the run's folder.

    Raises:
        UserError: arguments, run, machine or folder with which that can't be done; nothing was written then.
    """
    runs = load_runs(args, adopted)
    folder = args.output or args.run
    threads = args.torch_threads or min(torch.get_num_threads(), cores())
    with run_folder.lock(folder, "evaluate"), cpu_threads(1):  # the cores belong to the engines
        scores, episodes = measure(runs[0], args, threads)
        drawn, shown = draw(runs, episodes, args)
        logged = events(numbers(scores), shown, runs[0].steps, runs[0].written)
        drawn[Path("evaluation", "events.out.tfevents.0.evaluation")] = logged
        files = {folder / path: content for path, content in drawn.items()}
        files[folder / "scores.json"] = to_json(scores)
        write_together(files)
    return json.loads(files[folder / "scores.json"]), list(files)


def load_runs(args: Args, adopted: TrainedRun | None = None) -> list[TrainedRun]:
    """Read the run, if it is not adopted, and the one to compare it with where there is one.

    Raises:
        UserError: a run can't be played, or the two can't be compared.
    """
    device = choose_device(args.device)
    if adopted:
        run = adopted._replace(method=args.attention or adopted.method)
    else:
        run = play.load_run(args.run, args.env, device, args.attention)
    if args.compare is None:
        return [run]
    other = play.load_run(args.compare, args.env, device, args.attention)
    run_folder.check_definition(args.run, run.trained["definition"], other.definition.described())
    if other.folder.resolve() == run.folder.resolve():
        raise UserError(f"--compare {args.compare}: that is the run itself; give another one.")
    if other.method != run.method:
        print(
            f"camal_rl: this run's map is {run.method}, the other's {other.method}; "
            "--attention chooses one for both.",
            file=sys.stderr,
        )
    return [run, other]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let the network compute on this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bar(title: str, total: int | None) -> Any:
    return tqdm(total=total, desc=title, mininterval=0.5 if sys.stderr.isatty() else 30, unit="")


def summary(scores: Mapping[str, Any], files: Sequence[Path]) -> str:
    """Return what is printed in the end, from the content of scores.json and the files written."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    total = scores["return"]
    lines = [
        f"{scores['env']}, {scores['name']} seed {scores['seed']}, trained {scores['steps']:,} steps, "
        f"{len(scores['episodes'])} episodes",
        f"  return {number(total['mean'])} (standard error {number(total['standard_error'])}), "
        f"length {number(scores['length']['mean'], 1)}, cut short {scores['endings']['cut']}",
        f"  {'':12} {'return':>9} {'iou':>6} {'mask':>6} {'constant':>8} {'alpha':>6} {'beta':>6} "
        f"{'dead':>6}",
    ]
    for name, row in {"no shift": scores, **scores["shift"]}.items():
        lines.append(
            f"  {name:12} {number(row['return']['mean']):>9} {number(row['iou'], 3):>6} "
            f"{number(row['iou_mask'], 3):>6} {number(row['iou_constant'], 3):>8} {number(row['alpha']):>6} "
            f"{number(row['beta']):>6} {number(row['dead_map_fraction']):>6}"
        )
    return "\n".join([*lines, *(f"  {path}" for path in files)])


def main(args: Args) -> int:
    """Evaluate, and return the exit code: 0, 2 after a user's mistake, 130 or 143 after a signal."""
    return run_at_once(lambda: print(summary(*evaluate(args))))


if __name__ == "__main__":
    sys.exit(main(ARGS))
