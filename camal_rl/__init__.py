"""Vision agents whose attention can be trusted: PPO on ViZDoom with CAMAL attention supervision."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camal_rl.doom import DoomEnv
    from camal_rl.results.play import TrainedRun

__all__ = ["__version__", "load", "register_envs"]
__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries envs/ inside the package; a checkout and an editable install keep it beside the package.
ENVS_DIR = _PACKAGE / "envs" if (_PACKAGE / "envs").is_dir() else _PACKAGE.parent / "envs"


def register_envs() -> None:
    """Register every `envs/*.toml` with Gymnasium as `camal_rl/<name>-v0`; safe to call again."""
    from gymnasium.envs.registration import register, registry

    for path in sorted(ENVS_DIR.glob("*.toml")):
        env_id = f"camal_rl/{path.stem}-v0"
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="camal_rl.doom:DoomEnv",
                vector_entry_point="camal_rl.doom:DoomVectorEnv",
                kwargs={"env": path.stem},
            )


def load(folder: str | Path, device: str = "auto") -> tuple[TrainedRun, DoomEnv]:
    """Return a trained agent and the game that it was trained on.

        agent, env = camal_rl.load("runs/Basic/balanced/seed1")
        observation, _ = env.reset(seed=1)
        action, heat = agent.act(observation["image"])

    Args:
        folder: of a run, or USER/NAME of a repository that `camal_rl.hub` has pushed.
        device: as for training; auto is CUDA where there is one.

    Raises:
        UserError: there is no run, or it can't be played.
    """
    from camal_rl.results.play import load_run  # with torch, which nothing else here needs
    from camal_rl.run.device import choose_device

    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not Path(folder).exists():
        from camal_rl.hub import fetch

        folder = fetch(str(folder))
    run = load_run(Path(folder), None, choose_device(device))
    return run, run.env()


def __dir__() -> list[str]:
    return __all__


with suppress(ImportError):  # what is missing is said by camal_rl.doctor, which has to start without it
    register_envs()
