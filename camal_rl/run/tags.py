"""Tags of a training -> what TensorBoard says of them."""

from __future__ import annotations

TAGS = {
    "charts/episodic_return": "raw, unclipped return of each finished episode",
    "charts/episodic_length": "agent steps of each finished episode",
    "charts/SPS": "agent steps a second over all environments since the process started",
    "charts/learning_rate": "Adam's rate in this iteration",
    "charts/camal_coef": "lambda in this iteration, for Balanced alone",
    "charts/engine_restarts": "game engines that were replaced since the run began",
    "losses/loss": "the loss of Eq. 2, the sum of PPO's terms and CAMAL's with their coefficients",
    "losses/policy_loss": "PPO's clipped policy loss, without a coefficient",
    "losses/value_loss": "half of the squared error of the value, without a coefficient",
    "losses/entropy": "the policy's entropy, without a coefficient",
    "losses/camal_loss": "L_CAMAL of Eq. 2 without lambda; not for Vanilla",
    "losses/grad_norm": "L2 norm of all gradients before it is cut to --max-grad-norm",
    "losses/old_approx_kl": "how far the policy moved: mean of log(old / new)",
    "losses/approx_kl": "how far the policy moved: an estimate of the KL divergence of lower variance",
    "losses/clipfrac": "share of probability ratios beyond the clip range",
    "losses/explained_variance": "share of the returns' variance that the values before the update explain",
    "camal/alpha": "mean attention inside the mask (Eq. 1), over frames with a target in view",
    "camal/beta": "mean attention outside the mask (Eq. 1), over frames with a target in view",
    "camal/loss": "L_CAMAL as it would be trained on, beta - alpha by default",
    "camal/iou": "IoU of attention above 0.7 with the mask (Eq. 8), frames with a target only",
    "camal/iou_mask": "the IoU that the mask itself scores at attention's resolution, a yardstick and no "
    "bound: read `camal/iou` beside it",
    "camal/dead_map_fraction": "share of frames with a target whose map is all zero: after the ReLU of Eq. 3 "
    "a critic whose weights are all non-positive leaves nothing, and no loss can revive it",
    "camal/target_visible_fraction": "share of frames with a target in view",
    "camal/attention": "four frames: frame, mask, attention, attention over frame",
    "hyperparameters": "all options and the environment's definition",
}
"""Everything under `losses/` is the mean over the whole update, not its last minibatch. Everything under
`camal/` is measured after the update, on 128 frames of the rollout, in the same way for every method."""
