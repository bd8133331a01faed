"""An environment's TOML file -> its definition, checked against the files of ViZDoom."""

from __future__ import annotations

import difflib
import re
import struct
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import vizdoom

from camal_rl import ENVS_DIR
from camal_rl.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
                'categories = ["Monster"] for now, and run `python -m camal_rl.environments` with this file.',
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
