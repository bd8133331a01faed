"""Lists the commands, or runs one: `camal-rl train --env Basic` is `python -m camal_rl.ppo --env Basic`."""

from __future__ import annotations

import runpy
import sys

from camal_rl import __version__
from camal_rl.errors import UserError, print_mistake

COMMANDS = {
    "train": ("ppo", "train an agent"),
    "evaluate": ("evaluate", "play a trained agent, and measure its attention"),
    "experiment": ("experiment", "train and evaluate environments x methods x seeds"),
    "share": ("hub", "share a trained agent, or load one"),
    "report": ("report", "compare methods over all runs: statistics, figures, a page"),
    "environments": ("environments", "list the environments, or show one"),
    "benchmark": ("benchmark", "measure speed and memory"),
    "doctor": ("doctor", "check what of this machine works"),
    "train-classifier": ("vision.train", "train a classifier, fold by fold"),
    "report-classifiers": ("vision.report", "compare methods over folds"),
}
"""The module of each command, and what it does."""


def main() -> int:
    """Run the command that the first word names, by the words after it; the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {command:20}{does}" for command, (_, does) in COMMANDS.items()]
        print("\n".join([f"camal_rl {__version__}. Each of these explains itself with --help:", *lines]))
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        return print_mistake(UserError(f"there is no command {name}: choose {', '.join(COMMANDS)}."))
    del sys.argv[1]
    runpy.run_module(f"camal_rl.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
