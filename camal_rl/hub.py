"""A trained run -> a folder to share, and back: weights without pickle, options, scores and a model card.

    python -m camal_rl.hub push runs/Basic/balanced/seed1 --repo USER/NAME
    python -m camal_rl.hub load USER/NAME --output FOLDER

in the conventions of the Hugging Face Hub. Such a folder is evaluated and loaded as a run's own is.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import tyro

from camal_rl import __version__
from camal_rl.errors import UserError, in_one_line
from camal_rl.game.definition import copied_toml
from camal_rl.run.command_line import option, parse, run_at_once, words_of
from camal_rl.run.files import make_folder

FILES = ("args.json", "scores.json", "media/evaluation.png", "media/evaluation.mp4")
"""These files of a run are shared as they are, beside its weights and its environment."""


@dataclass
class Args:
    """Share a trained run on the Hugging Face Hub or as a folder, or load one from there."""

    action: Annotated[Literal["push", "load"], tyro.conf.Positional]
    """push a run's folder, or load a repository"""
    what: Annotated[str, tyro.conf.Positional, option("RUN|REPO")]
    """folder of a trained run to push, or USER/NAME to load"""
    repo: Annotated[str, option("USER/NAME")] = ""
    """repository to push to, made if there is none"""
    output: Annotated[Path | None, option("FOLDER")] = None
    """folder to write, for push what would be uploaded and no more"""

    def __post_init__(self) -> None:
        if self.action == "push" and bool(self.repo) == (self.output is not None):
            raise UserError("give --repo USER/NAME to upload, or --output FOLDER to write what would be.")
        if self.action == "load" and (self.repo or self.output is None):
            raise UserError("load takes the repository and --output FOLDER.")


def pack(run: Path, folder: Path) -> None:
    """Write into a folder, which is made, what is shared of a run.

    Raises:
        UserError: there is no trained run, the folder is not empty, or safetensors is not installed.
    """
    from camal_rl.run import folder as run_folder  # with torch, as `card`

    _need("safetensors")
    from safetensors.torch import save_file

    options = run_folder.read_args_file(run)
    parameters, iteration = run_folder.load_weights(run_folder.weights_file(run))
    make_folder(folder)
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another --output.")
    scores = run / "scores.json"
    measured = json.loads(scores.read_text(encoding="utf-8")) if scores.is_file() else None
    toml = copied_toml(run / "environment")
    told = card(options, measured, str(toml.relative_to(run)) if toml else options["args"]["env"])
    metadata = {"format": "pt", "iteration": str(iteration)}
    weights = {name: weight.contiguous() for name, weight in parameters.items()}
    save_file(weights, folder / run_folder.WEIGHTS, metadata)
    for name in FILES:
        if (run / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(run / name, folder / name)
    if (run / "environment").is_dir():
        shutil.copytree(run / "environment", folder / "environment")
    (folder / "README.md").write_text(told, encoding="utf-8")


def card(options: dict[str, dict[str, Any]], scores: dict[str, Any] | None, env: str) -> str:
    """A model card: the Hub's metadata, and what the agent is, can do and was made with, on this `--env`."""
    from camal_rl import ppo  # with torch, which --help need not wait for

    args = options["args"]
    own = {field.name: args[field.name] for field in dataclasses.fields(ppo.Args) if field.name in args}
    own |= {
        "env": env,
        "frame_size": tuple(args["frame_size"]),
        "name": args["name"] * (args["name"] != args["method"]),
    }
    template = Path(__file__).with_suffix(".md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(
        version=__version__,
        environment=options["definition"]["name"],
        args=args,
        scores=scores,
        command=shlex.join(["python", "-m", "camal_rl.ppo", *words_of(ppo.Args(**own))]),
    )


def fetch(repository: str, folder: Path | None = None) -> Path:
    """Download a repository, USER/NAME, into a folder or the Hub's cache, and return where it lies.

    Raises:
        UserError: it can't be had, or huggingface_hub is not installed.
    """
    _need("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_dir=folder))
    except Exception as error:  # of a network, a server, a name
        reason = in_one_line(error)[:200]
        raise UserError(
            f"there is no folder {repository}, and as a repository it can't be loaded: {reason}"
        ) from error


def push(run: Path, repository: str) -> str:
    """Upload what is shared of a run, and return its address.

    Raises:
        UserError: as `pack`, or the Hub does not take it.
    """
    _need("huggingface_hub")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        pack(run, Path(folder))
        try:
            address = HfApi().create_repo(repository, exist_ok=True)
            HfApi().upload_folder(repo_id=repository, folder_path=folder)
        except Exception as error:  # of a network, a server, a token
            reason = in_one_line(error)[:200]
            raise UserError(f"{repository} can't be uploaded: {reason}. Log in: hf auth login.") from error
    return str(address)


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f"this needs {package}: pip install huggingface_hub safetensors.") from error


def main(args: Args) -> int:
    """Return the exit code: 0, 2 after a mistake, 130 or 143 after a signal."""

    def run() -> None:
        if args.action == "load":
            print(fetch(args.what, args.output))
        elif args.output is not None:
            pack(Path(args.what), args.output)
            print(args.output)
        else:
            print(push(Path(args.what), args.repo))

    return run_at_once(run)


if __name__ == "__main__":
    sys.exit(main(parse(Args, "python -m camal_rl.hub")))
