"""Definitions: those of the package, a user's own files, and mistakes in them and in what they name."""

import dataclasses
import pickle
import shutil
import struct
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import vizdoom

from camal_rl.errors import UserError
from camal_rl.game.definition import available, bare_definition, load_definition, object_names

SCENARIOS = Path(vizdoom.scenarios_path)

VALID = """\
scenario = "basic.cfg"
frame_skip = 4
reward_scale = 0.01

[targets]
names = ["Cacodemon"]
categories = []
reason = "It is the monster."

[returns]
random = -150.0
random_source = "measured"
reference = 80
reference_source = "a guess"
"""


def write_toml(folder: Path, text: str = VALID) -> Path:
    path = folder / "Mine.toml"
    path.write_text(text)
    return path


def write_cfg(folder: Path, *lines: str) -> Path:
    """Write a TOML of the user's own beside a .cfg of the user's own."""
    (folder / "mine.cfg").write_text("\n".join(["available_buttons = { MOVE_LEFT ATTACK }", *lines, ""]))
    return write_toml(folder, VALID.replace("basic.cfg", "mine.cfg"))


@pytest.mark.parametrize("name", available())
def test_every_environment_that_comes_with_the_package_loads(name: str) -> None:
    definition = load_definition(name)
    assert definition.name == name
    assert definition.scenario.is_file()
    assert definition.target_names or definition.target_categories
    assert definition.random_return < definition.reference_return
    assert load_definition(definition.path) == definition
    assert pickle.loads(pickle.dumps(definition)) == definition
    assert dataclasses.asdict(definition)["target_names"] == definition.target_names


def test_the_papers_environments_and_the_other_stock_ones_are_there() -> None:
    paper = {"Basic", "DefendLine", "DefendCenter", "TakeCover"}
    others = {"DeadlyCorridor", "HealthGathering", "HealthGatheringSupreme", "MyWayHome", "PredictPosition"}
    assert set(available()) >= paper | others | {"RocketBasic", "SimplerBasic"}


def test_a_users_own_file_loads_with_names_in_any_case_and_categories(tmp_path: Path) -> None:
    text = VALID.replace('"Cacodemon"', '"cacoDEMON"').replace("categories = []", 'categories = ["Health"]')
    definition = load_definition(write_toml(tmp_path, text))
    assert (definition.name, definition.frame_skip, definition.reference_return) == ("Mine", 4, 80.0)
    assert definition.is_target("Cacodemon", "Monster")
    assert definition.is_target("Stimpack", "Health")
    assert not definition.is_target("DeadCacodemon", "Gore")
    for missing in ("categories = []\n", 'names = ["Cacodemon"]\n'):
        text = VALID.replace(
            "categories = []", 'categories = ["Monster"]' if "names" in missing else "categories = []"
        )
        assert load_definition(write_toml(tmp_path, text.replace(missing, ""))).is_target(
            "Cacodemon", "Monster"
        )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("frame_skip = 4", "frame_skips = 4", ["line 2: frame_skips", "unknown key", "targets.reason"]),
        ("names =", "name =", ["line 6: targets.name:", "unknown key", "targets.names"]),
        ("frame_skip = 4", "frame_skip = 0", ["line 2: frame_skip", "greater than or equal to 1, not 0"]),
        ("frame_skip = 4", "frame_skip = 4.5", ["line 2: frame_skip", "a valid integer, not 4.5"]),
        ("frame_skip = 4\n", "", ["frame_skip is missing", "targets.reason"]),
        ("0.01", "-1", ["line 3: reward_scale", "greater than 0, not -1"]),
        ('["Cacodemon"]', '"Cacodemon"', ["line 6: targets.names", "a valid list, not 'Cacodemon'"]),
        ('["Cacodemon"]', "[1]", ["line 6: targets.names", "a valid string, not 1"]),
        ('["Cacodemon"]', "[]", ["line 6: targets.names", "at least one"]),
        ('names = ["Cacodemon"]\n', "", ["line 5: targets.names", "at least one"]),
        ('"Cacodemon"', '"Cacodemno"', ["line 6: targets.names", "'Cacodemno'", "did you mean Cacodemon"]),
        (
            '"Cacodemon"',
            '"xyzzyxyz"',
            ["line 6: targets.names", "'xyzzyxyz'", "environments /", "basic.cfg`"],
        ),
        ("categories = []", 'categories = ["Foe"]', ["line 7: targets.categories", "'Monster'", "not 'Foe'"]),
        ("basic.cfg", "basics.cfg", ["line 1: scenario", "basics.cfg'", "basic.cfg, ", "take_cover.cfg"]),
        ("reference = 80", "reference = 1e9", ["line 13: returns.reference", "less than 1000000000"]),
        ("reference = 80", "reference = -150", ["line 13: returns.reference", "greater than returns.random"]),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_valid(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    path = write_toml(tmp_path, VALID.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_definition(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message


@pytest.mark.parametrize(
    ("name", "hint"), [("basic", "did you mean Basic"), ("Tetris", "Choose one of Basic")]
)
def test_an_unknown_environment_gets_a_hint_and_the_list(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_definition(name)
    assert hint in str(caught.value)
    assert "TakeCover" in str(caught.value)


def test_a_missing_or_broken_wad_is_named(tmp_path: Path) -> None:
    path = write_cfg(tmp_path, "doom_scenario_path = mine.wad")
    with pytest.raises(UserError, match=r"mine\.wad: No such file .*relative to the \.cfg"):
        load_definition(path)
    object_names.cache_clear()
    for content in (b"", b"no WAD is like this", b"PWAD\x01\0\0\0\xff\0\0\0"):
        (tmp_path / "mine.wad").write_bytes(content)
        with pytest.raises(UserError, match=r"mine\.wad: not a WAD file"):
            load_definition(path)


def test_lines_of_a_cfg_that_vizdoom_would_skip_are_refused(tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(UserError, match=r"mine\.cfg: mend or remove the lines"):
        load_definition(write_cfg(tmp_path, "shoes = 2"))
    assert "Unsupported key: shoes in line #2" in capfd.readouterr().err


def test_a_cfg_without_a_wad_plays_the_games_own(tmp_path: Path) -> None:
    names = object_names(load_definition(write_cfg(tmp_path, "doom_map = map01")).scenario)
    assert {"Cacodemon", "Medikit"} <= names
    assert "CustomMedikit" not in names


def test_a_map_that_is_nowhere_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "mine.wad").write_bytes((SCENARIOS / "basic.wad").read_bytes())
    message = r"doom_map MAP77 is not in mine\.wad or freedoom2\.wad, which has MAP01, MAP02, "
    with pytest.raises(UserError, match=message):
        load_definition(write_cfg(tmp_path, "doom_scenario_path = mine.wad", "doom_map = map77"))


def test_the_map_is_looked_for_in_the_game_that_is_played(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"doom_map MAP01 is not in freedoom1\.wad, which has E1M1, E1M2, "):
        load_definition(write_toml(tmp_path, VALID.replace("basic.cfg", "freedoom1.cfg")))
    game = Path(vizdoom.__file__).with_name("freedoom1.wad")
    load_definition(write_cfg(tmp_path, f"doom_game_path = {game}", "doom_map = e1m1"))


@pytest.mark.parametrize("scenario", ["cig.cfg", "multi_duel.cfg"])
def test_a_stock_scenario_for_several_players_is_refused(tmp_path: Path, scenario: str) -> None:
    with pytest.raises(UserError, match=f"{scenario}: doom_map MAP01 is for several players"):
        load_definition(write_toml(tmp_path, VALID.replace("basic.cfg", scenario)))


@pytest.mark.parametrize(
    "option",
    ["-host 2", "-JOIN 127.0.0.1", "+map map01 -Host 1", "+viz_nocheat 1", "+viz_screen_format 2"],
)
def test_what_takes_the_game_out_of_our_hands_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=r"(?i)remove [-+](host|join|viz_\w+) from game_args"):
        load_definition(write_cfg(tmp_path, f"game_args = {option}"))


def wad(*lumps: tuple[bytes, bytes]) -> bytes:
    contents = b"".join(content for _, content in lumps)
    directory, place = b"", 12
    for name, content in lumps:
        directory += struct.pack("<ii8s", place, len(content), name)
        place += len(content)
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(contents)) + contents + directory


@pytest.mark.parametrize("first", [1, 11])
@pytest.mark.parametrize("layout", ["text", "doom", "hexen"])
def test_the_start_of_player_1_is_found_in_every_format_of_maps(
    tmp_path: Path, layout: str, first: int
) -> None:
    types = (first, 3004)
    things, after = {
        "text": ("".join(f"thing {{ x = 1.0; type = {kind}; }}" for kind in types).encode(), b"ENDMAP"),
        "doom": (b"".join(struct.pack("<5h", 1, 1, 1, kind, 1) for kind in types), b"LINEDEFS"),
        "hexen": (b"".join(struct.pack("<7h6x", 1, 1, 1, 1, 1, kind, 1) for kind in types), b"BEHAVIOR"),
    }[layout]
    name = b"TEXTMAP" if layout == "text" else b"THINGS"
    (tmp_path / "mine.wad").write_bytes(wad((b"MAP01", b""), (name, things), (after, b"")))
    path = write_cfg(tmp_path, "doom_scenario_path = mine.wad", "doom_map = map01")
    with pytest.raises(UserError, match="is for several players") if first == 11 else nullcontext():
        load_definition(path)


def test_an_absolute_path_in_a_cfg_is_the_file_of_that_path(tmp_path: Path) -> None:
    shutil.copy(SCENARIOS / "basic.wad", tmp_path / "other.wad")
    (tmp_path / "folder").mkdir()
    path = write_cfg(tmp_path / "folder", f"doom_scenario_path = {tmp_path / 'other.wad'}")
    assert load_definition(path).scenario == tmp_path / "folder/mine.cfg"


def test_a_cfg_without_a_toml_file_has_no_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cfg(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.cfg", "basic.cfg"):
        definition = bare_definition(Path(name))
        assert definition.scenario.name == name
        assert not definition.is_target("Cacodemon", "Monster")
    with pytest.raises(UserError, match=r"no file 'none\.cfg', nor in ViZDoom, which has basic\.cfg, "):
        bare_definition(Path("none.cfg"))


def test_objects_that_the_scenario_defines_are_known(tmp_path: Path) -> None:
    assert "CustomMedikit" in object_names(SCENARIOS / "health_gathering_supreme.cfg")
    with zipfile.ZipFile(tmp_path / "mine.pk3", "w") as archive:
        archive.writestr("decorate.txt", 'ACTOR "PinkElephant" : Demon\n{\n}\n')
    path = write_cfg(tmp_path, "doom_scenario_path = mine.pk3")
    path.write_text(path.read_text().replace("Cacodemon", "PinkElephant"))
    assert load_definition(path).target_names == ("PinkElephant",)


def test_the_files_of_an_environment_of_ones_own_are_copied_as_they_lie(tmp_path: Path) -> None:
    load_definition("Basic").copy_to(tmp_path / "package")
    assert not (tmp_path / "package").exists()
    (tmp_path / "mine/maps").mkdir(parents=True)
    toml = write_toml(tmp_path / "mine", VALID.replace("basic.cfg", "maps/my.cfg"))
    shutil.copy(SCENARIOS / "basic.cfg", tmp_path / "mine/maps/my.cfg")
    shutil.copy(SCENARIOS / "basic.wad", tmp_path / "mine/maps")
    load_definition(toml).copy_to(tmp_path / "copy")
    shutil.rmtree(tmp_path / "mine")
    copied = load_definition(tmp_path / "copy/Mine.toml")
    assert copied.scenario == tmp_path / "copy/maps/my.cfg"
    assert copied.described()["name"] == "Mine"

    load_definition(write_toml(tmp_path)).copy_to(tmp_path / "stock")
    assert [path.name for path in (tmp_path / "stock").rglob("*")] == ["Mine.toml"]
