"""The page that leads from a map of one's own to masks, followed on the engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from camal_rl import environments, ppo
from camal_rl.game.definition import load_definition

TEXT = (ROOT / "runs" / "reference" / "own-scenario" / "README.md").read_text(encoding="utf-8")


@pytest.mark.engine
def test_the_page_makes_a_map_with_masks_that_an_agent_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL))
    subprocess.run([sys.executable, "-c", blocks["python"]], check=True, cwd=tmp_path)
    (tmp_path / "arena.cfg").write_text(blocks[""])
    (tmp_path / "arena.toml").write_text(blocks["toml"])
    definition = load_definition("arena.toml")
    assert [button.name for button in definition.buttons()] == ["TURN_LEFT", "TURN_RIGHT", "ATTACK"]
    environments.main(environments.Args("arena.toml", steps=200))
    shown = capsys.readouterr().out
    share = re.search(r"a target is in view in ([\d.]+)% of them", shown)
    assert share is not None
    assert float(share[1]) > 50
    assert re.search(r"DoomImp +Monster +[\d.]+% of frames +<- target", shown)
    assert (tmp_path / "arena.png").stat().st_size > 10_000
    options = ["--env", "arena.toml", "--num-envs", "2", "--num-steps", "32", "--total-timesteps", "128"]
    folder = ppo.train(
        ppo.parse_args([*options, "--play-in", "threads", "--runs-dir", str(tmp_path / "runs")])
    )
    assert (folder / "environment" / "arena.wad").is_file()
    assert re.search(r"^camal/iou,\d+,0\.\d+$", (folder / "curves.csv").read_text(), re.MULTILINE)
