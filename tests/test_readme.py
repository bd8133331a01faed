"""README.md files: commands are understood, Python and changes run, and what they link and name is there."""

import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import vizdoom
from conftest import ROOT, run, small_args
from torch import nn

import camal_rl
from camal_rl import attention, experiment, ppo, stats
from camal_rl.game.definition import available, load_definition
from camal_rl.run import monitor
from camal_rl.run.command_line import parse, split_arguments

PACKAGE = ROOT / "camal_rl"
README = ROOT / "README.md"
REFERENCE = ROOT / "runs/reference"
FILES = [README, *sorted(REFERENCE.rglob("README.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference results are not in this copy")


class Block(NamedTuple):
    """A block of code in a README.md, and the paragraphs beside it."""

    language: str
    code: str
    before: str
    after: str


def blocks(path: Path, language: str) -> list[Block]:
    texts = re.split(r"^```(\w+)\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [
        Block(
            texts[place],
            texts[place + 1],
            texts[place - 1].strip().split("\n\n")[-1],
            texts[place + 2].strip().split("\n\n")[0],
        )
        for place in range(1, len(texts), 3)
        if texts[place] == language
    ]


def python_that(imports: str) -> str:
    (code,) = (block.code for block in blocks(README, "python") if imports in block.code)
    return code


def commands() -> Iterator[tuple[str, str]]:
    """Each module of the package that a README.md runs, with its options; of a loop's, the first pass."""
    for path in FILES:
        text = path.read_text().replace("\\\n", " ")
        first = dict(re.findall(r"^for (\w+) in (\S+)", text, flags=re.MULTILINE))
        for module, options in re.findall(r"-m (camal_rl[\w.]*)([^`\n;]*)", text):
            yield module, Template(options).substitute(first).strip()


def values_by_tag(folder: Path) -> dict[str, np.ndarray]:
    """What a training has logged, in the order of steps."""
    return {
        str(tag): values.to_numpy()
        for tag, values in pd.read_csv(folder / "curves.csv").groupby("tag")["value"]
    }


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.read_text().splitlines()) <= 260


def test_the_gate_finds_its_command() -> None:
    (code,) = (block.code for block in blocks(README, "bash") if block.before == "<!-- test command -->")
    assert [line.split()[0] for line in code.splitlines()] == ["python3"]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_run_by_something_or_says_when_it_was_run_and_how_long_it_takes(name: str) -> None:
    for block in blocks(ROOT / name, "bash"):
        if runner := re.fullmatch(r"<!-- run by (\S+) -->", block.before):
            assert (ROOT / runner[1]).is_file()
        elif block.before != "<!-- test command -->":
            said = " ".join(f"{block.before} {block.after}".split())
            timed = re.search(r"\b(second|minute|hour)s?\b", said) and re.search(rf"({MONTHS}) 20\d\d", said)
            assert timed or re.search("not been run", said), block.code


@pytest.mark.parametrize(("name", "options"), sorted(set(commands())))
def test_every_command_is_understood_by_its_module(name: str, options: str) -> None:
    module = importlib.import_module(name)
    own, training = split_arguments(shlex.split(options, comments=True))
    try:
        if hasattr(module, "parse_args"):
            module.parse_args(own)
        else:
            parse(module.Args, name, own)
        ppo.parse_args(training)
    except SystemExit:
        pytest.fail(f"python -m {name} {options}")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(name: str) -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose):
        target = (ROOT / name).parent / link if link else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), anchor


@pytest.mark.parametrize("name", NAMES)
def test_every_file_module_and_environment_that_is_named_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"\b(?:camal_rl|tests|envs)/\w[\w/]*\.\w+", text):
        assert (ROOT / path).is_file(), path
    known = {path.name for path in PACKAGE.rglob("*.py")} | {"ppo_atari.py"}  # CleanRL's
    for file in re.findall(r"(?<![\w/])\w+\.py\b", text):
        assert file in known, file
    for module in re.findall(r"\bcamal_rl(?:\.[a-z_]+)+", text):
        assert module.removeprefix("camal_rl.") in dir(camal_rl) or importlib.util.find_spec(module), module
    for env in re.findall(r"--env (\w+)\b(?!\.toml)", text):
        assert env in available(), env


def test_every_folder_of_reference_results_says_what_is_in_it() -> None:
    for folder in REFERENCE.iterdir():
        assert folder.is_dir(), f"{folder} lies loose"
        text = (folder / "README.md").read_text()
        assert "```bash" in text
        assert "not show" in text or "not a statistical claim" in text


def test_the_three_lines_supervise_a_training_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, 5))
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6) % 5
    names: dict[str, Any] = {
        "backbone": backbone,
        "head": head,
        "images": images,
        "labels": labels,
        "criterion": nn.CrossEntropyLoss(),
        "masks": torch.rand(6, 32, 32) > 0.8,
    }
    exec(python_that("class_activation_map"), names)
    assert names["cam"].shape == names["heat"].shape == (6, 8, 8)
    assert backbone[0].weight.grad is None
    plain = nn.functional.cross_entropy(names["logits"], labels)
    names["loss"].backward(retain_graph=True)
    supervised = backbone[0].weight.grad.clone()
    backbone.zero_grad()
    plain.backward()
    assert supervised.isfinite().all()
    assert not torch.allclose(supervised, backbone[0].weight.grad)


@pytest.mark.engine
def test_environments_are_made_as_the_readme_says() -> None:
    names: dict[str, Any] = {}
    exec(python_that("gymnasium"), names)
    with names["env"] as env:
        observation, _ = env.reset(seed=0)
        assert {name: array.shape for name, array in observation.items()} == {
            "image": (4, 84, 84),
            "mask": (240, 320),
        }
        seen, _ = names["unmasked"].reset(seed=0)
        assert seen in names["unmasked"].observation_space
        np.testing.assert_array_equal(seen, observation["image"])
    assert names["envs"].num_envs == 8
    names["envs"].close()


def test_the_environment_file_of_ones_own_is_one(tmp_path: Path) -> None:
    (block,) = blocks(README, "toml")
    scenario = Path(vizdoom.scenarios_path) / "defend_the_center.cfg"
    shutil.copy(scenario, tmp_path / "my_map.cfg")
    shutil.copy(scenario.with_suffix(".wad"), tmp_path)
    (tmp_path / "mine.toml").write_text(block.code)
    assert load_definition(tmp_path / "mine.toml").scenario == tmp_path / "my_map.cfg"


@pytest.mark.slow
def test_verdicts_by_chance_are_counted_as_shown(tmp_path: Path) -> None:
    file = REFERENCE / "reproduction/README.md"
    text = file.read_text()
    (block,) = (block for block in blocks(file, "bash") if "python -c" in block.code)
    printed = run(*shlex.split(block.code)[1:], folder=tmp_path).stdout
    rows = re.findall(r"\| (?:runs of each|one env\w+|four env\w+) \| (.+) \|", text)
    numbers, *shown = (re.findall(r"\d+", row) for row in rows)
    for environments, chances in zip((1, 4), shown, strict=True):
        rates = [stats.false_positive_rate(int(runs), int(runs), environments) for runs in numbers]
        assert chances == [f"{200 * rate:.0f}" for rate in rates]
    assert f"{100 * float(printed):.0f}" == dict(zip(numbers, shown[1], strict=True))["5"]


def test_every_tag_that_training_logs_is_defined(trained_folder: Path) -> None:
    defined = re.findall(r"`(\w+/\w+)`", (REFERENCE / "reproduction/README.md").read_text())
    logged = set(values_by_tag(trained_folder))
    assert len(logged) > 15
    assert logged <= set(defined)


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Make the change of the README that has these words in it, and return the module that it changes."""

    def change(words: str) -> ModuleType:
        (code,) = (block.code for block in blocks(README, "diff") if words in block.code)
        assert code.count("\n+") + code.startswith("+") <= 3
        hunks = re.findall(r"(?:^[- ].*\n)*(?:^\+.*\n)+(?:^ .*\n)*", code, flags=re.MULTILINE)
        assert "".join(hunks) == code
        file, source = None, ""
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] != "+")
            new = "".join(line[1:] for line in lines if line[0] != "-")
            if file is None:
                (file,) = (path for path in PACKAGE.glob("*.py") if old in path.read_text())
                source = file.read_text()
            assert source.count(old) == 1
            source = source.replace(old, new)
        assert file is not None
        assert f"camal_rl/{file.name}" in README.read_text()
        module = ModuleType(f"changed_{file.stem}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, str(tmp_path / file.name), "exec"), module.__dict__)
        return module

    return change


Change = Callable[[str], ModuleType]


@pytest.mark.slow
@pytest.mark.usefixtures("fake_engine")
def test_a_second_loss_takes_two_lines_and_a_measurement_one(
    changed: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = changed("weapon")
    (line,) = re.findall(r'`("weapon": .*)`\.$', README.read_text(), re.MULTILINE)
    source = inspect.getsource(monitor)
    before = '"dead_map_fraction": '
    assert source.count(before) == 1
    names: dict[str, Any] = {"__name__": "changed_monitor"}
    exec(source.replace(before, f"{line}, {before}"), names)
    monkeypatch.setattr(module, "Monitor", names["Monitor"])
    folder = module.train(module.Args(**vars(small_args(tmp_path, frame_size=(84, 84)))))
    logged = values_by_tag(folder)
    policy, value, entropy, camal, weapon, loss = (
        logged[f"losses/{name}"]
        for name in ("policy_loss", "value_loss", "entropy", "camal_loss", "weapon", "loss")
    )
    assert (weapon > 0).all()
    assert policy - 0.01 * entropy + 0.5 * value + camal + 0.1 * weapon == pytest.approx(loss, abs=1e-5)
    measured = logged["camal/weapon"]
    assert ((measured > 0) & (measured < 1)).all()


def test_the_actor_is_supervised_by_one_line(changed: Change) -> None:
    module = changed("agent.actor")
    torch.manual_seed(0)
    agent = ppo.Agent(4, (4, 52, 60))
    output = agent(torch.randint(256, (3, 4, 52, 60), dtype=torch.uint8))
    best = output.logits.max(dim=1).values
    expected = attention.class_activation_map(output.feature_maps, best)
    torch.testing.assert_close(module.critic_cam(agent, output), expected)
    assert not torch.allclose(attention.critic_cam(agent, output), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_engine")
def test_a_variant_takes_one_line_and_a_name(changed: Change, tmp_path: Path) -> None:
    module = changed('"ratio" else')
    options = vars(small_args(tmp_path)) | {"name": "ratio"}
    folder = module.train(module.Args(**options))
    assert folder == tmp_path / "Basic/ratio/seed1"
    losses = values_by_tag(folder)["losses/camal_loss"]
    assert ((losses >= 0) & (losses < 1)).all()
    assert losses.max() > 0
    (command,) = (block.code for block in blocks(README, "bash") if "--variants" in block.code)
    matrix = experiment.read_matrix(*experiment.parse_args(shlex.split(command)[3:]))
    assert matrix.variants == {"ratio": (), "weak": ("--camal-coef", "0.1")}
    assert len(experiment.cells(matrix)) == 8
