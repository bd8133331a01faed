"""Proposition 1 under BatchNorm: where it holds exactly, and where it does not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import study

pytest.importorskip("torchvision")
batch_norm = study("vision/batch-norm/batch_norm.py")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_norm, "IMAGE_SIZE", 64)
        yield


@pytest.fixture(scope="module")
def rows(small_images: None) -> dict[tuple[str, str], dict[str, float]]:
    args = batch_norm.Args(weights="none", batch_size=4)
    return {(one["statistics"], one["layer"]): one for one in batch_norm.compare("resnet18", args)}


def test_at_the_supervised_layer_one_pass_is_exact_whatever_the_statistics(
    rows: dict[tuple[str, str], dict[str, float]],
) -> None:
    """No BatchNorm lies between it and the logits."""
    assert rows["batch", "supervised"]["passes"] < 1e-12
    assert rows["running", "supervised"]["passes"] < 1e-12


def test_a_batch_norm_behind_the_layer_breaks_it_only_with_the_batchs_statistics(
    rows: dict[tuple[str, str], dict[str, float]],
) -> None:
    assert rows["batch", "stage before"]["passes"] > 1e-3
    assert rows["running", "stage before"]["passes"] < 1e-12


def test_a_sample_depends_on_its_company_only_with_the_batchs_statistics(
    rows: dict[tuple[str, str], dict[str, float]],
) -> None:
    assert rows["batch", "supervised"]["company"] > 1e-3
    assert rows["running", "supervised"]["company"] < 1e-9


def test_what_is_compared_is_not_zero(rows: dict[tuple[str, str], dict[str, float]]) -> None:
    """As it would be behind the last layer that torchvision's ViT begins with."""
    args = batch_norm.Args(weights="none", batch_size=4)
    for one in (*rows.values(), *batch_norm.compare("vit_b_16", args)):
        assert one["largest"] > 1e-5


def test_the_command_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = batch_norm.Args(tmp_path / "study", ("resnet18",), "none", 4)
    assert batch_norm.main(args) == 0
    assert "| resnet18 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "study" / "results.json").read_text())["rows"]) == 4
    assert batch_norm.main(batch_norm.Args(tmp_path, ("resnet",))) == 2
