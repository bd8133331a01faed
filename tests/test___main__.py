"""`python -m camal_rl` and `camal-rl`: the list of commands, and each of them by its short name."""

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from camal_rl import __main__, __version__


def commanded(*words: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "camal_rl", *words], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_the_commands_are_listed_and_each_is_a_module(words: tuple[str, ...], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["camal-rl", *words])
    assert __main__.main() == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == list(__main__.COMMANDS)
    assert all(importlib.util.find_spec(f"camal_rl.{name}") for name, _ in __main__.COMMANDS.values())


def test_a_command_is_the_modules_with_its_options_and_its_exit_code() -> None:
    done = commanded("environments", "Basic", "--steps", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("camal_rl: --steps 0: ")
    helped = commanded("train", "--help")
    assert helped.returncode == 0
    assert "usage: python -m camal_rl.ppo" in helped.stdout


def test_the_version_and_an_unknown_command_are_a_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["camal-rl", "--version"])
    assert __main__.main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    monkeypatch.setattr(sys, "argv", ["camal-rl", "play"])
    assert __main__.main() == 2
    assert capsys.readouterr().err.startswith("camal_rl: there is no command play: choose train, ")
