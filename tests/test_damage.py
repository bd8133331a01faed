"""Files that are cut off anywhere, or in which a bit is another: one clear line, or what makes sense."""

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same
from faults import cut_off, with_flipped_bits

from camal_rl import experiment
from camal_rl.errors import UserError
from camal_rl.game.definition import Definition, load_definition
from camal_rl.results import play, study
from camal_rl.run import folder as run_folder

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def read_all(
    path: Path, contents: Iterable[bytes], read: Callable[[], Any], sensible: Callable[[Any], bool]
) -> int:
    """How many were refused, each in one line; all others made sense."""
    refusals = []
    for content in contents:
        path.write_bytes(content)
        try:
            assert sensible(read())
        except UserError as mistake:
            refusals.append(str(mistake))
    assert all(len(refusal.splitlines()) == 1 for refusal in refusals)
    return len(refusals)


def damaged(content: bytes) -> Iterable[bytes]:
    return chain(cut_off(content), with_flipped_bits(content, 250))


def test_an_environment(tmp_path: Path) -> None:
    content = load_definition("Basic").path.read_bytes()
    path = tmp_path / "Own.toml"
    refused = read_all(path, damaged(content), lambda: load_definition(path), _is_whole)
    assert refused > len(content) // 2


def _is_whole(definition: Definition) -> bool:
    return definition.frame_skip > 0 and definition.reference_return != definition.random_return


def test_a_matrix(tmp_path: Path) -> None:
    content = (
        b'envs = ["Basic", "TakeCover"]\nmethods = ["camal", "vanilla"]\nseeds = [1, 2, 3]\n'
        b"[train]\ntotal_timesteps = 102400\nclip_vloss = false\n[evaluate]\nepisodes = 50\n"
    )
    path = tmp_path / "matrix.toml"
    path.write_bytes(content)
    args = experiment.parse_args(["--matrix", str(path)])[0]
    refused = read_all(
        path, damaged(content), lambda: experiment.read_matrix(args, ()), lambda read: len(read.seeds) > 0
    )
    assert refused > len(content) // 2


def test_arguments_of_a_run(trained_folder: Path) -> None:
    path = trained_folder / "args.json"
    content = path.read_bytes()
    described = run_folder.read_args_file(trained_folder)

    def read() -> dict[str, dict[str, Any]]:
        run_folder.check_args_file(trained_folder, described)
        return run_folder.read_args_file(trained_folder)

    refused = read_all(path, damaged(content), read, lambda read: read.keys() == described.keys())
    assert refused > len(content) // 2
    path.write_bytes(content)
    whole = play.load_run(trained_folder, None, CPU)
    read_all(
        path,
        with_flipped_bits(content, 10),
        lambda: play.load_run(trained_folder, None, CPU),
        lambda read: read.checkpoint_sha256 == whole.checkpoint_sha256,
    )


def test_scores(runs: Path) -> None:
    path = runs / "A" / "camal" / "seed1" / "scores.json"
    content = path.read_bytes()
    refused = read_all(path, damaged(content), lambda: study.read_study(runs), lambda read: bool(read.runs))
    assert refused > len(content) // 2


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {
        "iteration": 4,
        "agent": {"fc.weight": torch.randn(20, 20), "fc.bias": torch.randn(20)},
        "envs": [{"episode_seed": 1, "episode_actions": [0, 1, 2]}],
    }
    run_folder.save_checkpoint(path, state)
    content = path.read_bytes()
    contents = [*list(cut_off(content))[::4], *with_flipped_bits(content, 400)]
    whole = run_folder.load_checkpoint(path)
    assert whole is not None
    assert whole["iteration"] == 4

    def is_whole(
        checkpoint: object,
    ) -> bool:  # such as where the bit is one of a date
        assert_same(checkpoint, whole)
        return True

    refused = read_all(path, contents, lambda: run_folder.load_checkpoint(path), is_whole)
    assert refused > 0.9 * len(contents)
