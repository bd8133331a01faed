"""The notebook to begin with: its cells run, on a small budget, and their outputs are committed."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from conftest import ROOT
from matplotlib import pyplot as plt

from camal_rl.results import faithfulness

FOLDER = ROOT / "runs" / "reference" / "quickstart"


@pytest.mark.engine
def test_the_cells_run_and_show_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads((FOLDER / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] and cell["execution_count"] for cell in code)
    shutil.copytree(FOLDER.parent / "basic" / "agent", tmp_path / "basic" / "agent")
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path / "quickstart")
    monkeypatch.setattr(faithfulness, "SANITY_DRAWS", 2)
    mpl.use("Agg")
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in code:
        source = "".join(cell["source"])
        for usual, small in (("STEPS,", "256, num_steps=32,"), ("episodes=20", "episodes=2")):
            source = source.replace(usual, small)
        exec(compile(source, "cell", "exec"), names)
    plt.close("all")
    assert names["rows"].keys() == {"balanced", "vanilla"}
    assert all(0 <= row["iou"] <= 1 for row in names["rows"].values())
    assert len(names["axes"]) == 4
