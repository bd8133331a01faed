"""ViZDoom -> Gymnasium: a stack of grey frames and, beside it, the mask of the targets in the newest frame.

The mask comes from the engine's label buffer and stays at that buffer's resolution. ViZDoom is deterministic
given the seed of an episode and the actions since, so that pair is an environment's whole state: it is what a
checkpoint keeps, and replaying it rebuilds the environment in any engine.
"""

from __future__ import annotations

import difflib
import operator
import re
import struct
import sys
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import cv2
import gymnasium
import numpy as np
import tyro
import vizdoom
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from camal_rl import ENVS_DIR, UserError, print_mistake, write_whole
from camal_rl.engine import (
    ENGINE_ERRORS,
    TIME_LIMIT,
    EngineError,
    check_shared_memory,
    engine_errors_told,
    start_engine,
)
from camal_rl.frames import Stack, shrinking, zero_pixels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Observation = dict[str, np.ndarray]
Box = tuple[slice, slice]
"""Rows and columns."""

EVALUATION_SEEDS = 2**31
"""The engine takes seeds below 2**32: those from here on are for evaluation, those below for training."""
FRAME_SIZE = (84, 84)
"""Height and width of the frames the agent sees, in pixels (CleanRL's CNN)."""
FRAME_STACK = 4
"""Frames the agent sees at once, the newest last (paper, Table 8)."""
RENDER_RESOLUTIONS = {
    "160x120": (120, 160),
    "200x150": (150, 200),
    "256x192": (192, 256),
    "320x240": (240, 320),
}
"""ViZDoom's 4:3 resolutions up to the default of its scenarios: name -> (height, width) in pixels."""

# fmt: off
CATEGORIES = frozenset((
    "Ammo", "Armor", "Artifact", "Breakable", "Bridge", "Dead", "Decoration", "DynamicLight", "Explosive",
    "Gibs", "Gore", "Hazard", "Health", "Internal", "Item", "Key", "LightSource", "Monster", "Player",
    "Powerup", "ScriptThing", "Self", "SFX", "Teleport", "Token", "Unknown", "Vegetation", "Weapon",
))
# fmt: on
"""What a label can say of an object besides its name. Nineteen of them were seen by placing every object of
ViZDoom 1.3.2 in view; the others are among the engine's strings."""


# ------------------------------------------------------------------------------------------------------------
# Definitions: environments are data


@dataclass(frozen=True)
class Definition:
    """One environment, as its TOML file in `envs/` (or a user's own) defines it."""

    name: str
    """The file's name without `.toml`."""
    path: Path
    """The TOML file."""
    scenario: Path
    """The ViZDoom .cfg file."""
    frame_skip: int
    """Tics an action is held."""
    reward_scale: float
    """Factor of `--reward scale`."""
    target_names: tuple[str, ...]
    """Names of the objects that are targets, as ViZDoom's labels spell them."""
    target_categories: tuple[str, ...]
    """Categories of objects that are targets."""
    target_reason: str
    """Why those regions are the discriminative ones."""
    random_return: float
    """Mean raw return of the uniform random policy: 0 on the normalised scale."""
    random_source: str
    """How `random_return` was measured."""
    reference_return: float
    """Raw return of a competent agent: 1 on the normalised scale."""
    reference_source: str
    """Where `reference_return` comes from."""

    @cached_property
    def _folded_names(self) -> frozenset[str]:
        return frozenset(name.casefold() for name in self.target_names)

    def is_target(self, name: str, category: str) -> bool:
        """Whether an object with this label is a target; names compare as the engine does, without case."""
        return category in self.target_categories or name.casefold() in self._folded_names


_REQUIRED: dict[str, tuple[type, ...]] = {
    "scenario": (str,),
    "frame_skip": (int,),
    "reward_scale": (int, float),
    "targets.names": (list,),
    "targets.categories": (list,),
    "targets.reason": (str,),
    "returns.random": (int, float),
    "returns.random_source": (str,),
    "returns.reference": (int, float),
    "returns.reference_source": (str,),
}
_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", list: "a list of strings"}


def available() -> list[str]:
    """Names of the environments that come with the package."""
    return sorted(path.stem for path in ENVS_DIR.glob("*.toml"))


def load_definition(env: str | Path) -> Definition:
    """Read an environment's definition.

    Args:
        env: a name out of `available()`, or the path of a TOML file.

    Raises:
        UserError: no such environment, or a mistake in its file: the message names the line and the key.
    """
    path = Path(env)
    if path.suffix != ".toml":
        path = ENVS_DIR / f"{env}.toml"
        if str(env) not in available():
            names = {name.casefold(): name for name in available()}
            near = [names[match] for match in difflib.get_close_matches(str(env).casefold(), names, 1)]
            raise UserError(
                f"no environment named {str(env)!r}{'; did you mean ' + near[0] + '?' if near else '.'} "
                f"Choose one of {', '.join(available())}, or give the path of a .toml file of your own."
            )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read the environment {path}: {getattr(error, 'strerror', None) or error}."
        ) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error

    def mistake(key: str, problem: str) -> UserError:
        return UserError(f"{path}, line {_line_of(text, key)}: {key}: {problem}")

    for section in ("targets", "returns"):
        if not isinstance(table.get(section, {}), dict):
            raise mistake(section, f"{table[section]!r} is not a section: write [{section}] above its keys.")
    values = {
        f"{section}.{key}" if isinstance(content, dict) else section: value
        for section, content in table.items()
        for key, value in (content.items() if isinstance(content, dict) else [(section, content)])
    }
    for key in values:
        if key not in _REQUIRED:
            raise mistake(key, f"unknown key. Valid keys are {', '.join(_REQUIRED)}.")
    for key, types in _REQUIRED.items():
        if key not in values:
            raise UserError(f"{path}: the key {key} is missing; it is {_TYPE_NAMES[types[-1]]}.")
        value = values[key]
        strings = not isinstance(value, list) or all(isinstance(item, str) for item in value)
        if not isinstance(value, types) or isinstance(value, bool) or not strings:
            raise mistake(key, f"{value!r} is not {_TYPE_NAMES[types[-1]]}.")
        if isinstance(value, (int, float)) and not abs(value) < 1e9:
            raise mistake(key, f"{value!r} is not a finite number below 1e9.")
    if not 1 <= values["frame_skip"] <= 1000:
        raise mistake("frame_skip", f"{values['frame_skip']} is not at least 1 tic and at most 1000.")
    if values["reward_scale"] <= 0:
        raise mistake("reward_scale", f"{values['reward_scale']} is not greater than 0.")
    if values["returns.reference"] <= values["returns.random"]:
        raise mistake(
            "returns.reference", "has to be greater than returns.random, or scores can't be normalised."
        )
    if not values["targets.names"] and not values["targets.categories"]:
        raise mistake(
            "targets.names", "name at least one object or category: without a target there is no mask."
        )

    scenario = _find_scenario(values["scenario"], path)
    if scenario is None:
        stock = ", ".join(sorted(file.name for file in Path(vizdoom.scenarios_path).glob("*.cfg")))
        raise mistake(
            "scenario",
            f"no file {values['scenario']!r} beside the TOML or in ViZDoom. Stock scenarios: {stock}.",
        )
    for category in values["targets.categories"]:
        if category not in CATEGORIES:
            raise mistake(
                "targets.categories",
                f"unknown category {category!r}. Valid categories are {', '.join(sorted(CATEGORIES))}.",
            )
    known = {name.casefold(): name for name in object_names(scenario)}
    for name in values["targets.names"]:
        if name.casefold() not in known:
            near = [known[match] for match in difflib.get_close_matches(name.casefold(), known, 3)]
            hint = f"did you mean {' or '.join(near)}?" if near else "no name is like it."
            raise mistake(
                "targets.names",
                f"unknown object {name!r}; {hint} To see what occurs, write names = [] and "
                'categories = ["Monster"] for now, and run `python -m camal_rl.doom` with this file.',
            )
    return Definition(
        name=path.stem,
        path=path,
        scenario=scenario,
        frame_skip=values["frame_skip"],
        reward_scale=float(values["reward_scale"]),
        target_names=tuple(values["targets.names"]),
        target_categories=tuple(values["targets.categories"]),
        target_reason=values["targets.reason"],
        random_return=float(values["returns.random"]),
        random_source=values["returns.random_source"],
        reference_return=float(values["returns.reference"]),
        reference_source=values["returns.reference_source"],
    )


def _line_of(text: str, key: str) -> int:
    """The line of a TOML text that sets `section.key`, or that opens its section."""
    current, opened = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            current = re.sub(r"[\s\"']", "", header[1])
            opened = number if current == key.partition(".")[0] else opened
        elif setting := re.match(r"([^=#]+)=", line):
            name = re.sub(r"[\s\"']", "", setting[1])
            full = f"{current}.{name}" if current else name
            if full == key:
                return number
            opened = number if key.startswith(f"{full}.") else opened  # section = { key = ... }
    return opened


def _find_scenario(name: str, toml: Path) -> Path | None:
    for folder in (toml.resolve().parent, Path(vizdoom.scenarios_path)):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


_ACTOR = re.compile(r"^\s*actor\s+\"?([A-Za-z_]\w*)", re.IGNORECASE | re.MULTILINE)


@lru_cache
def object_names(scenario: Path) -> frozenset[str]:
    """Names of all objects that a scenario can hold: the engine's own, and those its WAD defines.

    Raises:
        UserError: the .cfg has lines that ViZDoom does not understand, or its WAD is missing or is none.
    """
    game = vizdoom.DoomGame()
    if not game.load_config(str(scenario)):
        raise UserError(f"{scenario}: mend or remove the lines that ViZDoom's warnings name.")
    texts = [_object_definitions(Path(vizdoom.__file__).with_name("vizdoom.pk3"))]
    if game.get_doom_scenario_path():  # else it plays a map of the game's own WAD
        wad = Path(game.get_doom_scenario_path())
        try:
            texts.append(_object_definitions(wad))
            if not zipfile.is_zipfile(wad):
                _check_map(scenario, wad, game.get_doom_map().upper())
        except (OSError, struct.error, zipfile.BadZipFile) as error:
            problem = getattr(error, "strerror", None) or "not a WAD file"
            raise UserError(
                f"{scenario}: can't read its WAD {wad}: {problem}. "
                "Put the file there, or correct doom_scenario_path, which is relative to the .cfg."
            ) from error
    return frozenset(name for text in texts for name in _ACTOR.findall(text))


def _check_map(scenario: Path, wad: Path, chosen: str) -> None:
    """Refuse a map that is nowhere: the engine would wait for it for ever."""
    standard = re.fullmatch(r"MAP(0[1-9]|[12]\d|3[0-2])", chosen)  # in the game's own WAD
    names = [name for name, _ in _lumps(wad)]
    if not standard and chosen not in names:
        maps = [name for name, following in pairwise(names) if following in ("THINGS", "TEXTMAP")]
        raise UserError(f"{scenario}: doom_map {chosen} is not in {wad.name}, which has {', '.join(maps)}.")


def _object_definitions(archive: Path) -> str:
    """The texts in which a WAD (lumps named DECORATE) or a .pk3 (any file) defines objects."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            return "\n".join(members.read(name).decode("latin-1") for name in members.namelist())
    return "\n".join(lump.decode("latin-1") for name, lump in _lumps(archive) if name == "DECORATE")


def _lumps(wad: Path) -> list[tuple[str, bytes]]:
    """Names and contents of all that a WAD holds."""
    content = wad.read_bytes()
    magic, entries, directory = struct.unpack_from("<4sii", content)
    if magic not in (b"IWAD", b"PWAD"):
        raise struct.error(f"not a WAD: it begins with {magic!r}")
    lumps = []
    for entry in range(entries):
        offset, size, name = struct.unpack_from("<ii8s", content, directory + 16 * entry)
        lumps.append((name.rstrip(b"\0").decode("latin-1").upper(), content[offset : offset + size]))
    return lumps


# ------------------------------------------------------------------------------------------------------------
# Environments


MOST_FAILURES = 10
"""Of engines in a row, after which another is not tried."""


class DoomEnv(gymnasium.Env[Observation, np.int64]):
    """One ViZDoom game.

    Observations are `{"image": uint8 (stack, H, W), "mask": uint8 {0, 1} (h_label, w_label)}`: grey frames,
    the newest last, and the targets' pixels in the newest frame at the label buffer's resolution. After an
    episode's last action ViZDoom has no frame to show, and the observation is the last real one. An action
    is one button or none, in the order of ViZDoom's own wrapper with `max_buttons_pressed=1`; buttons with a
    range (`..._DELTA`) are left alone.

    Args:
        env: an environment's name, the path of a TOML file, or a `Definition`.
        frame_size: height and width of the frames, in pixels, no greater than rendered.
        render_resolution: what the engine draws, one of `RENDER_RESOLUTIONS`.
        frame_stack: how many frames an observation holds.
        render_mode: `rgb_array`, or None. `render()` gives the newest frame as it was drawn, in grey.
        prepare: called with the game before it starts, to change how it looks.
        engine_timeout: seconds after which an engine that does not answer counts as hung.

    An engine that ends, is killed or hangs is replaced by another one that is played to where it was, and
    nothing is to be seen of it but `restarts`. If that one ends at the same action too, so does the episode,
    as truncated.

    Attributes:
        restarts: how often an engine has been replaced.

    Raises:
        UserError: a definition, a size or a machine on which no engine can start.
        EngineError: engines end one after the other.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": vizdoom.DEFAULT_TICRATE}  # noqa: RUF012

    def __init__(
        self,
        env: str | Path | Definition = "Basic",
        frame_size: Sequence[int] = FRAME_SIZE,
        render_resolution: str = "320x240",
        frame_stack: int = FRAME_STACK,
        render_mode: str | None = None,
        prepare: Callable[[vizdoom.DoomGame], None] | None = None,
        engine_timeout: float = TIME_LIMIT,
    ) -> None:
        self.definition = env if isinstance(env, Definition) else load_definition(env)
        self.render_mode = render_mode
        if render_resolution not in RENDER_RESOLUTIONS:
            raise UserError(
                f"no render resolution {render_resolution!r}; choose one of {', '.join(RENDER_RESOLUTIONS)}."
            )
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"no render mode {render_mode!r}; choose rgb_array or None.")
        label_size = RENDER_RESOLUTIONS[render_resolution]
        try:
            height, width, frame_stack = map(operator.index, (*frame_size, frame_stack))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"frame size {frame_size!r}, frame stack {frame_stack!r}: "
                "a size is two whole numbers (height width), a stack is one."
            ) from error
        if not (1 <= height <= label_size[0] and 1 <= width <= label_size[1]):
            raise UserError(
                f"frame size {height} {width} (height width) does not fit in the "
                f"{label_size[0]} {label_size[1]} that are rendered: "
                "choose a smaller frame size or a greater render resolution."
            )
        if frame_stack < 1:
            raise UserError(f"frame stack {frame_stack} is not at least 1.")
        self.frame_size = (height, width)
        self.label_size = label_size
        boxes: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (frame_stack, height, width), np.uint8),
            "mask": spaces.Box(0, 1, label_size, np.uint8),
        }
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(boxes))
        self._shrink = shrinking(label_size, self.frame_size)
        self._start_engine = partial(
            start_engine, self.definition.scenario, *label_size, prepare, engine_timeout
        )
        self.game = self._start_engine()
        self.restarts = 0
        self._failures = 0  # of engines since the last action that went well
        self.buttons = [button.name for button in self.game.get_available_buttons()]
        try:
            self.actions = _single_buttons(self.game.get_available_buttons())
        except UserError:
            self.close()
            raise
        self.action_names = ["nothing", *(self.buttons[action.index(1.0)] for action in self.actions[1:])]
        self.action_space = spaces.Discrete(len(self.actions))
        self.write_to(zero_pixels((height, width, frame_stack)), zero_pixels(label_size))
        self.mask_box: Box = (slice(0, 0), slice(0, 0))  # outside of it the mask is empty
        self._screen: np.ndarray | None = None
        self._episode_seed: int | None = None  # None where no episode is running
        self._episode_actions: list[int] = []

    # Gymnasium's interface

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Its own seed is drawn from `np_random`, which `seed` sets."""
        super().reset(seed=seed)
        self.begin_episode()
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold one button, or none, for `frame_skip` tics."""
        reward, terminated, truncated = self.advance(int(action))
        return self._observation(), reward, terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        """The newest frame as it was drawn, uint8 (h_label, w_label, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        if self._screen is None:
            raise RuntimeError("nothing has been drawn yet: call reset() before render()")
        return np.repeat(self._screen[..., None], 3, axis=2)

    def close(self) -> None:
        """End the engine's process."""
        self.game.close()

    # What a vector environment calls

    def write_to(self, memory: np.ndarray, mask: np.ndarray) -> None:
        """Write observations where they are read: uint8 (H, W, stack) and (h_label, w_label)."""
        self._stack = Stack(memory)
        self.image, self.mask = self._stack.images, mask

    def begin_episode(self, seed: int | None = None) -> None:
        """Start the episode of this engine seed, else of one drawn from `np_random`.

        The stack is filled with its first frame. What is drawn is below `EVALUATION_SEEDS`, so an episode
        that is evaluated, with a seed from there on, has not been trained on.
        """
        drawn = int(self.np_random.integers(EVALUATION_SEEDS)) if seed is None else seed
        self._persist(lambda: self._start(drawn))

    def advance(self, action: int) -> tuple[float, bool, bool]:
        """Act once: the reward, and whether the episode terminated or was truncated, never both."""
        if self._episode_seed is None:
            raise RuntimeError("no episode is running: call reset() before step()")
        if not 0 <= action < len(self.actions):
            raise ValueError(f"no action {action}: valid actions are 0 to {len(self.actions) - 1}")
        try:
            reward, terminated, truncated = self._act(action)
        except ENGINE_ERRORS as error:
            reward, terminated, truncated = self._act_anew(action, error)
        self._episode_actions.append(action)
        if terminated or truncated:
            self._episode_seed = None
        return reward, terminated, truncated

    def _act(self, action: int) -> tuple[float, bool, bool]:
        reward = float(self.game.make_action(self.actions[action], self.definition.frame_skip))
        self._failures = 0
        if not self.game.is_episode_finished():
            self._push_frame()
            return reward, False, False
        # A player who dies in the very tic of the time limit has died.
        truncated = bool(self.game.is_episode_timeout_reached() and not self.game.is_player_dead())
        return reward, not truncated, truncated

    def _act_anew(self, action: int, error: Exception) -> tuple[float, bool, bool]:
        """The same in another engine. It is the action's fault if that one ends as well: no third tries."""
        seed, actions = self._episode_seed, self._episode_actions
        assert seed is not None
        self._replace_engine(error)
        self._persist(lambda: self._replay(seed, actions))
        try:
            return self._act(action)
        except ENGINE_ERRORS as another:
            self._replace_engine(another)
            return 0.0, False, True

    def _persist(self, play: Callable[[], None]) -> None:
        """Play something from an episode's first frame on, anew where the engine ends in it."""
        while True:
            try:
                return play()
            except ENGINE_ERRORS as error:
                self._replace_engine(error)

    def _replace_engine(self, error: Exception) -> None:
        self.game.close()
        while True:
            self._failures += 1
            if self._failures > MOST_FAILURES:
                raise EngineError(
                    f"ViZDoom engines of {self.definition.name} ended {self._failures} times in a row, the "
                    f"last with: {' '.join(str(error).split())} Check free memory (`free -m`), shared memory "
                    "(`df /dev/shm`) and who may have ended them (`dmesg`)."
                ) from error
            try:
                self.game = self._start_engine()
            except UserError as another:
                error = another
            else:
                self.restarts += 1
                return

    def state_dict(self) -> dict[str, Any]:
        """The exact state, of plain values: the episode's seed, the actions since, and the seeds to come.

        Raises:
            RuntimeError: no episode is running.
        """
        if self._episode_seed is None:
            raise RuntimeError("no episode is running: call reset() before state_dict()")
        return {
            "episode_seed": self._episode_seed,
            "episode_actions": list(self._episode_actions),
            "np_random": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring back the state of `state_dict`, made by any environment of the same definition, by replay.

        Raises:
            UserError: the replayed episode ended early, so it can't be the same engine or scenario.
        """
        self.np_random.bit_generator.state = state["np_random"]
        self._persist(lambda: self._replay(state["episode_seed"], state["episode_actions"]))

    def _replay(self, seed: int, actions: Sequence[int]) -> None:
        played = list(actions)
        self._start(seed)
        for index, action in enumerate(played):
            visible = len(played) - index <= len(self.image)  # older frames are no longer in the stack
            self.game.set_action(self.actions[action])
            self.game.advance_action(self.definition.frame_skip, visible)
            if self.game.is_episode_finished():
                raise UserError(
                    f"{self.definition.name}: the replay of an episode ended after {index + 1} of its "
                    f"{len(played)} actions: ViZDoom or the scenario is not the one that played it. "
                    "Bring that back, or start a new run."
                )
            if visible:
                self._push_frame()
        self._episode_actions = played

    def _start(self, seed: int) -> None:
        self._episode_seed = seed
        self._episode_actions = []
        self.game.set_seed(seed)
        self.game.new_episode()
        if self.game.is_episode_finished():
            raise UserError(
                f"{self.definition.name}: the episode of seed {seed} was over before it began. "
                f"Check episode_start_time and episode_timeout in {self.definition.scenario}."
            )
        self._push_frame()
        self.image[:-1] = self.image[-1]

    def _push_frame(self) -> None:
        state = self.game.get_state()
        self._screen = state.screen_buffer
        self._stack.push(self._shrink(self._screen))
        self.mask_box = target_mask(state, self.definition, self.mask)

    def _observation(self) -> Observation:
        return {"image": self.image.copy(), "mask": self.mask.copy()}


def target_mask(state: vizdoom.GameState, definition: Definition, out: np.ndarray) -> Box:
    """Write the pixels of the targets as ones, all others as zeros, into `out`, uint8 (h_label, w_label).

    Returns:
        A box outside of which the mask is empty.
    """
    assert state.labels is not None
    assert state.labels_buffer is not None
    out.fill(0)
    pixels = out.view(np.bool_)
    top, left = out.shape
    bottom = right = 0
    for label in state.labels:
        # Walls and floors have 0 and 1, also where a crowd of labels has used up the values.
        if label.value > 1 and definition.is_target(label.object_name, label.object_category):
            # An object is drawn within its label's box; which pixels of it can be seen, the buffer knows.
            box = slice(label.y, label.y + label.height), slice(label.x, label.x + label.width)
            part = pixels[box]
            np.logical_or(part, state.labels_buffer[box] == label.value, out=part)
            top, bottom = min(top, box[0].start), max(bottom, box[0].stop)
            left, right = min(left, box[1].start), max(right, box[1].stop)
    return slice(top, max(top, bottom)), slice(left, max(left, right))


def replay(
    definition: Definition, episode_seed: int, actions: Sequence[int], render_resolution: str = "320x240"
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Play an episode again, in colour and tic by tic: the same game as `DoomEnv` played it.

    Yields, for every tic from the first frame to the last action's last but one, or the episode's end: the
    agent step whose action is being held, the screen, uint8 (H, W, 3) RGB, and the target mask, uint8 {0, 1}
    (H, W).

    Raises:
        UserError: no engine can start on this machine.
    """
    height, width = RENDER_RESOLUTIONS[render_resolution]
    game = start_engine(
        definition.scenario,
        height,
        width,
        lambda game: game.set_screen_format(vizdoom.ScreenFormat.RGB24),
    )
    try:
        buttons = _single_buttons(game.get_available_buttons())
        game.set_seed(episode_seed)
        game.new_episode()
        for tic in range(len(actions) * definition.frame_skip):
            if tic:
                game.make_action(buttons[actions[(tic - 1) // definition.frame_skip]], 1)
            if game.is_episode_finished():
                return
            state = game.get_state()
            mask = np.zeros((height, width), np.uint8)
            target_mask(state, definition, mask)
            yield tic // definition.frame_skip, state.screen_buffer.copy(), mask
    finally:
        game.close()


def _single_buttons(buttons: Sequence[vizdoom.Button]) -> list[list[float]]:
    """The actions: nothing, then each binary button alone, the last first, as in ViZDoom's wrapper."""
    binary = [index for index, button in enumerate(buttons) if not vizdoom.is_delta_button(button)]
    if not binary:
        raise UserError(
            "the scenario has no binary button to press: add one to available_buttons in its .cfg."
        )
    return [[float(index == pressed) for index in range(len(buttons))] for pressed in (-1, *reversed(binary))]


class DoomVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """Several ViZDoom games stepped at once, one thread each: the engines are processes of their own.

    A finished environment starts its next episode in the same step (`AutoresetMode.SAME_STEP`): the
    observation is the new episode's first, and `infos["final_obs"]` holds the last real one of the old.

    Args:
        env, frame_size, render_resolution, frame_stack, engine_timeout: as for `DoomEnv`.
        num_envs: how many.
        mask_transform: applied to every mask, and a box outside of which it is empty, by the thread that
            took it; results are in `infos["mask_transform"]`, (N, ...).
        allocate: makes the array of the images, for example in memory that a GPU reads directly.

    Attributes:
        images: the newest observations' images, uint8 (N, stack, H, W), overwritten by the next step.
        masks: their masks, uint8 (N, h_label, w_label).
        transformed: what `mask_transform` made of them, or None.

    Raises:
        UserError: as `DoomEnv`; the engines already started are ended first.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        env: str | Path | Definition = "Basic",
        num_envs: int = 1,
        frame_size: Sequence[int] = FRAME_SIZE,
        render_resolution: str = "320x240",
        frame_stack: int = FRAME_STACK,
        render_mode: str | None = None,
        mask_transform: Callable[[np.ndarray, Box], np.ndarray] | None = None,
        allocate: Callable[[tuple[int, ...]], np.ndarray] = zero_pixels,
        engine_timeout: float = TIME_LIMIT,
    ) -> None:
        # First, because Gymnasium closes what was not even started.
        self.envs: list[DoomEnv] = []
        self._threads = ThreadPoolExecutor(max(num_envs, 1), thread_name_prefix="doom")
        if num_envs < 1:
            raise UserError(f"{num_envs} environments: at least 1 is needed.")
        self.definition = env if isinstance(env, Definition) else load_definition(env)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.mask_transform = mask_transform
        check_shared_memory(num_envs)
        try:
            for _ in range(num_envs):
                looks = (frame_size, render_resolution, frame_stack, render_mode)
                self.envs.append(DoomEnv(self.definition, *looks, engine_timeout=engine_timeout))
            stack, *size = self.envs[0].image.shape
            memory = allocate((num_envs, *size, stack))
            self.images = np.moveaxis(memory, -1, 1)
            self.masks = zero_pixels((num_envs, *self.envs[0].mask.shape))
            self.transformed: np.ndarray | None = None
            if mask_transform is not None:
                example = mask_transform(self.masks[0], self.envs[0].mask_box)
                self.transformed = np.zeros((num_envs, *example.shape), example.dtype)
        except BaseException:
            self.close_extras()
            raise
        for index, one in enumerate(self.envs):
            one.write_to(memory[index], self.masks[index])
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rewards = np.zeros(num_envs)
        self._terminations = np.zeros(num_envs, np.bool_)
        self._truncations = np.zeros(num_envs, np.bool_)
        self._final: list[Observation | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode everywhere, or where `options["reset_mask"]`, bool (N,), is true.

        An int seeds environment i with `seed + i`, a sequence gives each its own, None goes on with the old.
        """
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
        chosen = (options or {}).get("reset_mask", [True] * self.num_envs)
        if not len(seeds) == len(chosen) == self.num_envs:
            raise ValueError(
                f"{len(seeds)} seeds and a mask of {len(chosen)} for {self.num_envs} environments"
            )
        self._each(self._reset_one, list(zip(seeds, chosen, strict=True)))
        return self._observations(), self._infos()

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act in every environment; `actions` is int (N,). Rewards are float64 (N,), unclipped."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions of shape {actions.shape} for {self.num_envs} environments")
        self._each(self._step_one, actions.tolist())
        infos = self._infos()
        for index in np.flatnonzero(self._terminations | self._truncations).tolist():
            infos = self._add_info(infos, {"final_obs": self._final[index], "final_info": {}}, index)
        return (
            self._observations(),
            self._rewards.copy(),
            self._terminations.copy(),
            self._truncations.copy(),
            infos,
        )

    def step_some(
        self, some: slice, actions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Act in some environments only, one after the other, in the calling thread.

        Several threads may do so at once, each in environments of its own: then none waits for all others, as
        in `step`. The new observations are in `images`, `masks` and `transformed`.

        Returns:
            Rewards, terminations and truncations of those environments, views that their next step
            overwrites, and the last real images of the episodes that ended, by their place among them.
        """
        for index, action in zip(range(self.num_envs)[some], actions, strict=True):
            self._step_one(index, action)
        last_images = {place: one["image"] for place, one in enumerate(self._final[some]) if one is not None}
        return self._rewards[some], self._terminations[some], self._truncations[some], last_images

    @property
    def restarts(self) -> int:
        """How often an engine has been replaced."""
        return sum(env.restarts for env in self.envs)

    def render(self) -> tuple[Any, ...]:
        """Each environment's newest frame, as `DoomEnv.render`."""
        return tuple(env.render() for env in self.envs)

    def state_dict(self) -> list[dict[str, Any]]:
        """Each environment's exact state."""
        return [env.state_dict() for env in self.envs]

    def load_state_dict(self, states: list[dict[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Replay to the states of `state_dict`, and return what `reset` returns: observations and infos."""
        self._each(self._load_one, states)
        return self._observations(), self._infos()

    def close_extras(self, **kwargs: Any) -> None:
        """End all engines and threads; safe to call at any time."""
        self._threads.shutdown(wait=True, cancel_futures=True)  # none may be inside a game that is closed
        for env in self.envs:
            env.close()

    def _each(self, function: Callable[[int, Any], None], arguments: Sequence[Any]) -> None:
        running = [self._threads.submit(function, *pair) for pair in enumerate(arguments)]
        wait(running)  # for all of them, also where one failed: no thread may go on behind the caller's back
        for one in running:
            one.result()

    def _reset_one(self, index: int, seed_and_chosen: tuple[int | None, bool]) -> None:
        seed, chosen = seed_and_chosen
        if chosen:
            self.envs[index].reset(seed=seed)
            self._transform(index)

    def _step_one(self, index: int, action: int) -> None:
        env = self.envs[index]
        self._rewards[index], self._terminations[index], self._truncations[index] = env.advance(action)
        self._final[index] = None
        if self._terminations[index] or self._truncations[index]:
            self._final[index] = {"image": env.image.copy(), "mask": env.mask.copy()}
            env.begin_episode()
        self._transform(index)

    def _load_one(self, index: int, state: dict[str, Any]) -> None:
        self.envs[index].load_state_dict(state)
        self._transform(index)

    def _transform(self, index: int) -> None:
        if self.mask_transform is not None and self.transformed is not None:
            self.transformed[index] = self.mask_transform(self.masks[index], self.envs[index].mask_box)

    def _observations(self) -> dict[str, np.ndarray]:
        return {"image": self.images.copy(), "mask": self.masks.copy()}

    def _infos(self) -> dict[str, Any]:
        return {} if self.transformed is None else {"mask_transform": self.transformed.copy()}


# ------------------------------------------------------------------------------------------------------------
# Command line: look at an environment before training on it


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
    args = tyro.cli(Args, prog="python -m camal_rl.doom")
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
    print("`python -m camal_rl.doom NAME` shows one; a TOML file of your own works the same way.")


if __name__ == "__main__":
    try:
        with engine_errors_told():
            main()
    except UserError as mistake:
        sys.exit(print_mistake(mistake))
