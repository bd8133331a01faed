"""TOML files: what fits a model is read, and a mistake is named with its line, its key and what is valid."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import field_validator

from camal_rl.errors import UserError
from camal_rl.run.toml import Table, read_toml


class Farm(Table):
    animals: list[Literal["cow", "hen"]]
    milk: float

    @field_validator("milk")
    @classmethod
    def check(cls, milk: float) -> float:
        if milk < 0:
            raise ValueError("no cow takes milk.")
        return milk


class Country(Table):
    year: int | list[int] = 1
    farm: Farm


def read(folder: Path, text: str) -> Country:
    path = folder / "country.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path, Country)


def test_a_file_that_fits_is_read(tmp_path: Path) -> None:
    country = read(tmp_path, 'year = [1, 2]\n[farm]\nanimals = ["cow"]\nmilk = 3  # litres\n')
    assert country == Country(year=[1, 2], farm=Farm(animals=["cow"], milk=3.0))
    assert type(country.farm.milk) is float


def test_a_byte_order_mark_in_front_is_skipped(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffyear = 2\n[farm]\nanimals = []\nmilk = 3").year == 2
    with pytest.raises(UserError, match="line 1: year: input should be a valid integer"):
        read(tmp_path, "\ufeffyear = ''\n[farm]\nanimals = []\nmilk = 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the key farm is missing. Valid keys are year, farm.animals, farm.milk."),
        ("[farm]\nmilk = 1", ": the key farm.animals is missing. Valid keys are "),
        ("[farm]\nmilk = 1\nanimal = []", ", line 3: farm.animal: unknown key. Valid keys are year, farm.an"),
        (
            "[farm]\nmilk = nan\nanimals = []",
            ", line 2: farm.milk: input should be a finite number, not nan.",
        ),
        (
            "[farm]\nmilk = true\nanimals = []",
            ", line 2: farm.milk: input should be a valid number, not True.",
        ),
        ("[farm]\nmilk = -1\nanimals = []", ", line 2: farm.milk: no cow takes milk."),
        (
            "farm = {milk = 1, animals = ['cat']}",
            ", line 1: farm.animals: input should be 'cow' or 'hen', not ",
        ),
        (
            "[farm]\nmilk = 1\nanimals = [\n'cat']",
            ", line 3: farm.animals: input should be 'cow' or 'hen', not ",
        ),
        ("farm.milk = 1\nfarm.'animals' = 2", ", line 2: farm.animals: input should be a valid list, not 2."),
        (
            "\n[ 'farm' ]\nmilk = ''\nanimals = []",
            ", line 3: farm.milk: input should be a valid number, not ''.",
        ),
        ("\nfarm = 3", ", line 2: farm: 3 is not a section: write [farm] above its keys."),
        ("[[farm]]", ", line 1: farm: [{}] is not a section: write [farm] above its keys."),
        (
            "year = '1'\n[farm]\nmilk = 1\nanimals = []",
            ", line 1: year: input should be a valid integer, not ",
        ),
        ("farm = ", ": not valid TOML: Invalid value "),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_valid(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'country.toml'}{message}")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*none\.toml: No such file or directory\."):
        read_toml(tmp_path / "none.toml", Country)
    with pytest.raises(UserError, match="Is a directory"):
        read_toml(tmp_path, Country)
    (tmp_path / "latin.toml").write_bytes(b'scenario = "\xff"')
    with pytest.raises(UserError, match=r"latin\.toml: 'utf-8' codec"):
        read_toml(tmp_path / "latin.toml", Country)
