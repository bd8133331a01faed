"""A game or its frames -> the same game with another look, under which a trained agent is evaluated.

Some are the engine's own settings, some are made on the frames that the agent sees. None of them changes what
happens in the game for the same actions, so differences in return come from what the agent makes of them. The
masks follow what is drawn: the status bar squeezes the view, and a weapon that is not drawn hides no target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import vizdoom

NOISE = 25.0
"""Standard deviation of `noise`, in grey levels of 255."""
GAMMA = 0.5
"""Exponent of `gamma`: frames of the range [0, 1] to this power, which is brighter."""


@dataclass(frozen=True)
class Shift:
    """One visual change."""

    description: str
    """The difference, in a few words."""
    prepare: Callable[[vizdoom.DoomGame], None] | None = None
    """Changes the engine's settings before it starts."""
    disturb: Callable[[np.ndarray, np.random.Generator], None] | None = None
    """Changes the newest frame that the agent sees, uint8 (H, W), in place, with its episode's randomness."""


def _no_effects(game: vizdoom.DoomGame) -> None:
    game.set_render_decals(False)
    game.set_render_particles(False)
    game.set_render_effects_sprites(False)


def _gamma(frame: np.ndarray, rng: np.random.Generator) -> None:
    table = (255 * (np.arange(256) / 255) ** GAMMA).round().astype(np.uint8)
    cv2.LUT(frame, table, dst=frame)


def _noise(frame: np.ndarray, rng: np.random.Generator) -> None:
    noisy = frame + NOISE * rng.standard_normal(frame.shape, np.float32)
    frame[:] = np.clip(noisy, 0, 255).astype(np.uint8)


def _distractor(frame: np.ndarray, rng: np.random.Generator) -> None:
    size = max(1, len(frame) // 6)
    top, left = (int(rng.integers(length - size + 1)) for length in frame.shape)
    frame[top : top + size, left : left + size] = rng.integers(256, size=(size, size), dtype=np.uint8)


SHIFTS: dict[str, Shift] = {
    "hud": Shift("the status bar on", lambda game: game.set_render_hud(True)),
    "crosshair": Shift("a crosshair on", lambda game: game.set_render_crosshair(True)),
    "no-weapon": Shift("no weapon drawn", lambda game: game.set_render_weapon(False)),
    "no-effects": Shift("no decals, particles, puffs and blood", _no_effects),
    "flashes": Shift("screen flashes on pain and pick-up", lambda game: game.set_render_screen_flashes(True)),
    "dim": Shift("dimmer light (r_visibility 1)", lambda game: game.add_game_args("+r_visibility 1")),
    "flat": Shift("floors and ceilings without texture", lambda game: game.add_game_args("+r_drawflat 1")),
    "gamma": Shift(f"frames brightened, gamma {GAMMA:g}", disturb=_gamma),
    "noise": Shift(f"Gaussian noise, standard deviation {NOISE:g} of 255", disturb=_noise),
    "distractor": Shift("a square of noise, a sixth of the height, jumps about", disturb=_distractor),
}
"""The changes by name. Gamma is on the frames, because the engine applies its own to its window only. Drawing
another weapon would mean to hold it, which changes the game; `no-weapon` draws none."""
