"""The command that lists the environments and shows one."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import run

from camal_rl import environments
from camal_rl.errors import UserError
from camal_rl.game.definition import available, load_definition
from camal_rl.run.command_line import parse

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in a folder of the test's own, and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> str:
        environments.main(parse(environments.Args, "environments", arguments))
        return capsys.readouterr().out

    return run_command


def test_the_list_names_every_environment(command: Command) -> None:
    lines = command().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == available()
    assert "MarineChainsawVzd" in "\n".join(lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Basics"], r"did you mean Basic\?"),
        (["none.cfg"], r"no file 'none\.cfg', nor in ViZDoom, which has basic\.cfg, "),
        (["Basic", "--steps", "1", "--output", "/proc/b.png"], r"can't write /proc/b\.png: "),
    ],
)
@pytest.mark.usefixtures("fake_engine")
def test_a_mistake_is_named(tmp_path: Path, command: Command, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        command(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fake_engine")
def test_a_cfg_that_no_toml_file_describes_shows_its_labels(tmp_path: Path, command: Command) -> None:
    printed = command("basic.cfg", "--steps", "8").splitlines()
    assert {"scenario", "actions"} <= {line.split()[0] for line in printed}
    assert any(line.split()[:2] == ["Cacodemon", "Monster"] for line in printed)
    assert "<- target" not in "".join(printed)
    assert (tmp_path / "basic.png").is_file()


@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(tmp_path: Path) -> None:
    result = run("-m", "camal_rl.environments", "Basics", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("camal_rl: no environment named 'Basics'")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("fake_engine")
def test_showing_an_environment_prints_what_was_seen_and_writes_a_picture(
    tmp_path: Path, command: Command
) -> None:
    printed = command("Basic", "--steps", "60", "--random-episodes", "1").splitlines()
    assert "target names      Cacodemon" in printed
    assert "actions           nothing, ATTACK, MOVE_RIGHT, MOVE_LEFT" in printed
    seen = next(line for line in printed if line.endswith("<- target"))
    share = next(
        line for line in printed if line.startswith("Random play, 60 frames: a target is in view in")
    )
    assert seen.split()[:2] == ["Cacodemon", "Monster"]
    assert seen.split()[2] in share
    assert printed[-2:-1] == ["Picture: Basic.png"]
    assert printed[-1].endswith("standard error nan")
    assert (tmp_path / "Basic.png").is_file()


@pytest.mark.usefixtures("fake_engine")
def test_random_returns_are_those_of_whole_episodes_and_repeat_with_the_seed() -> None:
    definition = load_definition("Basic")
    returns = environments.random_returns(definition, 20, seed=1)
    assert returns.shape == (20,)
    assert (returns == np.round(returns)).all()
    assert len(set(returns.tolist())) > 3
    assert (returns >= -12).all()
    assert (returns <= 36).all()
    np.testing.assert_array_equal(environments.random_returns(definition, 5, seed=1), returns[:5])


@pytest.mark.engine
def test_a_picture_shows_frame_image_mask_and_mask_over_frame(tmp_path: Path, command: Command) -> None:
    printed = command("Basic", "--output", "b.png", "--steps", "120", "--random-episodes", "3")
    marked = [line.split()[0] for line in printed.splitlines() if line.endswith("<- target")]
    assert marked == ["Cacodemon"]
    assert "DoomPlayer" in printed
    assert "in view in 100.0% of them" in printed
    assert "Random policy, 3 episodes: mean return -" in printed
    shown = cv2.imread(str(tmp_path / "b.png"))
    assert shown.shape == (24 + 240 + 4, 4 * (320 + 4), 3)
    drawn, seen, mask, over = (panel[24:264, :320] for panel in np.split(shown, 4, axis=1))
    assert set(np.unique(mask)) == {0, 255}
    target = mask[..., 0] > 0
    assert (over[target] != drawn[target]).any()
    np.testing.assert_array_equal(over[~target], drawn[~target])
    assert len(np.unique(seen)) > 10
