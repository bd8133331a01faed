"""Table 6's measurement, in small."""

import pytest
import torch

pytest.importorskip("torchvision")

from camal_rl import benchmark_tables
from camal_rl.vision import overhead

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("least", "steps"), [(0.0, 1), (1e-9, 1), (3.0, 3)])
def test_each_method_is_measured_as_often_as_asked_and_as_long(
    least: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def step(*given: object) -> float:
        taken.append(given)
        return 1.0

    monkeypatch.setattr(overhead, "LEAST_SECONDS", least)
    monkeypatch.setattr(overhead, "_step", step)
    monkeypatch.setattr(overhead, "ARCHITECTURES", {"resnet18": overhead.ARCHITECTURES["resnet18"]})
    result = overhead.measure(torch.device("cpu"), "fp32", 2, 1, lambda: None)
    assert len(taken) == 3 + 2 * 2 * steps  # three to begin with
    assert result["seconds"] == {"resnet18": {"vanilla": [1.0, 1.0], "camal": [1.0, 1.0]}}


def test_real_steps_come_to_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "LEAST_SECONDS", 0.0)
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
