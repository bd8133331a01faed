"""How well attention agrees with the masks while an agent trains: scalars and pictures, for every method."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from camal_rl import attention, camal, metrics
from camal_rl.masks import mask_weights
from camal_rl.results import media
from camal_rl.run.files import write_whole
from camal_rl.run.folder import RunFolder
from camal_rl.run.workers import Workers

DEAD_MEASUREMENTS = 10
DEAD_WARNING = (
    f"All attention maps were zero in {DEAD_MEASUREMENTS} measurements, and nothing pulls on a dead map. "
    "A critic of negative returns does this: try --attention magnitude, --reward scale or --no-clip-vloss."
)


class Monitor:
    """Measures attention on every few steps of a rollout; without gradients, and no random state is touched.

    Args:
        args: `ppo.Args`.
        run: where scalars and pictures go.
    """

    def __init__(self, args: Any, run: RunFolder) -> None:
        self.args = args
        self.run = run
        self._dead = 0  # measurements in a row in which all maps were

    @torch.no_grad()
    def measure(self, agent: Any, store: Any, workers: Workers) -> None:
        """Measure and log attention, if it is time.

        Args:
            agent: network with the interface of `attention.critic_cam`.
            store: `ppo.Rollout`.
            workers: threads that share the work.
        """
        every = self.args.measure_every
        draw = every > 0 and (self.run.iteration == 1 or self.run.passed(self.args.checkpoint_every))
        if not draw and (every == 0 or (self.run.iteration - 1) % every):
            return
        images = store.images[:: self.args.mask_stride].flatten(0, 1).to(next(agent.parameters()).device)
        masks = store.masks.flatten(0, 1).numpy()
        cam, weights, scores = self._maps(agent, images, masks, workers)
        heat = attention.normalize(cam)
        loss, alpha, beta, visible = camal.projected_loss(
            heat,
            weights,
            empty_mask=self.args.empty_mask,
            method="suppress" if self.args.method == "suppress" else "camal",
        )
        seen = visible.cpu().numpy()
        dead = attention.is_dead(cam)
        scalars = {"target_visible_fraction": float(seen.mean())}
        if seen.any():
            scalars |= {
                "loss": float(loss),
                "alpha": float(alpha[visible].mean()),
                "beta": float(beta[visible].mean()),
                "iou": float(scores[seen, 0].mean()),
                "iou_mask": float(scores[seen, 1].mean()),
                "dead_map_fraction": float(dead[visible].float().mean()),
            }
            self.run.status |= {name: f"{scalars[name]:.2f}" for name in ("alpha", "beta", "iou")}
        self.run.log({f"camal/{name}": value for name, value in scalars.items()})
        if draw:
            self._draw(images, masks, heat, seen)
        self._dead = self._dead + 1 if dead.float().mean() > 0.99 else 0
        if self._dead == DEAD_MEASUREMENTS and self.args.method != "vanilla":
            tqdm.write(DEAD_WARNING, file=sys.stderr)

    def _maps(
        self, agent: Any, images: Tensor, masks: np.ndarray, workers: Workers
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return maps (B, h, w), projected masks (B, 2, h, w), and the IoUs of map and mask (B, 2)."""
        replica = agent.replica(workers.dtype)
        method = self.args.attention
        whole = method in attention.RESAMPLING_METHODS or not workers.divide  # their noise has one generator
        parts = 1 if whole else workers.parts(len(masks), 32)

        @torch.no_grad()
        def agreement(images: Tensor, masks: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
            generator = torch.Generator(images.device).manual_seed(self.run.iteration)
            cam = attention.critic_cam(replica, replica(images), method, generator)
            maps = attention.normalize(cam).cpu().numpy()
            weights = mask_weights(masks, maps.shape[1:])
            seen = weights[:, 0].any(axis=(1, 2))
            scores = np.full((len(maps), 2), np.nan)  # NaN where there is no target
            scores[seen, 0] = metrics.iou(maps[seen], masks[seen])
            scores[seen, 1] = metrics.iou_mask(weights[seen], masks[seen])
            return cam, torch.from_numpy(weights).to(cam.device), scores

        results = workers.run(agreement, images.tensor_split(parts), np.array_split(masks, parts))
        cams, weights, scores = zip(*results, strict=True)
        return torch.cat(cams), torch.cat(weights), np.concatenate(scores)

    def _draw(self, images: Tensor, masks: np.ndarray, heat: Tensor, seen: np.ndarray) -> None:
        """Draw four frames from all over the rollout, with a target if there are as many."""
        order = np.argsort(~seen, kind="stable")[: max(4, int(seen.sum()))]
        strips = []
        for row in order[np.linspace(0, len(order) - 1, 4).astype(int)].tolist():
            frame, map_ = images[row, -1].cpu().numpy(), heat[row].cpu().numpy()
            step, game = divmod(row, self.args.num_envs)
            of = f"frame {step * self.args.mask_stride + 1} of {self.args.num_steps}"
            caption = f"step {self.run.step:,}, game {game + 1}, {of}"
            strips.append(media.attention_strip(frame, masks[row], {"": map_}, caption))
        picture = media.stack_strips(strips)
        self.run.log_image("camal/attention", picture)
        write_whole(self.run.path / "media" / "attention.png", media.encode_png(picture))
