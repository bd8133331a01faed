"""Table 6's measurement, in small."""

import pytest
import torch

pytest.importorskip("torchvision")

from camal_rl import benchmark_tables
from camal_rl.vision import overhead

pytestmark = pytest.mark.slow


def test_each_method_is_measured_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "ARCHITECTURES", {"resnet18": overhead.ARCHITECTURES["resnet18"]})
    monkeypatch.setattr(overhead, "BATCH_SIZE", 2)
    done = []
    result = overhead.measure(torch.device("cpu"), "fp32", 2, 1, lambda: done.append(1))
    assert len(done) == 4
    assert {method: len(found) for method, found in result["seconds"]["resnet18"].items()} == {
        "vanilla": 2,
        "camal": 2,
    }
    account = benchmark_tables.vision(result, {})
    assert account.findings[0].goal == pytest.approx(2.1)
    assert account.tables[0].rows[0][0] == "resnet18"
