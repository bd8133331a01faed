"""Removal and insertion against agents whose value is known, and randomisation that must destroy the map."""

from pathlib import Path

import numpy as np
import pytest
import torch

from camal_rl import evaluate, ppo
from camal_rl.results import faithfulness, play
from camal_rl.results.faithfulness import SHARES


@pytest.fixture
def run(fake_engine: None, trained_folder: Path) -> play.TrainedRun:
    return play.load_run(trained_folder, None, torch.device("cpu"))


class Brightness(torch.nn.Module):
    """Stands in for the agent: its value is the brightness of a region, its policy two actions by that."""

    def __init__(self, region: np.ndarray, channel: int | None = None) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))  # tells the device
        self.region = torch.from_numpy(region)
        self.channel = slice(None) if channel is None else slice(channel, channel + 1)

    def forward(self, images: torch.Tensor) -> ppo.Output:
        value = (images[:, self.channel].double() * self.region).mean(dim=(1, 2, 3)).float()
        return ppo.Output(torch.stack((value, -value), dim=1), value, value, value)


def square(size: int) -> np.ndarray:
    region = np.zeros((20, 20), np.uint8)
    region[:size, :size] = 1
    return region


def sample_of(heat: np.ndarray, mask: np.ndarray, frames: int = 30) -> play.Sample:
    rng = np.random.default_rng(0)
    sample = play.Sample(frames, rng)
    for _ in range(frames):
        sample.offer(rng.integers(50, 255, (4, 20, 20), dtype=np.uint8), mask, heat, 0)
    return sample


def areas(result: dict, order: str, what: str = "value_change", reference: str = "black") -> tuple:
    return tuple(result[reference][order][how][what]["area"] for how in ("removal", "insertion"))


def test_attention_on_what_makes_the_value_is_faithful_and_elsewhere_is_not(run: play.TrainedRun) -> None:
    run = run._replace(agent=Brightness(square(10)))  # a quarter of the pixels makes the value
    heat = square(10).astype(np.float32)
    right = faithfulness.faithfulness(run, sample_of(heat, square(5)))
    # Removed in the order of importance the value falls to nothing over the first quarter, and stays there.
    removal, insertion = areas(right, "attention")
    assert removal == pytest.approx(1 - 0.25 / 2, abs=0.01)
    assert insertion == pytest.approx(0.25 / 2, abs=0.01)
    curve = right["black"]["attention"]["removal"]["value_change"]["curve"]
    assert (curve[0], curve[5], curve[-1]) == pytest.approx((0, 1, 1), abs=1e-6)
    wrong = faithfulness.faithfulness(run, sample_of(1 - heat, square(5)))
    assert areas(wrong, "attention") == pytest.approx((0.25 / 2, 1 - 0.25 / 2), abs=0.01)
    # Chance takes them in proportion; the mask covers a quarter of what matters.
    assert areas(right, "random") == pytest.approx((0.5, 0.5), abs=0.02)
    assert 0.5 < areas(right, "mask")[0] < removal
    # The action that was taken is that of a bright region: its probability falls with it, from 1 to 1/2.
    probability = areas(right, "attention", "action_probability")
    assert probability[0] < areas(wrong, "attention", "action_probability")[0]
    assert probability[1] > areas(wrong, "attention", "action_probability")[1]


def test_pixels_of_the_newest_frame_alone_can_be_replaced(run: play.TrainedRun) -> None:
    heat = square(10).astype(np.float32)
    sees_newest, sees_oldest = (run._replace(agent=Brightness(square(10), channel)) for channel in (3, 0))
    newest = faithfulness.faithfulness(sees_newest, sample_of(heat, square(5)), "newest")
    assert areas(newest, "attention")[0] == pytest.approx(1 - 0.25 / 2, abs=0.01)
    oldest = faithfulness.faithfulness(sees_oldest, sample_of(heat, square(5)), "newest")
    assert isinstance(areas(oldest, "attention")[0], play.Undefined)  # nothing it sees has changed
    everywhere = faithfulness.faithfulness(sees_oldest, sample_of(heat, square(5)), "all")
    assert areas(everywhere, "attention")[0] == pytest.approx(1 - 0.25 / 2, abs=0.01)


@pytest.mark.slow
def test_a_trained_agents_curves_begin_and_end_where_they_must(run: play.TrainedRun) -> None:
    sample = play.Sample(40, np.random.default_rng(0))
    play.play(run, play.episode_seeds(0, 10), evaluate.Args(run.folder), samples=[sample])
    done = []
    result = faithfulness.faithfulness(run, sample, done=lambda: done.append(1))
    assert len(done) == 6
    assert result["frames"] == 40
    for reference in ("black", "blurred"):
        ends = set()
        for order in ("attention", "mask", "random"):
            for how in ("removal", "insertion"):
                for what in ("value_change", "action_probability"):
                    curve = result[reference][order][how][what]["curve"]
                    assert len(curve) == len(SHARES)
                    whole, none = (curve[0], curve[-1]) if how == "removal" else (curve[-1], curve[0])
                    assert whole == pytest.approx(0 if what == "value_change" else 1, abs=1e-6)
                    ends.add((what, round(none, 6)))
        assert len(ends) == 2  # everything replaced is the same in whatever order


def test_without_a_target_in_view_there_is_nothing_to_measure(run: play.TrainedRun) -> None:
    empty = play.Sample(10, np.random.default_rng(0))
    for result in (faithfulness.faithfulness(run, empty), faithfulness.sanity(run, empty)):
        assert result == play.Undefined("no frame had a target in view")


@pytest.mark.slow
def test_randomising_the_layers_destroys_the_map_and_leaves_the_agent(run: play.TrainedRun) -> None:
    torch.manual_seed(5)
    agent = ppo.Agent(4, (4, 60, 68))
    run = run._replace(agent=agent)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    sample = play.Sample(40, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for _ in range(40):
        image = rng.integers(256, size=(4, 60, 68), dtype=np.uint8)
        sample.offer(image, np.ones((60, 68), np.uint8), np.zeros((4, 5), np.float32), 0)
    state = torch.get_rng_state()
    result = faithfulness.sanity(run, sample)
    assert torch.equal(torch.get_rng_state(), state)
    assert result["randomised"][0] == "nothing"
    assert result["rank_correlation"][0] == pytest.approx(1)
    assert abs(result["rank_correlation"][-1]) < 0.3
    assert result["frames"] == 40
    for name, value in agent.state_dict().items():
        assert torch.equal(value, before[name])
    again = faithfulness.sanity(run, sample)
    assert again == result


@pytest.mark.slow
def test_layers_are_randomised_from_the_output_on_one_more_each_time(
    run: play.TrainedRun, monkeypatch
) -> None:
    sample = play.Sample(5, np.random.default_rng(0))
    play.play(run, play.episode_seeds(0, 3), evaluate.Args(run.folder), samples=[sample])
    trained = {name: value.clone() for name, value in run.agent.state_dict().items()}
    changed = []
    real = play.TrainedRun.attend

    def attend(run, *arguments):
        state = run.agent.state_dict()
        # Biases are zeros when they are new, and may be here too: the weights tell.
        names = [
            name for name in state if name.endswith("weight") and not torch.equal(state[name], trained[name])
        ]
        changed.append({name.removesuffix(".weight") for name in names})
        return real(run, *arguments)

    monkeypatch.setattr(play.TrainedRun, "attend", attend)
    result = faithfulness.sanity(run, sample)
    layers = ["fc", "conv3", "conv2", "conv1"]
    cascade = [set(), *({"actor", "critic", *layers[:depth]} for depth in range(5))]
    assert changed == [set(), *(cascade * faithfulness.SANITY_DRAWS)]
    assert result["randomised"] == ("nothing", "heads", *layers)
    assert len(result["standard_deviation"]) == 6
    assert result["draws"][0] == faithfulness.SANITY_DRAWS


@pytest.mark.slow
def test_dead_maps_have_no_correlation(run: play.TrainedRun) -> None:
    with torch.no_grad():
        run.agent.critic.weight.fill_(-1.0)
        run.agent.fc.weight.abs_()
    sample = play.Sample(10, np.random.default_rng(0))
    play.play(run, play.episode_seeds(0, 3), evaluate.Args(run.folder), samples=[sample])
    result = faithfulness.sanity(run, sample)
    assert result["dead_map_fraction"][0] == 1
    assert all(value == play.Undefined("all maps were dead") for value in result["rank_correlation"])
    assert result["draws"] == [0] * 6
