"""Lists the environments, and shows one: its definition, what the label buffer names, and a picture."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tyro

from camal_rl.doom import DoomEnv
from camal_rl.errors import UserError, print_mistake
from camal_rl.game.definition import Definition, available, load_definition
from camal_rl.game.engine import engine_errors_told
from camal_rl.run.files import write_whole


def _shown(metavar: str, default: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default)


@dataclass
class Args:
    """List the environments, or show one: its definition, what the label buffer names, and a picture."""

    env: tyro.conf.Positional[Annotated[str | None, _shown("ENV", "")]] = None
    """an environment's name or the path of a .toml file; without one, all are listed"""
    output: Annotated[Path | None, _shown("PNG", "(default: ENV.png in this folder)")] = None
    """picture to write: what the agent sees beside the target mask"""
    steps: int = 500
    """frames of random play from which labels are counted and the picture is taken"""
    random_episodes: int = 0
    """episodes over which to measure the uniform random policy's return, for returns.random"""
    seed: int = 0
    """of the random play"""


def random_returns(definition: Definition, episodes: int, seed: int = 0) -> np.ndarray:
    """Raw returns of the uniform random policy, float64 (episodes,)."""
    env = DoomEnv(definition, frame_size=(1, 1), render_resolution="160x120", frame_stack=1)
    rng = np.random.default_rng(seed)
    returns = np.zeros(episodes)
    try:
        for episode in range(episodes):
            env.reset(seed=seed if episode == 0 else None)
            ended = False
            while not ended:
                reward, *flags = env.advance(int(rng.integers(len(env.actions))))
                returns[episode] += reward
                ended = any(flags)
    finally:
        env.close()
    return returns


def picture(screen: np.ndarray, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What was drawn, what the agent sees of it, the mask, the mask over the frame: uint8 (H', W', 3) BGR."""
    height, width = screen.shape
    seen = cv2.resize(image[-1], (width, height), interpolation=cv2.INTER_NEAREST)
    overlay = cv2.cvtColor(screen, cv2.COLOR_GRAY2BGR)
    overlay[mask > 0] = overlay[mask > 0] // 2 + np.array([0, 80, 127], np.uint8)
    panels = {
        f"drawn: {height} x {width}": cv2.cvtColor(screen, cv2.COLOR_GRAY2BGR),
        f"the agent sees: {image.shape[1]} x {image.shape[2]}": cv2.cvtColor(seen, cv2.COLOR_GRAY2BGR),
        f"target mask: {mask.sum() / mask.size:.1%} of the pixels": cv2.cvtColor(
            mask * 255, cv2.COLOR_GRAY2BGR
        ),
        "mask over frame": overlay,
    }
    titled = []
    for title, panel in panels.items():
        bar = np.full((24, width, 3), 32, np.uint8)
        cv2.putText(bar, title, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        titled.append(np.pad(np.vstack([bar, panel]), ((0, 4), (0, 4), (0, 0))))
    return np.hstack(titled)


def _show(definition: Definition, args: Args) -> None:
    output = args.output or Path(f"{definition.name}.png")
    if not output.parent.is_dir():
        raise UserError(f"can't write {output}: there is no folder {output.parent}. Choose another --output.")
    rng = np.random.default_rng(args.seed)
    seen: Counter[tuple[str, str]] = Counter()
    most = -1  # target pixels in the frame of the picture
    visible = 0
    env = DoomEnv(definition)
    try:
        env.reset(seed=args.seed)
        for _ in range(args.steps):
            state = env.game.get_state()
            assert state.labels is not None
            assert state.labels_buffer is not None
            present = set(np.unique(state.labels_buffer).tolist())
            shown = [label for label in state.labels if label.value in present]
            seen.update({(label.object_name, label.object_category) for label in shown})
            pixels = int(env.mask.sum())
            visible += pixels > 0
            if pixels > most:
                most, panels = pixels, picture(state.screen_buffer, env.image, env.mask)
            if any(env.advance(int(rng.integers(len(env.actions))))[1:]):
                env.reset()
    finally:
        env.close()
    write_whole(output, cv2.imencode(".png", panels)[1].tobytes())

    print(f"{definition.name}  ({definition.path})")
    print(f"  scenario        {definition.scenario}")
    print(f"  actions         {', '.join(env.action_names)}")
    print(f"  frame skip      {definition.frame_skip} tics")
    print(f"  reward scale    {definition.reward_scale:g}")
    print(f"  targets         {', '.join((*definition.target_names, *definition.target_categories))}")
    print(_wrapped(definition.target_reason))
    print(f"  random return   {definition.random_return:g}")
    print(_wrapped(definition.random_source))
    print(f"  reference       {definition.reference_return:g}")
    print(_wrapped(definition.reference_source))
    print(f"Random play, {args.steps} frames: a target is in view in {visible / args.steps:.1%} of them.")
    for (name, category), times in seen.most_common():
        mark = "  <- target" if definition.is_target(name, category) else ""
        print(f"  {name:24} {category:12} {times / args.steps:6.1%} of frames{mark}")
    print(f"Picture: {output}")
    if args.random_episodes:
        returns = random_returns(definition, args.random_episodes, args.seed)
        error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else float("nan")
        print(
            f"Random policy, {len(returns)} episodes: "
            f"mean return {returns.mean():.4g}, standard error {error:.2g}"
        )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=" " * 18, subsequent_indent=" " * 18)


def main() -> None:
    args = tyro.cli(Args, prog="python -m camal_rl.environments")
    if args.steps < 1 or args.random_episodes < 0 or args.seed < 0:
        raise UserError(
            f"--steps {args.steps} --random-episodes {args.random_episodes} --seed {args.seed}: "
            "give at least 1 step, and numbers that are not negative."
        )
    if args.env is not None:
        _show(load_definition(args.env), args)
        return
    print(f"{'environment':24} {'random':>8} {'reference':>9}  targets")
    for name in available():
        one = load_definition(name)
        targets = ", ".join((*one.target_names, *one.target_categories))
        print(f"{name:24} {one.random_return:8g} {one.reference_return:9g}  {targets}")
    print("`python -m camal_rl.environments NAME` shows one; a TOML file of your own works the same way.")


if __name__ == "__main__":
    try:
        with engine_errors_told():
            main()
    except UserError as mistake:
        sys.exit(print_mistake(mistake))
