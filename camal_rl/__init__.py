"""Vision agents whose attention can be trusted: PPO on ViZDoom with CAMAL attention supervision."""

from pathlib import Path

from gymnasium.envs.registration import register, registry

__version__ = "0.1.0"

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries envs/ inside the package; a checkout and an editable install keep it beside the package.
ENVS_DIR = next(
    (path for path in (_PACKAGE / "envs", _PACKAGE.parent / "envs") if path.is_dir()), _PACKAGE / "envs"
)


def register_envs() -> None:
    """Register every `envs/*.toml` with Gymnasium as `camal_rl/<name>-v0`; safe to call again."""
    for path in sorted(ENVS_DIR.glob("*.toml")):
        env_id = f"camal_rl/{path.stem}-v0"
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="camal_rl.doom:DoomEnv",
                vector_entry_point="camal_rl.doom:DoomVectorEnv",
                kwargs={"env": path.stem},
            )


register_envs()
