"""TensorBoard's tags have descriptions, and the page that lists them says the same."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, small_args
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from camal_rl import ppo
from camal_rl.run.tags import TAGS


@pytest.mark.slow
def test_every_tag_that_a_training_logs_is_described(fake_engine: None, tmp_path: Path) -> None:
    folder = ppo.train(small_args(tmp_path, method="balanced"))
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Tags()["scalars"]
    told = {tag: events.SummaryMetadata(tag).summary_description for tag in scalars}
    assert told == {tag: TAGS[tag] for tag in scalars}
    others = {tag for tag in TAGS if tag not in scalars}
    assert others == {"camal/attention", "hyperparameters"}


def test_the_page_lists_them() -> None:
    text = (ROOT / "runs" / "reference" / "reproduction" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| tag | meaning |") :].split("\n\n")[0]
    assert dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", table, re.MULTILINE)) == TAGS
