"""Playing trained agents: every episode to its end, on seeds of its own, recorded frame by frame."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, small_args

import camal_rl
from camal_rl import attention, camal, doom, evaluate, metrics, ppo
from camal_rl.errors import UserError
from camal_rl.game.definition import ENVS_DIR
from camal_rl.game.shift import SHIFTS, Shift
from camal_rl.results import play
from camal_rl.run import folder as run_folder

CPU = torch.device("cpu")


def settings(**options: object) -> play.Settings:
    return evaluate.Args(Path(), **options)  # type: ignore[arg-type]


@pytest.fixture
def run(fake_engine: None, trained_folder: Path) -> play.TrainedRun:
    """A run of 256 steps on the fake engine."""
    return play.load_run(trained_folder, None, CPU)


def test_an_agent_is_loaded_and_acts_with_its_attention(fake_engine: None, trained_folder: Path) -> None:
    assert dir(camal_rl) == ["__version__", "load", "register_envs"]
    agent, env = camal_rl.load(trained_folder, "cpu")
    observation, _ = env.reset(seed=1)
    torch.manual_seed(0)
    actions, maps = zip(*(agent.act(observation["image"]) for _ in range(50)), strict=True)
    assert len(set(actions)) > 1
    output, cam = agent.attend(observation["image"][None], torch.default_generator)
    assert agent.act(observation["image"], greedy=True)[0] == output.logits.argmax()
    np.testing.assert_array_equal(maps[0], attention.normalize(cam)[0].detach().numpy())
    env.step(actions[0])
    env.close()
    with pytest.raises(UserError, match=r"none holds no run"):
        camal_rl.load(trained_folder.parent / "none")


def test_seeds_are_distinct_outside_trainings_and_the_first_of_more(fake_engine: None) -> None:
    seeds = play.episode_seeds(0, 500)
    assert len(set(seeds)) == 500
    assert min(seeds) >= doom.EVALUATION_SEEDS
    assert max(seeds) < 2**32
    assert seeds[:100] == play.episode_seeds(0, 100)
    assert seeds[:100] != play.episode_seeds(1, 100)
    env = doom.DoomEnv("Basic", render_resolution=SMALL)
    drawn = []
    for seed in range(50):
        env.reset(seed=seed)
        drawn.append(env.state_dict()["episode_seed"])
    assert max(drawn) < doom.EVALUATION_SEEDS
    env.begin_episode(seeds[0])
    assert env.state_dict()["episode_seed"] == seeds[0]


def test_a_network_trained_on_a_gpu_in_tf32_is_played_here_in_fp32(run: play.TrainedRun) -> None:
    change_args("precision", "tf32")(run.folder)
    images = torch.randint(256, (2, 4, 52, 60), dtype=torch.uint8)
    assert torch.equal(run.agent(images).logits, play.load_run(run.folder, None, CPU).agent(images).logits)


def test_all_episodes_are_played_to_their_end_in_the_order_of_their_seeds(run: play.TrainedRun) -> None:
    seeds = play.episode_seeds(3, 13)
    ended = []
    episodes = play.play(run, seeds, settings(num_envs=4), keep=2, done=lambda: ended.append(1))
    assert [episode.seed for episode in episodes] == seeds
    assert len(ended) == 13
    for index, episode in enumerate(episodes):
        length = int(np.random.default_rng(episode.seed).integers(5, 13))  # what the fake engine plays
        assert len(episode.actions) == len(episode.rewards) == len(episode.values) == length
        assert episode.ending == ("truncated" if length % 2 == 0 else "terminated")
        assert episode.total == sum(3.0 if action == 1 else -1.0 for action in episode.actions)
        assert [frame["step"] for frame in episode.agreement] == [
            step for step in range(length) if step % 4 != 3
        ]
        assert len(episode.heats) == (length if index < 2 else 0)


def test_what_is_recorded_of_a_frame_is_what_the_agent_made_of_it(run: play.TrainedRun) -> None:
    seeds = play.episode_seeds(0, 2)
    episode = play.play(run, seeds, settings(), keep=2)[1]
    env = run.env()
    env.begin_episode(seeds[1])
    frames, masks, heats = iter(episode.agreement), [], []
    for step, action in enumerate(episode.actions):
        output, cam = run.attend(env.image[None], torch.Generator())
        heat = attention.normalize(cam)
        assert episode.values[step] == pytest.approx(output.value.item(), rel=1e-4)
        np.testing.assert_allclose(episode.heats[step], heat[0].detach(), atol=1e-3)
        if env.mask.any():
            frame = next(frames)
            kept = episode.heats[step][None]
            pixels = attention.upsample(torch.from_numpy(kept), (120, 160))
            alpha, beta = camal.alpha_beta(pixels, torch.from_numpy(env.mask[None]))
            assert (frame["alpha"], frame["beta"]) == pytest.approx((alpha.item(), beta.item()), abs=1e-5)
            assert frame["iou"] == frame["iou_gradcam"] == metrics.iou(kept, env.mask[None])[0]
            assert frame["dead_map_fraction"] == attention.is_dead(cam).item()
            masks.append(env.mask.copy())
            heats.append(kept[0])
        env.advance(action)
    assert next(frames, None) is None
    play.add_constant_iou([episode])
    mean = np.mean(heats, axis=0)
    constant = (mean - mean.min()) / (mean.max() - mean.min())
    expected = metrics.iou(np.broadcast_to(constant, (len(masks), *mean.shape)), np.array(masks))
    assert episode.column("iou_constant").tolist() == pytest.approx(expected.tolist(), abs=0.01)
    assert expected.any()


@pytest.mark.slow
def test_actions_are_sampled_from_the_policy_and_greedy_takes_the_likeliest(run: play.TrainedRun) -> None:
    with torch.no_grad():
        run.agent.actor.weight.zero_()
        run.agent.actor.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    seeds = play.episode_seeds(0, 60)
    actions = [action for episode in play.play(run, seeds, settings()) for action in episode.actions]
    shares = np.bincount(actions, minlength=4) / len(actions)
    assert abs(shares - [0.1, 0.2, 0.3, 0.4]).max() < 4 * np.sqrt(0.25 / len(actions))
    greedy = play.play(run, seeds[:5], settings(greedy=True))
    assert {action for episode in greedy for action in episode.actions} == {3}


def test_the_same_episodes_are_the_same_whatever_plays_beside_them(run: play.TrainedRun) -> None:
    seeds = play.episode_seeds(0, 6)
    all_six = play.play(run, seeds, settings(num_envs=3), keep=6)
    first = play.play(run, seeds[:4], settings(num_envs=3), keep=6)
    for episode, other in zip(first, all_six, strict=False):
        assert episode.actions == other.actions
        assert episode.values == other.values
        np.testing.assert_array_equal(episode.heats, other.heats)
    others = play.play(run, seeds, settings(seed=1, num_envs=3))
    assert [episode.actions for episode in others] != [episode.actions for episode in all_six]


def test_how_many_games_are_really_played_changes_no_number(run: play.TrainedRun) -> None:
    seeds = play.episode_seeds(0, 3)
    (alone,) = play.play(run, seeds[:1], settings(num_envs=8), keep=1)  # one game in a batch of eight
    among = play.play(run, seeds, settings(num_envs=8), keep=1)[0]
    assert alone.values == among.values
    assert alone.actions == among.actions


def test_randomness_for_one_purpose_is_not_that_for_another() -> None:
    purposes = [(play.EPISODES,), (play.ACTIONS, 0), (play.DISTURBANCE, 0), (play.ACTIONS, 2), (play.SAMPLE,)]
    drawn = [play.generator(3, *purpose).integers(2**63) for purpose in purposes]
    assert len(set(drawn)) == len(purposes)
    assert drawn[0] == play.generator(3, play.EPISODES).integers(2**63)


@pytest.mark.slow
@pytest.mark.parametrize("method", attention.METHODS)
def test_every_map_that_can_be_trained_can_be_played(fake_engine, trained_folder, method) -> None:
    change_args("attention", method)(trained_folder)
    run = play.load_run(trained_folder, None, CPU)
    assert run.method == method
    (episode,) = play.play(run, play.episode_seeds(0, 1), settings(), keep=1)
    assert max(heat.max() for heat in episode.heats) == 1
    chosen = play.load_run(trained_folder, None, CPU, method="hirescam")
    assert chosen.method == "hirescam"


def test_the_papers_map_is_measured_beside_any_other(fake_engine, tmp_path) -> None:
    folder = ppo.train(small_args(tmp_path, total_timesteps=64, attention="magnitude"))
    seeds = play.episode_seeds(0, 2)
    own, papers = (
        play.play(play.load_run(folder, None, CPU, method), seeds, settings())
        for method in ("magnitude", "gradcam")
    )
    for episode, other in zip(own, papers, strict=True):
        assert episode.actions == other.actions
        assert episode.column("iou_gradcam").tolist() == other.column("iou").tolist()
        assert episode.column("iou").tolist() != other.column("iou").tolist()


def test_an_episode_too_long_is_cut_and_says_so(run: play.TrainedRun) -> None:
    episodes = play.play(run, play.episode_seeds(0, 8), settings(max_steps=6))
    lengths = [int(np.random.default_rng(episode.seed).integers(5, 13)) for episode in episodes]
    assert [len(episode.actions) for episode in episodes] == [min(length, 6) for length in lengths]
    assert [episode.ending == "cut" for episode in episodes] == [length > 6 for length in lengths]


def test_a_sample_holds_frames_with_a_target_each_as_likely_as_the_others() -> None:
    counts = np.zeros(20)
    for seed in range(600):
        sample = play.Sample(5, np.random.default_rng(seed))
        for frame in range(20):
            sample.offer(np.full((1, 2, 2), frame, np.uint8), np.zeros((2, 2)), np.zeros((1, 1)), frame)
        assert len({frame.action for frame in sample.frames}) == 5
        for frame in sample.frames:
            assert frame.image.max() == frame.action
            counts[frame.action] += 1
    assert abs(counts / 600 - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 600)


def test_a_disturbance_changes_what_the_agent_sees_and_not_the_game(run: play.TrainedRun) -> None:
    seen = []

    def stamp(frame: np.ndarray, rng: np.random.Generator) -> None:
        frame[0, 0] = 255
        frame[0, 1] = rng.integers(256)

    sample = play.Sample(1000, np.random.default_rng(0))
    seeds = play.episode_seeds(0, 3)
    shifted = play.play(run, seeds, settings(), shift=Shift("a stamp", disturb=stamp), samples=[sample])
    for frame in sample.frames:
        seen.append(tuple(frame.image[:, 0, 1]))
        assert (frame.image[:, 0, 0] == 255).all()  # in every frame of the stack
    assert len(set(seen)) > 3
    lengths = [int(np.random.default_rng(seed).integers(5, 13)) for seed in seeds]
    assert [len(episode.actions) for episode in shifted] == lengths


def damage_args(folder: Path) -> None:
    (folder / "args.json").write_text('{"run": {}}')


def truncate(folder: Path) -> None:
    file = folder / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])


def foreign(folder: Path) -> None:
    run_folder.save_checkpoint(folder / "checkpoint.pt", {"state_dict": {}})


def code(folder: Path) -> None:
    torch.save({"version": run_folder.CHECKPOINT_VERSION, "agent": pytest.fail}, folder / "checkpoint.pt")


def change_args(name: str, value: object = None):
    """Return what gives args.json another value under a name, or, without one, takes the name away."""

    def harm(folder: Path) -> None:
        path = folder / "args.json"
        content = json.loads(path.read_text())
        group = next(group for group in content.values() if isinstance(group, dict) and name in group)
        group[name] = value
        if value is None:
            del group[name]
        path.write_text(json.dumps(content))

    return harm


def change_weights(change):
    def harm(folder: Path) -> None:
        checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
        change(checkpoint["agent"])
        run_folder.save_checkpoint(folder / "checkpoint.pt", checkpoint)

    return harm


flat = change_weights(lambda weights: weights.update({"conv1.weight": torch.zeros(3)}))
diverged = change_weights(lambda weights: weights["actor.weight"].fill_(float("nan")))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "args.json").unlink(), "holds no run"),
        (lambda folder: (folder / "args.json").write_text("{"), "can't read"),
        (lambda folder: (folder / "args.json").write_text("[]"), "is not a run of this camal_rl"),
        (damage_args, "is not a run of this camal_rl"),
        (lambda folder: (folder / "checkpoint.pt").unlink(), "has no checkpoint"),
        (truncate, "is damaged or no checkpoint"),
        (foreign, "does not belong to args.json"),
        (lambda folder: torch.save(torch.zeros(3), folder / "checkpoint.pt"), "is damaged or no checkpoint"),
        (change_args("attention", "telepathy"), "does not belong to args.json: attention 'telepathy'"),
        (change_args("seed"), "does not belong to args.json: 'seed'"),
        (flat, "does not belong to args.json"),
        (diverged, "the network holds NaN or infinity, so its training diverged"),
        (code, "is damaged or no checkpoint"),
        (change_args("frame_size", [84, 84]), "does not belong to args.json"),
        (
            change_args("target_names", ["DoomImp"]),
            "trained on another environment: target_names was .*DoomImp",
        ),
    ],
)
def test_a_run_that_cannot_be_played_is_refused(trained_folder, harm, words) -> None:
    harm(trained_folder)
    with pytest.raises(UserError, match=words):
        play.load_run(trained_folder, None, CPU)


def test_an_environment_of_ones_own_is_given_by_its_file(fake_engine, tmp_path) -> None:
    own = tmp_path / "Mine.toml"
    own.write_bytes((ENVS_DIR / "Basic.toml").read_bytes())
    folder = ppo.train(small_args(tmp_path, total_timesteps=64, env=str(own)))
    shutil.rmtree(folder / "environment")  # as in runs of earlier versions
    with pytest.raises(UserError, match="no environment named 'Mine'"):
        play.load_run(folder, None, CPU)
    run = play.load_run(folder, own, CPU)
    assert run.title == "Mine, camal seed 1"
    assert run.steps == 64
    with pytest.raises(UserError, match=r"another environment: scenario was basic\.cfg, now defend_the_line"):
        play.load_run(folder, ENVS_DIR / "DefendLine.toml", CPU)
    own.write_text(own.read_text().replace("The monster", "This monster"))  # another reason, the same game
    assert play.load_run(folder, own, CPU).steps == 64


def test_another_vizdoom_is_said(trained_folder, capsys) -> None:
    change_args("vizdoom", "0.0")(trained_folder)
    play.load_run(trained_folder, None, CPU)
    assert "trained with ViZDoom 0.0, and this is" in capsys.readouterr().err


@pytest.mark.engine
def test_evaluation_on_the_engine_is_the_same_twice(trained_folder: Path) -> None:
    run = play.load_run(trained_folder, None, CPU)
    seeds = play.episode_seeds(0, 3)
    few = settings(num_envs=2, max_steps=20)
    for shift in (None, SHIFTS["noise"], SHIFTS["hud"]):
        first, second = (play.play(run, seeds, few, shift=shift) for _ in range(2))
        assert [episode.actions for episode in first] == [episode.actions for episode in second]
        assert [episode.values for episode in first] == [episode.values for episode in second]
        assert [episode.column("iou").tolist() for episode in first] == [
            episode.column("iou").tolist() for episode in second
        ]


def test_the_time_limit_of_training_holds_in_evaluation(fake_engine, tmp_path) -> None:
    folder = ppo.train(small_args(tmp_path, total_timesteps=64, max_episode_steps=5))
    episodes = play.play(play.load_run(folder, None, CPU), play.episode_seeds(0, 5), settings())
    lengths = [int(np.random.default_rng(episode.seed).integers(5, 13)) for episode in episodes]
    assert [len(episode.actions) for episode in episodes] == [5] * 5
    assert [episode.ending for episode in episodes] == [
        "terminated" if length == 5 else "truncated" for length in lengths
    ]
    assert json.loads((folder / "args.json").read_text())["args"]["max_episode_steps"] == 5


class Taken(torch.nn.Module):
    """An agent as somebody else's network: its outputs, and nothing of its layers."""

    def __init__(self, agent: ppo.Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output = self.agent(images)
        return output.logits, output.value, output.feature_maps


@pytest.mark.parametrize("method", ["gradcam", "magnitude", "diffgradcam"])
def test_an_agent_from_elsewhere_is_played_as_one_trained_here(
    run: play.TrainedRun, tmp_path: Path, method: str
) -> None:
    folder = tmp_path / "Basic" / "sb3" / "seed4"
    looks = {"frame_size": (52, 60), "render_resolution": SMALL}
    adopted = play.adopt(Taken(run.agent), folder, 512, **looks)  # type: ignore[arg-type]
    assert (adopted.title, adopted.method, adopted.steps) == ("Basic, sb3 seed 4", "magnitude", 512)
    assert adopted.action_names == run.action_names
    args = evaluate.Args(folder, episodes=3, faithfulness_frames=5, video_episodes=1, attention=method)
    scores, files = evaluate.evaluate(args, adopted)
    assert (scores["env"], scores["name"], scores["seed"], scores["steps"]) == ("Basic", "sb3", 4, 512)
    assert scores["settings"]["attention"] == method
    args.run, args.output = run.folder, tmp_path / "own"
    own, of_own = evaluate.evaluate(args)
    assert [path.relative_to(folder) for path in files] == [path.relative_to(args.output) for path in of_own]
    assert scores.keys() == own.keys()
    assert scores["episodes"] == own["episodes"]
    for name in ("return", "alpha", "iou", "iou_gradcam", "iou_constant", "dead_map_fraction"):
        assert scores[name] == pytest.approx(own[name], abs=1e-5)
    assert scores["faithfulness"] == own["faithfulness"]
    assert "sanity" in scores["undefined"]


def test_an_agent_from_elsewhere_must_fit_its_folder_and_its_environment(
    run: play.TrainedRun, tmp_path: Path
) -> None:
    network, looks = Taken(run.agent), {"frame_size": (52, 60), "render_resolution": SMALL}
    for folder in ("sb3", "Basic/sb3/seed01"):  # a report would not find the second
        with pytest.raises(UserError, match=rf"{folder}: should end in ENVIRONMENT/NAME/seedK"):
            play.adopt(network, tmp_path / folder, 512, **looks)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no environment named 'Nowhere'"):
        play.adopt(network, tmp_path / "Nowhere" / "sb3" / "seed1", 512, **looks)  # type: ignore[arg-type]
    network.agent.actor = torch.nn.Linear(512, 2)
    with pytest.raises(UserError, match=r"shapes \(1, 2\), \(1,\), .* needed are logits \(1, 4\)"):
        play.adopt(network, tmp_path / "Basic" / "sb3" / "seed1", 512, **looks)  # type: ignore[arg-type]
