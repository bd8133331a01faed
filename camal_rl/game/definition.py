"""An environment's TOML file -> its definition, checked against the files of ViZDoom."""

from __future__ import annotations

import difflib
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import vizdoom
from pydantic import Field, ValidationInfo, field_validator

from camal_rl import ENVS_DIR
from camal_rl.errors import UserError
from camal_rl.game.engine import load_config
from camal_rl.run.files import write_together
from camal_rl.run.toml import Table, mistake_in, read_toml

RENDER_RESOLUTIONS = {
    "160x120": (120, 160),
    "200x150": (150, 200),
    "256x192": (192, 256),
    "320x240": (240, 320),
}
"""ViZDoom's 4:3 resolutions up to the default of its scenarios: name -> (height, width) in pixels."""


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
    """Mean raw return of the uniform random policy: 0 on the normalized scale."""
    random_source: str
    """How `random_return` was measured."""
    reference_return: float
    """Raw return of a competent agent: 1 on the normalized scale."""
    reference_source: str
    """Where `reference_return` comes from."""

    @cached_property
    def _folded_names(self) -> frozenset[str]:
        return frozenset(name.casefold() for name in self.target_names)

    def buttons(self) -> list[vizdoom.Button]:
        """Return the scenario's buttons, without starting it."""
        game = vizdoom.DoomGame()
        load_config(game, self.scenario)
        return list(game.get_available_buttons())

    def is_target(self, name: str, category: str) -> bool:
        """Return True for the label of a target; names compare as the engine does, without case."""
        return category in self.target_categories or name.casefold() in self._folded_names

    def described(self) -> dict[str, Any]:
        """Return the definition in JSON's types, by what it says and not by where its files lie."""
        own = asdict(self) | {"path": self.path.name, "scenario": self.scenario.name}
        # Another ViZDoom may not replay the same.
        plain: dict[str, Any] = json.loads(json.dumps(own | {"vizdoom": vizdoom.__version__}))
        return plain

    def copy_to(self, folder: Path) -> None:
        """Copy the TOML, .cfg and WAD of an environment of one's own, but no file of ViZDoom, as they lie.

        Raises:
            UserError: a file can't be written.
        """
        if self.path.parent == ENVS_DIR:
            return
        game = vizdoom.DoomGame()
        game.load_config(str(self.scenario))
        wad = Path(game.get_doom_scenario_path())
        files = {self.path.resolve().with_name(self.path.name): self.path, self.scenario: self.scenario}
        if wad.is_file():
            files[wad.resolve()] = wad
        stock = Path(vizdoom.scenarios_path).resolve()
        own = {place: file for place, file in files.items() if not place.is_relative_to(stock)}
        shared = Path(os.path.commonpath([place.parent for place in own]))
        write_together({folder / place.relative_to(shared): file.read_bytes() for place, file in own.items()})


def copied_toml(folder: Path) -> Path | None:
    """The TOML file that `Definition.copy_to` has left in a folder."""
    return next(folder.rglob("*.toml"), None)


# The models of the TOML file. A label names its object and a category: nineteen of these were seen by placing
# every object of ViZDoom 1.3.2 in view; the others are among the engine's strings.
# fmt: off
_Category = Literal[
    "Ammo", "Armor", "Artifact", "Breakable", "Bridge", "Dead", "Decoration", "DynamicLight", "Explosive",
    "Gibs", "Gore", "Hazard", "Health", "Internal", "Item", "Key", "LightSource", "Monster", "Player",
    "Powerup", "ScriptThing", "Self", "SFX", "Teleport", "Token", "Unknown", "Vegetation", "Weapon",
]
# fmt: on
_Return = Annotated[float, Field(gt=-1e9, lt=1e9)]


class _Targets(Table):
    categories: list[_Category] = Field(default=[])
    names: list[str] = Field(default=[], validate_default=True)
    reason: str

    @field_validator("names")
    @classmethod
    def _some_target(cls, names: list[str], fields: ValidationInfo) -> list[str]:
        if not names and fields.data.get("categories") == []:
            raise ValueError("name at least one object or category: without a target there is no mask.")
        return names


class _Returns(Table):
    random: _Return
    random_source: str
    reference: _Return
    reference_source: str

    @field_validator("reference")
    @classmethod
    def _above_random(cls, reference: float, fields: ValidationInfo) -> float:
        if reference <= fields.data.get("random", -1e9):
            raise ValueError("has to be greater than returns.random, or scores can't be normalized.")
        return reference


class _File(Table):
    scenario: str
    frame_skip: Annotated[int, Field(ge=1, le=1000)]
    reward_scale: Annotated[float, Field(gt=0, lt=1e9)]
    targets: _Targets
    returns: _Returns


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
            near = _similar(str(env), available(), 1)
            raise UserError(
                f"no environment named {str(env)!r}{'; did you mean ' + near[0] + '?' if near else '.'} "
                f"Choose one of {', '.join(available())}, or give the path of a .toml file of your own."
            )
    file = read_toml(path, _File)
    try:
        scenario = _find(path.parent, file.scenario)
    except UserError as error:
        raise mistake_in(path, "scenario", str(error)) from error
    known = object_names(scenario)
    folded = {name.casefold() for name in known}
    for name in file.targets.names:
        if name.casefold() not in folded:
            near = _similar(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "no name is like it."
            raise mistake_in(
                path,
                "targets.names",
                f"unknown object {name!r}; {hint} `python -m camal_rl.environments {scenario}` names all.",
            )
    return Definition(
        name=path.stem,
        path=path,
        scenario=scenario,
        frame_skip=file.frame_skip,
        reward_scale=file.reward_scale,
        target_names=tuple(file.targets.names),
        target_categories=tuple(file.targets.categories),
        target_reason=file.targets.reason,
        random_return=file.returns.random,
        random_source=file.returns.random_source,
        reference_return=file.returns.reference,
        reference_source=file.returns.reference_source,
    )


def bare_definition(scenario: Path) -> Definition:
    """Return a definition without targets for a .cfg that no TOML file describes yet.

    Raises:
        UserError: no such .cfg, or a mistake in it.
    """
    found = _find(Path(), str(scenario))
    object_names(found)
    return Definition(scenario.stem, scenario, found, 4, 1.0, (), (), "", 0.0, "", 0.0, "")


def _find(folder: Path, scenario: str) -> Path:
    """The .cfg of this name in a folder, or else in ViZDoom's own."""
    stock = Path(vizdoom.scenarios_path)
    for path in (folder / scenario, stock / scenario):
        if path.is_file():
            return path.resolve()
    names = ", ".join(sorted(file.name for file in stock.glob("*.cfg")))
    raise UserError(f"no file {str(folder / scenario)!r}, nor in ViZDoom, which has {names}.")


def _similar(word: str, names: Iterable[str], most: int) -> list[str]:
    """The names that look most like a word, without case."""
    folded = {name.casefold(): name for name in names}
    return [folded[match] for match in difflib.get_close_matches(word.casefold(), folded, most)]


_ACTOR = re.compile(rb"^\s*actor\s+\"?([A-Za-z_]\w*)", re.IGNORECASE | re.MULTILINE)


@lru_cache
def object_names(scenario: Path) -> frozenset[str]:
    """Names of all objects that a scenario can hold: the engine's own, and those its WAD defines.

    Raises:
        UserError: the .cfg has lines that ViZDoom does not understand, a WAD is missing or is none, its map
            is nowhere, or its game is for several players: the engine would wait for ever, or crash.
    """
    game = vizdoom.DoomGame()
    if not load_config(game, scenario):
        raise UserError(f"{scenario}: mend or remove the lines that ViZDoom's warnings name.")
    if found := re.search(r"[-+](host\b|join\b|viz_\w+)", game.get_game_args(), re.IGNORECASE):
        raise UserError(f"{scenario}: remove {found[0]} from game_args: the game can't be played with it.")
    own = Path(vizdoom.__file__).parent
    texts = [content for _, content in _lumps(own / "vizdoom.pk3")]
    paths = (game.get_doom_scenario_path(), game.get_doom_game_path() or own / "freedoom2.wad")
    wads = [Path(path) for path in paths if path]
    chosen = game.get_doom_map().upper()
    maps: dict[str, bool] = {}
    for wad in wads:
        try:
            lumps = _lumps(wad)
        except (OSError, struct.error, zipfile.BadZipFile) as error:
            problem = getattr(error, "strerror", None) or "not a WAD file"
            raise UserError(
                f"{scenario}: can't read its WAD {wad}: {problem}. "
                "Put the file there, or correct its path, which is relative to the .cfg."
            ) from error
        zipped = zipfile.is_zipfile(wad)
        texts += [content for name, content in lumps if zipped or name == "DECORATE"]
        maps = ({chosen: True} if zipped else _maps(lumps)) | maps
        if chosen in maps:
            break
    else:
        names = " or ".join(wad.name for wad in wads)
        raise UserError(f"{scenario}: doom_map {chosen} is not in {names}, which has {', '.join(maps)}.")
    if not maps[chosen]:
        raise UserError(f"{scenario}: doom_map {chosen} is for several players: none starts as player 1.")
    return frozenset(name.decode() for text in texts for name in _ACTOR.findall(text))


def _maps(lumps: list[tuple[str, bytes]]) -> dict[str, bool]:
    """The maps of a WAD by name, True for those where player 1 can start (an object of type 1)."""
    maps = {}
    for place, ((name, _), (following, things)) in enumerate(pairwise(lumps)):
        if following == "TEXTMAP":
            maps[name] = re.search(rb"\btype\s*=\s*1\s*;", things) is not None
        elif following == "THINGS":
            hexen = "BEHAVIOR" in (name for name, _ in lumps[place : place + 12])
            first, size = (10, 20) if hexen else (6, 10)
            types = (things[at : at + 2] for at in range(first, len(things), size))
            maps[name] = b"\x01\0" in types
    return maps


def _lumps(archive: Path) -> list[tuple[str, bytes]]:
    """Names and contents of all that a WAD, or a .pk3, which is a ZIP file, holds."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            return [(name, members.read(name)) for name in members.namelist()]
    content = archive.read_bytes()
    magic, entries, directory = struct.unpack_from("<4sii", content)
    if magic not in (b"IWAD", b"PWAD"):
        raise struct.error(f"not a WAD: it begins with {magic!r}")
    lumps = []
    for entry in range(entries):
        offset, size, name = struct.unpack_from("<ii8s", content, directory + 16 * entry)
        lumps.append((name.rstrip(b"\0").decode("latin-1").upper(), content[offset : offset + size]))
    return lumps
