"""Environments: options; on the real engine: observations, masks, episode ends, replay, clean-up."""

import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import gymnasium
import numpy as np
import pytest
import vizdoom
from conftest import SMALL, FakeGame
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from camal_rl import doom
from camal_rl.errors import UserError
from camal_rl.game.definition import available, load_definition
from camal_rl.game.frames import grey
from camal_rl.masks import mask_weights

PAPER = ["Basic", "DefendLine", "DefendCenter", "TakeCover"]
NOTHING, ATTACK = 0, 1  # in Basic, and
MOVE_RIGHT, MOVE_LEFT = 2, 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frame_size": (84,)}, "two whole numbers"),
        ({"frame_size": ("a", 84)}, "two whole numbers"),
        ({"frame_size": 84}, "two whole numbers"),
        ({"frame_size": (0, 84)}, "two whole numbers"),
        ({"frame_size": (241, 320)}, "240 320 that are rendered"),
        ({"frame_size": (130, 84), "render_resolution": SMALL}, "120 160 that are rendered"),
        ({"frame_stack": 0}, "frame stack 0"),
        ({"frame_stack": 1.5}, "stack is one or more"),
        ({"render_resolution": "640x480"}, "choose one of 160x120"),
        ({"render_mode": "human"}, "choose rgb_array"),
        ({"env": "Tetris"}, "no environment"),
    ],
)
def test_a_bad_option_is_refused_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(doom, "start_engine", lambda *_: pytest.fail("an engine was started"))
    with pytest.raises(UserError, match=words):
        doom.DoomEnv(**options)
    with pytest.raises(UserError, match=words):
        doom.DoomVectorEnv(num_envs=2, **options)


def test_a_vector_env_needs_an_environment() -> None:
    with pytest.raises(UserError, match="at least 1"):
        doom.DoomVectorEnv("Basic", 0)


def assert_shrunk(image: np.ndarray, screen: np.ndarray) -> None:
    """OpenCV's average over areas, but for its float32 rounding of a few that lie between two numbers."""
    expected = cv2.resize(screen, image.shape[::-1], interpolation=cv2.INTER_AREA)
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


class StillGame:
    """Stands in for the engine: one frame, with labels as given."""

    def __init__(self, labels: dict[int, str], pixels: np.ndarray) -> None:
        height, width = pixels.shape
        everywhere = {"x": 0, "y": 0, "width": width, "height": height}
        listed = [
            SimpleNamespace(value=v, object_name=n, object_category="", **everywhere)
            for v, n in labels.items()
        ]
        screen = np.zeros_like(pixels)
        self.state = SimpleNamespace(screen_buffer=screen, labels=listed, labels_buffer=pixels)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None

    def get_available_buttons(self) -> list[vizdoom.Button]:
        buttons = vizdoom.Button
        return [buttons.TURN_LEFT_RIGHT_DELTA, buttons.MOVE_LEFT, buttons.ATTACK]

    def get_state(self) -> SimpleNamespace:
        return self.state

    def make_action(self, action: list[float], tics: int) -> float:
        return float(tics)


def test_actions_are_single_buttons_without_those_that_have_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doom, "start_engine", lambda *_: StillGame({}, np.zeros((120, 160), np.uint8)))
    env = doom.DoomEnv("Basic", (84, 84), SMALL)
    assert env.actions == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert env.action_space.n == 3


def test_misuse_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doom, "start_engine", lambda *_: StillGame({}, np.zeros((120, 160), np.uint8)))
    env = doom.DoomEnv("Basic", (84, 84), SMALL, render_mode="rgb_array")
    env.game.state.screen_buffer = np.zeros((120, 160, 3), np.uint8)
    for early in (lambda: env.step(0), env.render, env.state_dict):
        with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
            early()
    env.reset(seed=0)
    for action in (-1, 3):
        with pytest.raises(ValueError, match=rf"no action {action}: valid actions are 0 to 2"):
            env.step(action)
    assert env.render().shape == (120, 160, 3)
    assert env.step(np.int64(2))[1] == 4
    envs = doom.DoomVectorEnv("Basic", 2, (84, 84), SMALL)
    with pytest.raises(ValueError, match="3 seeds and a mask of 2 for 2 environments"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"actions of shape \(3,\) for 2 environments"):
        envs.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="no action 3"):
        envs.step(np.array([0, 3]))
    envs.close()


@pytest.mark.parametrize("limit", [3, 7])
@pytest.mark.usefixtures("fake_engine")
def test_an_episode_is_truncated_after_its_last_step_with_its_last_real_frame(limit: int) -> None:
    """Seed 1 has an episode that terminates after 7 steps, which it does with this limit as well."""
    free = doom.DoomEnv("Basic", render_resolution=SMALL)
    limited = gymnasium.make("camal_rl/Basic-v0", render_resolution=SMALL, max_episode_steps=limit)
    envs = gymnasium.make_vec("camal_rl/Basic-v0", 2, render_resolution=SMALL, max_episode_steps=limit)
    (free.reset(seed=1), limited.reset(seed=1), envs.reset(seed=[1, 2]))
    for step in range(limit):
        action = step % 3
        last, reward, terminated, _, _ = free.step(action)
        assert limited.step(action)[1:4] == (reward, terminated, step == limit - 1)
        _, rewards, *flags, infos = envs.step(np.array([action, NOTHING]))
        assert rewards[0] == reward
        assert [flag[0] for flag in flags] == [terminated, step == limit - 1 and not terminated]
    assert terminated == (limit == 7)
    assert_same(infos["final_obs"][0], last)
    assert envs.envs[0].episode_length == 0
    assert envs.finished_episodes()[0].length == limit
    envs.close()


@pytest.mark.usefixtures("fake_engine")
def test_a_video_of_frames_is_as_fast_as_the_game() -> None:
    env, envs = doom.DoomEnv(load_definition("Basic")), doom.DoomVectorEnv("Basic", 1)
    assert env.metadata["render_fps"] == envs.metadata["render_fps"] == 35 / 4
    assert "render_fps" not in doom.DoomEnv.metadata
    envs.close()


# ------------------------------------------------------------------------------------------------------------
# The real engine


@pytest.fixture
def stock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> Iterator[Callable[..., Any]]:
    """ViZDoom's own environment, with the settings that ours has."""
    monkeypatch.chdir(tmp_path)  # it makes a folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pygame
        from vizdoom.gymnasium_wrapper.base_gymnasium_env import VizdoomEnv
    started = []

    def start(name: str, width: int, height: int) -> Any:
        env = VizdoomEnv(
            str(load_definition(name).scenario),
            frame_skip=4,
            max_buttons_pressed=1,
            screen_format=vizdoom.ScreenFormat.GRAY8,
            screen_resolution=getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"),
            labels_buffer_enabled=True,
            game_args="+movebob 0",
        )
        started.append(env)
        env.reset()
        return env

    yield start
    for env in started:
        env.close()


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["mask"], other["mask"])


@pytest.mark.engine
@pytest.mark.parametrize("name", available())
def test_exactly_the_targets_pixels_are_in_the_mask_and_within_its_box(
    start: Callable[..., doom.DoomEnv], name: str
) -> None:
    """Never the agent's weapon, bullet puffs, blood or corpses; and each name of the TOML occurs."""
    env = start(name, (30, 40))
    env.reset(seed=0)
    if name == "MyWayHome":  # an episode that begins with the rare vest in view
        env.load_state_dict(env.state_dict() | {"episode_seed": 118})
    rng = np.random.default_rng(0)
    masked, unmasked = set(), set()
    definition = env.definition
    for step in range(2000):
        state = env.game.get_state()
        targets = [
            label.value
            for label in state.labels
            if label.value > 1 and definition.is_target(label.object_name, label.object_category)
        ]
        np.testing.assert_array_equal(env.mask, np.isin(state.labels_buffer, targets))
        assert env.mask[env.mask_box].sum() == env.mask.sum()
        for label in state.labels:
            pixels = state.labels_buffer == label.value
            if pixels.any():
                assert len(np.unique(env.mask[pixels])) == 1
                kind = (label.object_name, label.object_category)
                (masked if env.mask[pixels].any() else unmasked).add(kind)
        seen = {name for name, _ in masked}
        if step >= 150 and seen >= set(definition.target_names) and seen:
            break
        if any(env.advance(int(rng.integers(len(env.actions))))[1:]):
            env.begin_episode()
    assert seen >= set(definition.target_names)
    assert {name for name, category in masked if category not in definition.target_categories} <= set(
        definition.target_names
    )
    assert not [name for name, category in unmasked if category in definition.target_categories]
    assert masked.isdisjoint(unmasked)


@pytest.mark.engine
@pytest.mark.parametrize(("name", "size"), [("Basic", (240, 320)), ("DefendLine", (84, 84))])
def test_frames_masks_and_actions_are_those_of_vizdooms_own_wrapper(
    start: Callable[..., doom.DoomEnv], stock: Callable[..., Any], name: str, size: tuple[int, int]
) -> None:
    ours, theirs = start(name, size, render_resolution="320x240", frame_stack=2), stock(name, 320, 240)
    assert ours.action_space == theirs.action_space

    def begin() -> dict[str, np.ndarray]:  # with the seed that theirs has drawn
        ours.begin_episode(theirs.unwrapped.game.get_seed())
        return {"image": ours.image.copy(), "mask": ours.mask.copy()}

    expected, _ = theirs.reset(seed=7)
    observation = begin()
    rng = np.random.default_rng(0)
    targets = 0
    for _ in range(60):
        assert_shrunk(observation["image"][-1], expected["screen"][..., 0])
        values = [
            label.value for label in theirs.state.labels if label.object_name in ours.definition.target_names
        ]
        mask = np.isin(expected["labels"][..., 0], values)
        np.testing.assert_array_equal(observation["mask"], mask)
        targets += mask.sum()
        action = rng.integers(len(ours.actions))
        observation, reward, terminated, truncated, info = ours.step(action)
        expected, their_reward, over, timeout, _ = theirs.step(action)
        assert (reward, terminated or truncated, info) == (their_reward, over or timeout, {})
        if terminated or truncated:
            expected, _ = theirs.reset()
            observation = begin()
    assert targets > 0


@pytest.mark.engine
def test_the_newest_frame_is_last_and_the_first_fills_the_stack(start: Callable[..., doom.DoomEnv]) -> None:
    env = start("DefendCenter", frame_stack=3, render_mode="rgb_array")
    first = env.reset(seed=1)[0]["image"]
    assert (first == first[0]).all()
    turn = next(i for i, action in enumerate(env.actions) if action[env.buttons.index("TURN_LEFT")])
    before = first
    for _ in range(4):
        image = env.step(turn)[0]["image"]
        np.testing.assert_array_equal(image[:-1], before[1:])
        assert (image[-1] != image[-2]).any()
        assert_shrunk(image[-1], grey(env.render()))
        before = image


def play(env: doom.DoomEnv, policy: Callable[[doom.DoomEnv], int]) -> tuple[list[Any], dict[str, np.ndarray]]:
    """One episode's last step, and the observation before it."""
    observation, _ = env.reset(seed=3)
    while True:
        last = env.step(policy(env))
        if last[2] or last[3]:
            return list(last), observation
        observation = last[0]


def aim(env: doom.DoomEnv) -> int:
    """Basic: move until in line with the monster, then shoot."""
    offset = np.flatnonzero(env.mask.any(axis=0)).mean() - env.mask.shape[1] / 2
    return ATTACK if abs(offset) < 6 else MOVE_RIGHT if offset > 0 else MOVE_LEFT


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "policy", "terminated"),
    [
        ("Basic", lambda _: NOTHING, False),  # the time limit
        ("Basic", aim, True),  # success
        ("HealthGathering", lambda _: NOTHING, True),  # death
    ],
)
def test_an_episode_ends_with_the_last_real_frame_and_one_of_two_flags(
    start: Callable[..., doom.DoomEnv], name: str, policy: Callable[[doom.DoomEnv], int], terminated: bool
) -> None:
    env = start(name)
    (last, reward, *flags, info), before = play(env, policy)
    assert flags == [terminated, not terminated]
    assert info == {}
    assert_same(last, before)
    assert last["image"].any()
    assert last["mask"].any() or name != "Basic"
    assert (reward > 0) == (policy is aim)
    with pytest.raises(RuntimeError, match=r"no episode is running: call reset\(\)"):
        env.step(0)
    assert (env.reset()[0]["image"] != last["image"]).any()


@pytest.mark.engine
def test_gymnasiums_checker_finds_nothing_to_complain_about() -> None:
    env = gymnasium.make("camal_rl/Basic-v0", render_mode="rgb_array", frame_size=[84, 84])
    try:
        check_env(env.unwrapped)
        env.reset(seed=1)
        assert env.render().shape == (240, 320, 3)
        assert env.spec is not None
        assert env.spec.id == "camal_rl/Basic-v0"
    finally:
        env.close()


@pytest.mark.engine
def test_make_vec_gives_the_vector_env() -> None:
    envs = gymnasium.make_vec(
        "camal_rl/Basic-v0", num_envs=2, render_resolution=SMALL, render_mode="rgb_array"
    )
    try:
        assert isinstance(envs, doom.DoomVectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        observations, _ = envs.reset(seed=1)
        assert observations in envs.observation_space
        observations, rewards, *_ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert rewards.shape == (2,)
        assert rewards.dtype == np.float64
        assert [frame.shape for frame in envs.render()] == [(120, 160, 3)] * 2
    finally:
        envs.close()


@pytest.mark.usefixtures("fake_engine")
def test_vector_env_gives_what_gymnasiums_own_gives(
    start: Callable[..., doom.DoomEnv], start_vector: Callable[..., doom.DoomVectorEnv]
) -> None:
    ours = start_vector("PredictPosition", 2, map_size=(7, 7))
    theirs = SyncVectorEnv([lambda: start("PredictPosition")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    observations, infos = ours.reset(seed=5)
    expected, _ = theirs.reset(seed=5)
    rng = np.random.default_rng(0)
    ends = 0
    for step in range(120):
        assert_same(observations, expected)
        np.testing.assert_array_equal(infos.pop("mask_weights"), mask_weights(observations["mask"], (7, 7)))
        if step == 60:  # one of them afresh, the other goes on
            options = {"reset_mask": np.array([False, True])}
            observations, infos = ours.reset(seed=[None, 9], options=options.copy())
            expected, _ = theirs.reset(seed=[None, 9], options=options)
            continue
        actions = rng.integers(len(ours.envs[0].actions), size=2)
        observations, *results, infos = ours.step(actions)
        expected, *their_results, their_infos = theirs.step(actions)
        for result, their_result in zip(results, their_results, strict=True):
            np.testing.assert_array_equal(result, their_result)
            assert result.dtype == their_result.dtype
        assert infos.keys() - {"mask_weights"} == their_infos.keys()
        if "final_obs" in their_infos:
            assert infos["final_info"] == their_infos["final_info"]
            for key in ("_final_obs", "_final_info"):
                np.testing.assert_array_equal(infos[key], their_infos[key])
            for final, their_final in zip(infos["final_obs"], their_infos["final_obs"], strict=True):
                assert (final is None) == (their_final is None)
                if final is not None:
                    ends += 1
                    assert_same(final, their_final)
    assert ends >= 2


@pytest.mark.usefixtures("fake_engine")
def test_observations_are_copies_of_what_the_next_step_overwrites(
    start_vector: Callable[..., doom.DoomVectorEnv],
) -> None:
    envs = start_vector("DefendCenter", 2, map_size=(7, 7))
    before, _ = envs.reset(seed=2)
    after, *_, infos = envs.step(np.array([2, 1]))
    assert_same(after, {"image": envs.images, "mask": envs.masks})
    np.testing.assert_array_equal(infos["mask_weights"], envs.mask_weights)
    for name in ("image", "mask"):
        assert not np.shares_memory(before[name], after[name])


@pytest.mark.usefixtures("fake_engine")
def test_threads_that_each_step_games_environments_give_what_a_whole_step_gives(
    start_vector: Callable[..., doom.DoomVectorEnv],
) -> None:
    whole, parts = (start_vector("PredictPosition", 3, map_size=(7, 7)) for _ in range(2))
    for envs in (whole, parts):
        envs.reset(seed=3)
    rng = np.random.default_rng(0)
    steps = 80
    actions = rng.integers(len(whole.envs[0].actions), size=(steps, 3))
    expected = []
    for step in range(steps):
        observations, *results, infos = whole.step(actions[step])
        finals = infos.get("final_obs", [None] * 3)
        expected.append((observations, infos["mask_weights"], results, finals))

    def play(games: slice) -> int:
        ends = 0
        for step in range(steps):
            *results, last_images = parts.step_games(games, actions[step, games].tolist())
            observations, weights, their_results, finals = expected[step]
            np.testing.assert_array_equal(parts.images[games], observations["image"][games])
            np.testing.assert_array_equal(parts.masks[games], observations["mask"][games])
            np.testing.assert_array_equal(parts.mask_weights[games], weights[games])
            for result, their_result in zip(results, their_results, strict=True):
                np.testing.assert_array_equal(result, their_result[games])
            last = {place: one["image"] for place, one in enumerate(finals[games]) if one is not None}
            assert last.keys() == last_images.keys()
            for place, image in last_images.items():
                np.testing.assert_array_equal(image, last[place])
            ends += len(last)
        return ends

    with ThreadPoolExecutor(2) as threads:
        assert sum(threads.map(play, (slice(0, 1), slice(1, 3)))) >= 3


@pytest.mark.engine
@pytest.mark.parametrize("name", ["DefendCenter", "TakeCover"])
def test_same_seeds_and_actions_give_the_same_run(
    start_vector: Callable[..., doom.DoomVectorEnv], name: str
) -> None:
    envs = start_vector(name, 3)
    envs.reset(seed=[4, 5, 4])
    rng = np.random.default_rng(0)
    different, after = False, 0
    while after < 10:
        _, *results, _ = envs.step(np.repeat(rng.integers(envs.single_action_space.n), 3))
        for array in (envs.images, envs.masks, *results):
            np.testing.assert_array_equal(array[0], array[2])
        different |= bool((envs.images[0] != envs.images[1]).any())
        after += int(after > 0 or results[1][0])  # steps since the end of an episode
    assert different, "another seed is another game"


@pytest.mark.engine
def test_reset_seeds_the_episodes_after_it_and_without_a_seed_goes_on(
    start: Callable[..., doom.DoomEnv],
) -> None:
    env = start("Basic")

    def first_frames(seed: int) -> list[bytes]:
        return [env.reset(seed=seed if i == 0 else None)[0]["image"].tobytes() for i in range(3)]

    frames = first_frames(1)
    assert len(set(frames)) == 3
    assert first_frames(1) == frames
    assert first_frames(2) != frames


@pytest.mark.engine
@pytest.mark.parametrize("name", PAPER)
def test_replay_brings_back_an_environment_and_its_future(
    start: Callable[..., doom.DoomEnv], name: str
) -> None:
    """At an episode's first frame, with fewer actions than the stack has frames, with more, after an end."""
    env = start(name)
    rng = np.random.default_rng(1)
    observation, _ = env.reset(seed=1)
    states, run = [], []
    for _ in range(240):
        states.append((env.state_dict(), observation, env.episode_return))
        action = int(rng.integers(len(env.actions)))
        observation, *results, _ = env.step(action)
        if results[1] or results[2]:
            observation, _ = env.reset()
        run.append((action, observation, results))
    assert any(terminated or truncated for _, _, (_, terminated, truncated) in run)
    other = start(name)
    other.reset(seed=99)
    for moment, steps in ((0, 20), (2, 20), (4, 20), (60, 20), (139, 100)):
        state, observation, episode_return = states[moment]
        other.load_state_dict(state)
        assert_same(other._observation(), observation)
        assert other.state_dict() == state
        assert other.episode_return == episode_return
        for action, expected, expected_results in run[moment : moment + steps]:
            observation, *results, _ = other.step(action)
            assert results == expected_results
            if results[1] or results[2]:
                observation, _ = other.reset()
            assert_same(observation, expected)


@pytest.mark.usefixtures("fake_engine")
def test_replay_in_a_vector_env(start_vector: Callable[..., doom.DoomVectorEnv]) -> None:
    one, other = (start_vector("TakeCover", 2, map_size=(7, 7)) for _ in range(2))
    one.reset(seed=1)
    for _ in range(10):
        observations, *_, infos = one.step(np.array([1, 2]))
    replayed, replayed_infos = other.load_state_dict(one.state_dict())
    assert_same(replayed, observations)
    np.testing.assert_array_equal(replayed_infos["mask_weights"], infos["mask_weights"])
    assert_same(one.step(np.array([0, 1]))[0], other.step(np.array([0, 1]))[0])


@pytest.mark.engine
@pytest.mark.parametrize("name", ["Basic", "DefendCenter", "TakeCover"])
def test_replay_in_colour_shows_the_same_game_tic_by_tic(
    name: str, start: Callable[..., doom.DoomEnv]
) -> None:
    env = start(name, (240, 320), render_resolution="320x240")
    rng = np.random.default_rng(0)
    env.begin_episode(2**31 + 3)
    masks, images, actions, ended = [], [], [], False
    while not ended and len(actions) < 60:
        masks.append(env.mask.copy())
        images.append(env.image[-1].copy())
        actions.append(int(rng.integers(len(env.actions))))
        ended = any(env.advance(actions[-1])[1:])
    shown = list(doom.replay(env.definition, 2**31 + 3, actions))
    steps = [step for step, _, _ in shown]
    assert steps == [tic // 4 for tic in range(len(shown))]
    assert 4 * (len(actions) - 1) < len(shown) <= 4 * len(actions)
    for step, (image, mask) in enumerate(zip(images, masks, strict=True)):
        _, screen, target = shown[4 * step]
        np.testing.assert_array_equal(target, mask)
        assert screen.shape == (240, 320, 3)
        np.testing.assert_array_equal(grey(screen), image)
    assert (np.ptp(shown[0][1].astype(int), axis=2) > 30).any()


@pytest.mark.engine
def test_a_replay_that_ends_early_is_refused(start: Callable[..., doom.DoomEnv]) -> None:
    env = start("Basic")
    env.reset(seed=1)
    with pytest.raises(UserError, match="ended after 75 of its 80 actions"):
        env.load_state_dict(env.state_dict() | {"episode_actions": bytes(80)})


# Engines that end


class DyingGame(FakeGame):
    """Ends at these calls, counted over all engines; `reached` says how many there were."""

    reached: dict[str, int]
    deaths: dict[str, set[int]]

    def live(self, call: str) -> None:
        self.reached[call] += 1
        if self.reached[call] in self.deaths.get(call, ()):
            raise vizdoom.ViZDoomUnexpectedExitException("killed")

    def new_episode(self) -> None:
        self.live("new_episode")
        super().new_episode()

    def make_action(self, action: list[float], tics: int) -> float:
        self.live("make_action")
        return super().make_action(action, tics)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[..., doom.DoomEnv]:
    def start(**deaths: Iterable[int]) -> doom.DoomEnv:
        DyingGame.reached = Counter()
        DyingGame.deaths = {call: set(times) for call, times in deaths.items()}
        monkeypatch.setattr(doom, "start_engine", lambda config, *options: DyingGame(*options))
        return doom.DoomEnv("Basic", (60, 80), SMALL)

    return start


def played(env: doom.DoomEnv, steps: int) -> list[tuple[bytes, bytes, float, bool, bool]]:
    """All that can be seen of so many steps, from a reset on."""
    seen = []
    env.reset(seed=3)
    for step in range(steps):
        reward, terminated, truncated = env.advance(step % len(env.actions))
        seen.append((env.image.tobytes(), env.mask.tobytes(), reward, terminated, truncated))
        if terminated or truncated:
            env.begin_episode()
    return seen


@pytest.mark.parametrize(
    ("deaths", "restarts"),
    [
        ({"make_action": [1]}, 1),
        ({"make_action": [5, 20, 22]}, 3),  # 21 is 20 done again
        ({"new_episode": [1]}, 1),
        ({"new_episode": [2, 3, 4]}, 3),
        ({"make_action": [4], "new_episode": [2, 3]}, 3),  # also those that replay
        ({"make_action": range(1, 60, 3)}, 20),  # more than may end in a row
    ],
)
def test_nothing_is_to_be_seen_of_an_engine_that_was_replaced(
    dying: Callable[..., doom.DoomEnv], deaths: dict[str, list[int]], restarts: int
) -> None:
    expected = played(dying(), 40)
    env = dying(**deaths)
    assert played(env, 40) == expected
    assert env.restarts == restarts


def test_an_engine_that_ends_again_at_the_same_action_truncates_the_episode(
    dying: Callable[..., doom.DoomEnv],
) -> None:
    expected = played(dying(), 3)
    env = dying(make_action=[3, 4])
    env.reset(seed=3)
    assert [env.advance(step)[1:] for step in range(2)] == [(False, False)] * 2
    assert env.advance(2) == (0.0, False, True)
    assert env.image.tobytes() == expected[1][0], "the last real frame is shown"
    assert env.restarts == 2
    with pytest.raises(RuntimeError, match="no episode is running"):
        env.advance(0)
    env.begin_episode()
    assert env.advance(0)[1:] == (False, False)


def test_engines_that_end_one_after_the_other_are_too_many(dying: Callable[..., doom.DoomEnv]) -> None:
    env = dying(new_episode=range(2, 100))
    env.reset(seed=3)
    message = r"engines of Basic ended 11 times in a row, the last with: killed Check free memory"
    with pytest.raises(UserError, match=message):
        played(env, 40)
    assert env.restarts == doom.MOST_FAILURES


def test_an_engine_that_does_not_start_again_is_tried_again(
    dying: Callable[..., doom.DoomEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = played(dying(), 5)
    env = dying(make_action=[2])
    starts = [UserError("no memory"), UserError("no memory"), None]

    def start() -> DyingGame:
        if (failure := starts.pop(0)) is not None:
            raise failure
        return DyingGame(*env.label_size)

    monkeypatch.setattr(env, "_start_engine", start)
    assert played(env, 5) == expected
    assert env.restarts == 1


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_engines_that_are_killed_or_hang_are_replaced_in_place(
    start_vector: Callable[..., doom.DoomVectorEnv], number: signal.Signals
) -> None:
    """First one of two engines, then the other; the games, in threads, go on as if nothing had happened."""
    envs = start_vector("Basic", 2, engine_timeout=0.5)
    twin = start_vector("Basic", 2)
    for one in (envs, twin):
        one.reset(seed=1)
    disturbed = 0
    for step in range(6):
        if step % 3 == 1:
            os.kill(envs.envs[step % 2].game.process, number)
            disturbed += 1
        actions = np.array([step % 4, (step + 1) % 4])
        for mine, theirs in zip(envs.step(actions), twin.step(actions), strict=True):
            np.testing.assert_equal(mine, theirs)
    assert envs.restarts == disturbed
    assert twin.restarts == 0


@pytest.mark.engine
def test_closing_twice_and_after_a_failed_start_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (doom.DoomEnv("Basic", render_resolution=SMALL), doom.DoomVectorEnv("Basic", 1)):
        one.close()
        one.close()
    real = doom.start_engine
    started = []

    def second_fails(*arguments: Any) -> vizdoom.DoomGame:
        if started:
            raise UserError("no more")
        started.append(real(*arguments))
        return started[0]

    monkeypatch.setattr(doom, "start_engine", second_fails)
    with pytest.raises(UserError, match="no more"):
        doom.DoomVectorEnv("Basic", 3)
    assert len(started) == 1
    assert not started[0].is_running()


def test_finished_episodes_come_once_in_the_order_of_their_ends_with_raw_returns(fake_engine: None) -> None:
    envs = doom.DoomVectorEnv("Basic", 4, (52, 60), SMALL)
    envs.reset(seed=[1, 2, 3, 4])
    rng = np.random.default_rng(0)
    totals, lengths = np.zeros(4), np.zeros(4, int)
    expected = []
    for step in range(40):
        actions = rng.integers(envs.single_action_space.n, size=4)
        _, rewards, terminated, truncated, _ = envs.step(actions)
        totals, lengths = totals + rewards, lengths + 1
        for game in np.flatnonzero(terminated | truncated):
            expected.append((step + 1, totals[game], lengths[game]))
            totals[game] = lengths[game] = 0
        if step == 20:
            assert [tuple(episode) for episode in envs.finished_episodes()] == sorted(expected)
            expected.clear()
    assert [tuple(episode) for episode in envs.finished_episodes()] == sorted(expected)
    assert envs.finished_episodes() == []
    assert len(expected) > 4
    assert [env.episode_return for env in envs.envs] == totals.tolist()
    assert [env.episode_length for env in envs.envs] == lengths.tolist()
    envs.close()
