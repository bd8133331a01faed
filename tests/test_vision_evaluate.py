"""Measures of a classifier, by hand where that is possible."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camal_rl.errors import UserError

pytest.importorskip("torchvision")

from camal_rl.vision import evaluate
from camal_rl.vision.models import Features, Output
from camal_rl.vision.samples import Samples

pytestmark = pytest.mark.slow  # to import


class Brightness(nn.Module):
    """Two classes, dark and bright, by the mean of its only feature map: the image, shrunk to 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def features(self, images: Tensor) -> Features:
        return Features(nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), images.shape[-1] // 2))

    def head(self, features: Features) -> Tensor:
        bright = self.scale * features.maps.mean(dim=(1, 2, 3))
        return torch.stack([-bright, bright], dim=1)

    def forward(self, images: Tensor) -> Output:
        features = self.features(images)
        return Output(self.head(features), features.maps)


@pytest.fixture
def samples() -> Samples:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    images[:2, :, :4, :4] = 255  # bright only at the upper left
    images[2:, :, :, :] = 0
    masks = np.zeros((4, 8, 8), np.uint8)
    masks[:2, :4, :4] = 1
    labels = np.array([1, 1, 0, 0])
    names = tuple(f"image{number}" for number in range(4))
    return Samples(images, masks, labels, ("dark", "bright"), names, {"black": np.zeros_like(images)})


def test_attention_is_where_the_class_is_and_scores_say_so(samples: Samples) -> None:
    seen = evaluate.look(Brightness(), samples.images, samples.labels)  # type: ignore[arg-type]
    assert seen.heat[0].tolist() == [[1, 0], [0, 0]]
    scores = evaluate.alignment(seen, samples.masks, samples.labels)
    # Upsampled bilinearly from 2 x 2 to 8 x 8, nine pixels exceed 0.7 of the sixteen in the mask.
    assert scores["iou"] == pytest.approx(9 / 16)
    assert scores["pointing_game"] == 1
    # A quarter of the picture is not enough to make it bright: two of four are told right.
    assert scores["accuracy"] == 0.5


def test_without_any_mask_there_is_no_alignment(samples: Samples) -> None:
    seen = evaluate.look(Brightness(), samples.images, samples.labels)  # type: ignore[arg-type]
    scores = evaluate.alignment(seen, np.zeros_like(samples.masks), samples.labels)
    assert scores["iou"] is None
    assert scores["accuracy"] is not None


def test_looking_is_the_same_in_batches_of_any_size(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate.look(Brightness(), samples.images, samples.labels)  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 3)
    parts = evaluate.look(Brightness(), samples.images, samples.labels)  # type: ignore[arg-type]
    assert np.array_equal(whole.heat, parts.heat)
    assert np.allclose(whole.probabilities, parts.probabilities)


def test_removing_what_makes_it_bright_takes_confidence_and_inserting_gives_it(samples: Samples) -> None:
    model = Brightness()
    images, labels = samples.images[:1], samples.labels[:1]
    heat = np.array([[[1, 0], [0, 0]]], np.float32)
    found = evaluate.faithfulness(model, images, labels, heat, seed=0)  # type: ignore[arg-type]
    removal, insertion = np.array(found["removal"][0]), np.array(found["insertion"][0])
    assert removal[0] == pytest.approx(insertion[-1])
    assert (
        removal[-1] == pytest.approx(insertion[0]) == pytest.approx(0.5)
    )  # all zero: neither dark nor bright
    assert removal[5] < removal[0]
    assert insertion[5] > insertion[0]
    assert found["removal_auc"] < found["insertion_auc"]


def test_a_pixel_that_is_removed_may_be_blurred_instead(samples: Samples) -> None:
    """An even image stays as it is, and so does confidence; a bright corner is spread."""
    heat = np.ones((1, 2, 2), np.float32)
    for images, changed in ((np.full((1, 3, 8, 8), 200, np.uint8), False), (samples.images[:1], True)):
        arguments = (Brightness(), images, samples.labels[:1], heat, 0, True)
        found = evaluate.faithfulness(*arguments)  # type: ignore[arg-type]
        assert (np.ptp(found["removal"]) > 1e-6) == changed


def test_one_sample_of_each_class_is_drawn_and_seeds_differ() -> None:
    labels = np.repeat([3, 1, 2], 20)
    drawn = evaluate.one_of_each_class(labels, seed=0)
    assert labels[drawn].tolist() == [1, 2, 3]
    assert any(not np.array_equal(drawn, evaluate.one_of_each_class(labels, seed)) for seed in range(1, 5))


def test_an_evaluation_holds_shifted_sets_and_spatial_variance(samples: Samples) -> None:
    scores, picture = evaluate.evaluate(Brightness(), samples, np.arange(4))  # type: ignore[arg-type]
    assert scores["samples"] == 4
    assert scores["shifted"]["black"]["accuracy"] == 0.5
    assert scores["mask_variance"] == [[0.25, 0], [0, 0]]
    assert len(scores["faithfulness"]["removal"]) == 2
    assert scores["maps"].keys() == {"gradcam", "diffgradcam"}
    own = scores["maps"]["gradcam"]
    assert own["iou"] == scores["iou"]
    # Of all four, where one of each class is drawn for the paper's: the samples of a class are alike.
    assert own["removal"] == pytest.approx(scores["faithfulness"]["removal_auc"])
    # The margin of two classes is the difference of their logits: twice either, so the same map.
    assert scores["maps"]["diffgradcam"] == own
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_an_unfinished_fold_is_left_out_and_the_others_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def evaluate_fold(folder: Path, *_: object) -> None:
        if folder.name == "fold1":
            raise UserError("fold1 has not been trained to the end.")
        done.append(folder.name)

    for fold in ("fold1", "fold2"):
        (tmp_path / fold).mkdir()
        (tmp_path / fold / "args.json").write_text("{}")
    monkeypatch.setattr(evaluate, "evaluate_fold", evaluate_fold)
    assert evaluate.main(evaluate.Args((tmp_path,), device="cpu")) == 0
    assert done == ["fold2"]
    assert "left out: fold1 has not been trained" in capsys.readouterr().err
    assert evaluate.main(evaluate.Args((tmp_path / "fold1",), device="cpu")) == 2


def test_the_folder_of_an_agent_and_of_a_fold_in_groups_are_refused(tmp_path: Path) -> None:
    """Runs of versions before had their options in groups."""
    for options in ({"args": {"env": "Basic", "seed": 1}}, {"run": {"fold": 1}, "training": {}}):
        (tmp_path / "args.json").write_text(json.dumps(options))
        with pytest.raises(UserError, match=r"classifiers|is not a run of this camal_rl"):
            evaluate.evaluate_fold(tmp_path, lambda *_: pytest.fail("read"), torch.device("cpu"))


def test_a_folder_without_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trained fold"):
        evaluate.below((tmp_path,))
