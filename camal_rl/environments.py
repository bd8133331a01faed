"""Lists the environments, and shows one: its definition, what the label buffer names, and a picture."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro

from camal_rl.doom import DoomEnv
from camal_rl.game.definition import Definition, available, bare_definition, load_definition
from camal_rl.game.engine import engine_errors_told
from camal_rl.run.command_line import Count, Positive, option, parse, run_at_once
from camal_rl.run.files import write_whole


@dataclass
class Args:
    """List the environments, or show one: its definition, what the label buffer names, and a picture."""

    env: Annotated[str, tyro.conf.Positional, option("ENV")] = ""
    """a name, a .toml file, or a .cfg to look at its labels; without one, all are listed"""
    output: Annotated[Path | None, option("PNG")] = None
    """picture to write, else ENV.png: what the agent sees beside the target mask"""
    steps: Positive = 500
    """frames of random play from which labels are counted and the picture is taken"""
    random_episodes: Count = 0
    """episodes over which to measure the uniform random policy's return, for returns.random"""
    seed: Count = 0
    """seed of the random play"""


def random_play(env: DoomEnv, seed: int) -> Iterator[float | None]:
    """Play at random, and yield at every frame the raw return of the episode that has just ended, or None."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    finished, total = None, 0.0
    while True:
        yield finished
        reward, *flags = env.advance(int(rng.integers(len(env.actions))))
        finished, total = None, total + reward
        if any(flags):
            finished, total = total, 0.0
            env.reset()


def random_returns(definition: Definition, episodes: int, seed: int = 0) -> np.ndarray:
    """Raw returns of the uniform random policy, float64 (episodes,)."""
    with closing(DoomEnv(definition, (1, 1), render_resolution="160x120", frame_stack=1)) as env:
        finished = (total for total in random_play(env, seed) if total is not None)
        return np.fromiter(itertools.islice(finished, episodes), np.float64)


def picture(screen: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A frame as drawn, as the agent sees it, its mask, and the mask over it: uint8 (H', W', 3) BGR."""
    height, width = screen.shape
    seen = cv2.resize(image[-1], (width, height), interpolation=cv2.INTER_NEAREST)
    drawn, seen, target = (cv2.cvtColor(panel, cv2.COLOR_GRAY2BGR) for panel in (screen, seen, 255 * mask))
    panels = {
        f"drawn: {height} x {width}": drawn,
        f"the agent sees: {image.shape[1]} x {image.shape[2]}": seen,
        f"target mask: {mask.mean():.1%} of the pixels": target,
        "mask over frame": np.where(target > 0, drawn // 2 + np.array([0, 80, 127], np.uint8), drawn),
    }
    titled = []
    for title, panel in panels.items():
        bar = np.full((24, width, 3), 32, np.uint8)
        cv2.putText(bar, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        titled.append(np.pad(np.vstack([bar, panel]), ((0, 4), (0, 4), (0, 0))))
    return np.hstack(titled)


def _show(definition: Definition, args: Args) -> None:
    output = args.output or Path(f"{definition.name}.png")
    seen: Counter[tuple[str, str]] = Counter()
    most, visible = -1, 0  # target pixels in the frame of the picture; frames with a target
    with closing(DoomEnv(definition)) as env:
        for _ in itertools.islice(random_play(env, args.seed), args.steps):
            state = env.game.get_state()
            assert state.labels is not None
            assert state.labels_buffer is not None
            values = set(np.unique(state.labels_buffer).tolist())
            shown = [label for label in state.labels if label.value in values]
            seen.update({(label.object_name, label.object_category) for label in shown})
            pixels = int(env.mask.sum())
            visible += pixels > 0
            if pixels > most:
                most, panels = pixels, picture(state.screen_buffer, env.image, env.mask)
    write_whole(output, cv2.imencode(".png", panels)[1].tobytes())

    described = dataclasses.asdict(definition)
    if not definition.target_reason:  # no TOML file says anything
        described = {name: described[name] for name in ("scenario", "frame_skip")}
    for name, value in (described | {"actions": tuple(env.action_names)}).items():
        text = ", ".join(value) if isinstance(value, tuple) else str(value)
        title = f"{name.replace('_', ' '):18}"
        print(textwrap.fill(title + text, 100, subsequent_indent=18 * " ", break_on_hyphens=False))
    print(f"Random play, {args.steps} frames: a target is in view in {visible / args.steps:.1%} of them.")
    for (name, category), times in seen.most_common():
        mark = "  <- target" if definition.is_target(name, category) else ""
        print(f"  {name:24} {category:12} {times / args.steps:6.1%} of frames{mark}")
    print(f"Picture: {output}")
    if args.random_episodes:
        returns = random_returns(definition, args.random_episodes, args.seed)
        error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else float("nan")
        mean = f"mean return {returns.mean():.4g}, standard error {error:.2g}"
        print(f"Random policy, {len(returns)} episodes: {mean}")


@engine_errors_told()
def main(args: Args) -> None:
    """List the environments, or show the one that is named."""
    if args.env.endswith(".cfg"):
        _show(bare_definition(Path(args.env)), args)
    elif args.env:
        _show(load_definition(args.env), args)
    else:
        print(f"{'environment':24} {'random':>8} {'reference':>9}  targets")
        for each in map(load_definition, available()):
            targets = ", ".join((*each.target_names, *each.target_categories))
            print(f"{each.name:24} {each.random_return:8g} {each.reference_return:9g}  {targets}")
        print("`python -m camal_rl.environments NAME` shows one; a TOML file of your own works the same way.")


if __name__ == "__main__":
    sys.exit(run_at_once(partial(main, parse(Args, "python -m camal_rl.environments"))))
