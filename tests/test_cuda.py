"""On a CUDA GPU: the numbers of the CPU, trainings that go on to the same bits, and mistakes in one line."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from conftest import ROOT, SMALL, assert_same, small_args
from test_attention import SmoothNetwork, assert_relative, parameter_gradients, seeded
from test_evaluate import args as evaluation
from test_ppo import checkpoint_of, stop_after
from torch import Tensor, nn

from camal_rl import evaluate, ppo
from camal_rl.attention import METHODS, POOLED_METHODS, class_activation_map, normalize
from camal_rl.camal import camal_loss

CUDA = "cuda"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def computed_as_in_fp32() -> Iterator[None]:
    """Without TF32, and repeatably, until a training chooses; afterwards as torch starts with."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = False, False, True
    yield
    cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = False, True, False


@pytest.fixture
def noise_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same seed CUDA draws other numbers: the noise of `smoothgrad` is the CPU's on both devices.

    Its noise by CUDA's own generator takes part where trainings are resumed.
    """
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, device, **how: real(*shape, **how).to(device))


def assert_like_the_cpus(found: dict[str, dict[str, Tensor]], tolerance: float) -> None:
    """Compare tensors by name, of each device."""
    for name, expected in found["cpu"].items():
        assert_relative(found[CUDA][name].detach().cpu(), expected.detach(), tolerance)


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_maps_by_automatic_differentiation_are_the_cpus(method, noise_of_the_cpu):
    frames = torch.rand(5, 2, 6, 6, dtype=torch.float64, generator=seeded()) - 0.5
    mask = torch.rand(5, 12, 12, generator=seeded()) < 0.3
    torch.manual_seed(0)
    original, found = SmoothNetwork(), {}
    for device in ("cpu", CUDA):
        network = copy.deepcopy(original).to(device)
        maps, target = network.maps(frames.to(device)), network.target(method)
        cam = class_activation_map(maps, target, method, generator=seeded())
        loss = camal_loss(normalize(cam), mask.to(device))
        found[device] = {"cam": cam, "loss": loss, **parameter_gradients(loss, network)}
    assert found["cpu"]["convolution.weight"].abs().max() > 0
    assert_like_the_cpus(found, 1e-10)


@needs_cuda
@pytest.mark.parametrize(
    ("method", "dtype", "tolerance"),
    [
        *((method, torch.float32, 1e-4) for method in METHODS),
        *((method, torch.float64, 1e-10) for method in POOLED_METHODS),  # agents compute the others in fp32
    ],
)
def test_the_loss_its_terms_and_all_gradients_of_an_agent_are_the_cpus(
    method, dtype, tolerance, tmp_path, noise_of_the_cpu
):
    torch.manual_seed(25)  # of no nearly dead map, whose rounding min-max would magnify
    original = ppo.Agent(4, (4, 52, 60)).to(dtype)
    draw = partial(torch.rand, dtype=dtype, generator=seeded())
    images = torch.randint(256, (8, 4, 52, 60), dtype=torch.uint8, generator=seeded())
    of_steps = (draw(8) - 2, draw(8), draw(8), draw(8) - 0.5)  # logprobs, values, returns, advantages
    weights = draw(8, 2, *original.map_shape[1:]) / torch.tensor([6, 12]).view(2, 1, 1)
    batch = ppo.Batch(images, torch.arange(8) % 4, *of_steps, weights, supervised=torch.ones(8) / 8)
    found = {}
    for device in ("cpu", CUDA):
        agent = copy.deepcopy(original).to(device)
        on_device = ppo.Batch._make(field.to(device) for field in batch)
        means = ppo.losses(agent, on_device, small_args(tmp_path, attention=method), 0.5, seeded())
        for term in ("loss", "camal_loss"):
            gradients = parameter_gradients(means[term], agent)
            means |= {f"{term}, {layer}": gradient for layer, gradient in gradients.items()}
        found[device] = means
    assert found["cpu"]["camal_loss, conv1.weight"].abs().max() > 0
    assert_like_the_cpus(found, tolerance)


@needs_cuda
def test_vanilla_updates_are_cleanrls(fake_engine, tmp_path, monkeypatch):
    """Two in a row, in a training, which makes the optimizer and the workers."""
    real, twins = ppo.update, []

    def both(agent, optimizer, batch, args, generator, workers):
        if not twins:
            twins.append(copy.deepcopy(agent))
            # With so large an epsilon steps are as long as gradients. Else Adam makes them all equally long,
            # and the sign of one whose gradient nearly cancels out depends on rounding.
            optimizer.param_groups[0]["eps"] = 1.0
            twins.append(torch.optim.Adam(twins[0].parameters(), eps=1.0))
        reference, adam = twins
        before = copy.deepcopy(reference)
        adam.param_groups[0]["lr"] = float(optimizer.param_groups[0]["lr"])
        same = torch.Generator(generator.device)
        same.set_state(generator.get_state())
        value_losses = []
        orders = [torch.randperm(64, generator=same, device=same.device) for _ in range(2)]
        for index in torch.cat(orders).to(batch.images.device).split(32):
            images, actions, logprobs, values, returns, advantage = (field[index] for field in batch[:6])
            output = reference(images)
            policy = torch.distributions.Categorical(logits=output.logits)
            ratio = (policy.log_prob(actions) - logprobs).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.9, 1.1)).mean()
            clipped = values + torch.clamp(output.value - values, -0.1, 0.1)
            value_loss = 0.5 * torch.max((output.value - returns) ** 2, (clipped - returns) ** 2).mean()
            loss = policy_loss - 0.01 * policy.entropy().mean() + 0.5 * value_loss
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            adam.step()
            value_losses.append(value_loss.item())
        means = real(agent, optimizer, batch, args, generator, workers)
        networks = (agent, reference, before)
        for mine, theirs, old in zip(*(network.parameters() for network in networks), strict=True):
            assert (mine - theirs).norm() <= 1e-3 * (theirs - old).norm()
        assert len(set(value_losses)) == 4
        assert means["value_loss"] == pytest.approx(sum(value_losses) / 4, rel=1e-4)
        return means

    monkeypatch.setattr(ppo, "update", both)
    ppo.train(small_args(tmp_path, method="vanilla", device=CUDA, learning_rate=1.0), stop_after(2))
    assert twins


@needs_cuda
def test_updates_in_tf32_and_bf16_are_close_to_that_in_fp32(fake_engine, tmp_path, monkeypatch):
    """Of the same agent on the same rollout, by LayerCAM, in which no sum cancels to a nearly dead map.

    With other seeds, on a CPU, bf16 changed no loss by more than 0.005 and the gradient's norm by 4 %.
    """
    real, rollouts, found = ppo.update, [], {}

    def update(agent, optimizer, batch, *others):
        rollouts.append(ppo.Batch._make(field.clone() for field in batch))
        before = copy.deepcopy(agent)
        means = real(agent, optimizer, rollouts[0], *others)
        pairs = zip(agent.parameters(), before.parameters(), strict=True)
        found[precision] = dict(means), torch.cat([(new - old).flatten() for new, old in pairs])
        return means

    monkeypatch.setattr(ppo, "update", update)
    for precision in ("fp32", "tf32", "bf16"):
        options = {"name": precision, "precision": precision, "attention": "layercam"}
        ppo.train(small_args(tmp_path, device=CUDA, **options), stop_after(1))
    exact, exact_step = found["fp32"]
    for precision, tolerance in (("tf32", 0.01), ("bf16", 0.02)):
        means, step = found[precision]
        assert means == pytest.approx(exact, rel=5 * tolerance, abs=tolerance), precision
        assert torch.cosine_similarity(step, exact_step, dim=0) > 0.9  # NaN is not


@needs_cuda
@pytest.mark.engine
@pytest.mark.parametrize(
    ("method", "attention", "games"),
    [("camal", "gradcam", 4), ("balanced", "magnitude", 2), ("balanced", "smoothgrad", 2)],
)
def test_resuming_gives_the_bits_of_a_run_that_was_not_interrupted(tmp_path, method, attention, games):
    """Learning rate and lambda, balanced in iterations 1 and 5, change: nothing may keep the earlier ones."""
    options = {
        "device": CUDA, "method": method, "attention": attention, "precision": "auto", "reward": "scale",
        "num_envs": games, "torch_threads": games, "play_in": "processes", "num_steps": 64 // games,
        "total_timesteps": 384,
    }  # fmt: skip
    straight = ppo.train(small_args(tmp_path / "straight", **options))
    ppo.train(small_args(tmp_path / "stopped", **options), stop_after(4))
    resumed = ppo.train(small_args(tmp_path / "stopped", **options))
    assert checkpoint_of(straight)["iteration"] == 6
    assert_same(*map(checkpoint_of, (straight, resumed)))


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_of_the_gpu_is_evaluated_on_both_devices(fake_engine, tmp_path, precision):
    """In fp32 to the same returns; in bf16 an action can be another, as each device rounds in its own way."""
    options = {"device": CUDA, "precision": precision, "attention": "layercam"}
    folder = ppo.train(small_args(tmp_path / "run", **options))
    (on_gpu, files), (on_cpu, _) = (
        evaluate.evaluate(evaluation(folder, device=device, output=tmp_path / name))
        for name, device in (("gpu", CUDA), ("cpu", "cpu"))
    )
    assert on_gpu["settings"]["device"] == CUDA
    assert tmp_path / "gpu" / "scores.json" in files
    assert on_gpu["length"] == on_cpu["length"]  # the fake game's episodes are as long, whatever one does
    if precision == "fp32":
        assert on_gpu["return"] == on_cpu["return"]
        for name in ("alpha", "beta", "iou"):
            assert on_gpu[name] == pytest.approx(on_cpu[name], abs=0.01), name


def trained(*options: str, start: str = "", **environment: str) -> tuple[int, list[str]]:
    """A training's exit code, and the lines that tell of a mistake; `start` is Python that it begins with."""
    script = f"import runpy\n{start}\nrunpy.run_module('camal_rl.ppo', run_name='__main__', alter_sys=True)"
    command, environ = [sys.executable, "-c", script, *options], os.environ | environment
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("camal_rl: ")]


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_2(tmp_path):
    code, (line,) = trained("--device", "cuda", "--runs-dir", str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert code == 2
    assert line.startswith("camal_rl: --device cuda: not usable here (")
    assert line.endswith("Choose cpu.")
    assert list(tmp_path.iterdir()) == []


LITTLE_MEMORY = """
import torch
whole = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(3 * 2**25 / whole)
"""


@needs_cuda
@pytest.mark.engine
def test_too_little_memory_on_the_gpu_is_one_line_and_exit_code_2(tmp_path):
    """96 MiB hold an agent and 512 frames, but not their activations as well."""
    size = ("--num-envs", "2", "--num-steps", "256", "--num-minibatches", "1", "--total-timesteps", "512")
    options = ("--device", CUDA, "--precision", "fp32", "--render-resolution", SMALL)
    code, (line,) = trained(*options, *size, "--runs-dir", str(tmp_path), start=LITTLE_MEMORY)
    assert code == 2
    assert line.startswith("camal_rl: out of memory: choose a smaller --num-envs")
    assert not list(tmp_path.rglob("checkpoint.pt"))
