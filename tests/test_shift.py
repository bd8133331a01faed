"""Visual changes: another look, the same game."""

from collections.abc import Callable

import numpy as np
import pytest

from camal_rl import doom
from camal_rl.game.shift import SHIFTS

ENGINE = [name for name, shift in SHIFTS.items() if shift.prepare]
FRAMES = [name for name, shift in SHIFTS.items() if shift.disturb]


def test_every_change_is_either_the_engines_or_on_the_frames() -> None:
    assert sorted(ENGINE + FRAMES) == sorted(SHIFTS)
    assert all(shift.description for shift in SHIFTS.values())


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("size", [(36, 48), (84, 84), (240, 320), (3, 3)])
def test_a_change_of_frames_changes_them_in_place_and_repeats_with_its_generator(
    name: str, size: tuple[int, int]
) -> None:
    frame = np.random.default_rng(0).integers(20, 200, size, dtype=np.uint8)
    changed, again = frame.copy(), frame.copy()
    SHIFTS[name].disturb(changed, np.random.default_rng(1))  # type: ignore[misc]
    SHIFTS[name].disturb(again, np.random.default_rng(1))  # type: ignore[misc]
    np.testing.assert_array_equal(changed, again)
    assert (changed != frame).any()


def test_each_change_of_frames_is_what_it_says() -> None:
    grey = np.full((240, 320), 100, np.uint8)
    changed = {name: grey.copy() for name in FRAMES}
    for name, frame in changed.items():
        SHIFTS[name].disturb(frame, np.random.default_rng(0))  # type: ignore[misc]
    assert (changed["gamma"] == round(255 * (100 / 255) ** 0.5)).all()
    assert abs(changed["noise"].std() - 25) < 0.5
    assert abs(changed["noise"].mean() - 100) < 1
    rows, columns = np.nonzero(changed["distractor"] != grey)
    assert np.ptp(rows) == np.ptp(columns) == 240 // 6 - 1


@pytest.mark.engine
@pytest.mark.parametrize("name", ENGINE)
def test_a_change_of_the_engine_shows_and_leaves_the_game_as_it_was(
    name: str, start: Callable[..., doom.DoomEnv]
) -> None:
    # DefendCenter has all that is changed: a weapon, puffs and blood, and monsters that hurt.
    usual = start("DefendCenter", (120, 160))
    other = start("DefendCenter", (120, 160), prepare=SHIFTS[name].prepare)
    rng = np.random.default_rng(0)
    usual.begin_episode(7)
    other.begin_episode(7)
    differ = 0
    for _ in range(120):
        differ += (usual.image[-1] != other.image[-1]).any()
        action = int(rng.integers(len(usual.actions)))
        outcome = usual.advance(action)
        assert other.advance(action) == outcome
        if any(outcome[1:]):
            break
    assert differ
