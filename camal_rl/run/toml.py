"""A TOML file -> a pydantic model, or one line that names the file, the line, the key and what is valid."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from camal_rl.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Table(BaseModel):
    """The keys of a TOML file or of a section in it: no others, no conversions, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


UTF_8 = "utf-8-sig"
"""UTF-8, also where an editor has put a byte order mark in front."""
Model = TypeVar("Model", bound=Table)


def read_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a model.

    Raises:
        UserError: the file can't be read, or does not fit the model.
    """
    try:
        table = tomllib.loads(path.read_text(encoding=UTF_8))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"can't read {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return model.model_validate(table)
    except ValidationError as error:
        # An unknown key first, for it may be a missing one, misspelled.
        first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
        key = _key(table, first["loc"])
        if first["type"] == "missing":
            problem = f"{path}: the key {key} is missing. Valid keys are {', '.join(_keys(model))}."
            raise UserError(problem) from error
        if first["type"] == "extra_forbidden":
            problem = f"unknown key. Valid keys are {', '.join(_keys(model))}."
        elif first["type"] == "model_type":
            problem = f"{first['input']!r} is not a section: write [{key}] above its keys."
        elif first["type"] == "value_error":
            problem = str(first["ctx"]["error"])
        else:
            problem = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}."
        raise mistake_in(path, key, problem) from error


def mistake_in(path: Path, key: str, problem: str) -> UserError:
    """The error that names a file, the line of a key in it, the key and what is wrong with its value."""
    return UserError(f"{path}, line {_line_of(path.read_text(encoding=UTF_8), key)}: {key}: {problem}")


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys of a model, those of its sections as `section.key`."""
    keys = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += [f"{name}.{key}" for key in _keys(section)]
        else:
            keys.append(name)
    return keys


def _key(table: Any, location: tuple[str | int, ...]) -> str:
    """The key at pydantic's location, which goes on to places in lists and members of unions."""
    parts = []
    for part in location:
        if not isinstance(table, dict):
            break
        parts.append(str(part))
        table = table.get(part)
    return ".".join(parts)


def _line_of(text: str, key: str) -> int:
    """The line of a TOML text that sets `section.key`, or else opens its section."""
    section, opened = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            name = re.sub(r"[\s\"']", "", header[1])
            section = f"{name}."
        elif setting := re.match(r"([^=#]+)=", line):
            name = section + re.sub(r"[\s\"']", "", setting[1])
        else:
            continue
        if name == key:
            return number
        opened = number if key.startswith(f"{name}.") else opened
    return opened
