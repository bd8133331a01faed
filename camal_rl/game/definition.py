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
from camal_rl.run.files import make_folder, write_together
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
        copies = {folder / place.relative_to(shared): file.read_bytes() for place, file in own.items()}
        for path in copies:
            make_folder(path.parent)
        write_together(copies)


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
    categories: list[_Category]
    names: list[str]
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
    folders = (path.resolve().parent, Path(vizdoom.scenarios_path))
    scenario = next(
        (folder / file.scenario for folder in folders if (folder / file.scenario).is_file()), None
    )
    if scenario is None:
        stock = ", ".join(sorted(file.name for file in folders[1].glob("*.cfg")))
        problem = f"no file {file.scenario!r} beside the TOML or in ViZDoom. Stock scenarios: {stock}."
        raise mistake_in(path, "scenario", problem)
    known = object_names(scenario.resolve())
    folded = {name.casefold() for name in known}
    for name in file.targets.names:
        if name.casefold() not in folded:
            near = _similar(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "no name is like it."
            raise mistake_in(
                path,
                "targets.names",
                f"unknown object {name!r}; {hint} To see what occurs, write names = [] and "
                'categories = ["Monster"] for now, and run `python -m camal_rl.environments` with this file.',
            )
    return Definition(
        name=path.stem,
        path=path,
        scenario=scenario.resolve(),
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


def _similar(word: str, names: Iterable[str], most: int) -> list[str]:
    """The names that look most like a word, without case."""
    folded = {name.casefold(): name for name in names}
    return [folded[match] for match in difflib.get_close_matches(word.casefold(), folded, most)]


_ACTOR = re.compile(rb"^\s*actor\s+\"?([A-Za-z_]\w*)", re.IGNORECASE | re.MULTILINE)


@lru_cache
def object_names(scenario: Path) -> frozenset[str]:
    """Names of all objects that a scenario can hold: the engine's own, and those its WAD defines.

    Raises:
        UserError: the .cfg has lines that ViZDoom does not understand, its WAD is missing or is none, or its
            map is nowhere, for which the engine would wait for ever.
    """
    game = vizdoom.DoomGame()
    if not game.load_config(str(scenario)):
        raise UserError(f"{scenario}: mend or remove the lines that ViZDoom's warnings name.")
    texts = [content for _, content in _lumps(Path(vizdoom.__file__).with_name("vizdoom.pk3"))]
    if game.get_doom_scenario_path():  # else it plays a map of the game's own WAD
        wad = Path(game.get_doom_scenario_path())
        try:
            lumps = _lumps(wad)
        except (OSError, struct.error, zipfile.BadZipFile) as error:
            problem = getattr(error, "strerror", None) or "not a WAD file"
            raise UserError(
                f"{scenario}: can't read its WAD {wad}: {problem}. "
                "Put the file there, or correct doom_scenario_path, which is relative to the .cfg."
            ) from error
        names = [name for name, _ in lumps]
        chosen = game.get_doom_map().upper()
        zipped = zipfile.is_zipfile(wad)
        if not (zipped or chosen in names or re.fullmatch(r"MAP(0[1-9]|[12]\d|3[0-2])", chosen)):
            maps = ", ".join(
                name for name, following in pairwise(names) if following in ("THINGS", "TEXTMAP")
            )
            raise UserError(f"{scenario}: doom_map {chosen} is not in {wad.name}, which has {maps}.")
        texts += [content for name, content in lumps if zipped or name == "DECORATE"]
    return frozenset(name.decode() for text in texts for name in _ACTOR.findall(text))


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
