"""Distillation of Cosmos-Predict2 Video2World to few steps without guidance, by distribution matching.

The student samples a window from its conditioning frames and caption as in sampling, up to a random step, and the last
step has the gradient. Sources: DMD2, arXiv 2405.14867, section 4.5; the published recipe of Cosmos-Predict2.5,
`cosmos_predict2/_src/predict2/distill/`, whose GAN loss is off and absent here. docs/distill.md lists the differences.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import ml_collections

from jworld.diffusion import distribution_matching, few_steps, flow_matching, rectified_flow
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.systems.cosmos import objective
from jworld.systems.cosmos.sampling import SampleConfig
from jworld.training import parts, score_losses
from jworld.utils import errors, ranges

Draws = distribution_matching.Draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingConfig(distribution_matching.ScoreConfig):
    """Settings of the distillation (`config.loss`); the student's denoising steps are those of `sample.rollout`.

    Attributes:
      kind: "distribution_matching".
      teacher_guidance: scale g of the teacher's classifier-free guidance x + g (x - x_negative), as for sampling; its
        negative text is the zeros that replace dropped text in training. 0 disables it.
      conditioning_frames: smallest and largest number of conditioning latent frames, of every camera; drawn uniformly
        per example.
      given_sigma: noise level that the networks receive for conditioning frames, which enter clean.
      sigma_floor: as for the training of the teacher, for the loss of the critic.
    """

    kind: Literal["distribution_matching"] = "distribution_matching"
    teacher_guidance: ranges.Guidance = 3.0
    conditioning_frames: tuple[ranges.SizeOrZero, ranges.SizeOrZero] = (1, 2)
    given_sigma: ranges.PositiveOrZero = rectified_flow.GIVEN_SIGMA
    sigma_floor: ranges.Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        objective.check_conditioning_frames(self.conditioning_frames)


Loss = objective.ObjectiveConfig | MatchingConfig
LOSSES: dict[str, type[Loss]] = {"flow": objective.ObjectiveConfig, "distribution_matching": MatchingConfig}


def check(config: ml_collections.ConfigDict, sample: SampleConfig) -> None:
    """Raise a `UserError` if other sections of the config do not fit the distillation."""
    if not config.init_from:
        raise errors.UserError(
            "config.init_from is empty, expected a run or imported weights: student, teacher and critic start from them"
        )
    if sample.solver != "few_steps" or sample.guidance != 0:
        raise errors.UserError(
            f"config.sample.rollout has solver {sample.solver!r} and guidance {sample.guidance}, expected 'few_steps' "
            "and 0: the teacher's guidance is config.loss.teacher_guidance"
        )
    parts.check_trainable(config.optimizer.trainable, "patch_in/kernel")
    parts.check_critic(config, "distribution matching")


@dataclasses.dataclass(frozen=True)
class WindowMatching:
    """A `score_losses.Matching` of windows.

    Attributes:
      batch: arrays of `Cosmos.batch_spec`.
      draws: the random numbers.
      given: number of conditioning frames of each example, [B] int32.
      cfg: the settings.
      sample: the student's denoising steps.
      view_ids: ids of several cameras; () for one.
    """

    batch: objective.Batch
    draws: Draws
    given: jax.Array
    cfg: MatchingConfig
    sample: SampleConfig
    view_ids: tuple[int, ...] = ()

    def roll_out(self, model: CosmosTransformer) -> jax.Array:
        """See `Matching`: the noisy video before the last step."""
        constant = score_losses.without_gradients(model)

        def denoise(x: jax.Array, level: jax.Array) -> jax.Array:
            return self._clean(constant, x, jnp.broadcast_to(level, len(x)))

        return jax.lax.stop_gradient(few_steps.run_until(denoise, self.draws.noise, self._steps, self.draws.last_step))

    def repeat(self, model: CosmosTransformer, rollout: jax.Array) -> jax.Array:
        """See `Matching`."""
        level = jnp.asarray(self._steps.level)[self.draws.last_step]
        return self._clean(model, rollout, jnp.broadcast_to(level, len(rollout)))

    def made(self, rollout: jax.Array) -> None:
        """See `Matching`: only `repeat` makes them."""

    def score(self, network: CosmosTransformer, made: jax.Array, *, is_teacher: bool) -> score_losses.Scores:
        """See `Matching`; conditioning frames are known, so that their error is 0."""
        level = rectified_flow.per_frame(self.draws.level)
        noisy = flow_matching.add_noise(made, self.draws.score_noise, level)
        clean = self._clean(network, noisy, self.draws.level)
        if is_teacher and self.cfg.teacher_guidance:
            without_text = self._clean(network, noisy, self.draws.level, keep_text=jnp.zeros(len(made), bool))
            clean = rectified_flow.guided(clean, without_text, self.cfg.teacher_guidance)
        # Errors of clean latents in units of the velocity.
        return score_losses.Scores(clean, clean / level, made / level)

    @property
    def _steps(self) -> few_steps.Steps:
        return few_steps.all_steps(self.sample.num_steps, self.sample.shift)

    def _clean(
        self, model: CosmosTransformer, x: jax.Array, level: jax.Array, keep_text: jax.Array | None = None
    ) -> jax.Array:
        """Predict the clean window from a noisy one with levels [B]."""
        frames = self.batch["latent"].astype(jnp.float32)
        mask = objective.conditioning_mask(self.given, frames.shape[1], self.view_ids)
        network = objective.network_of(model, self.batch, mask, self.view_ids, keep_text=keep_text)
        given = rectified_flow.ConditioningFrames(frames, mask, self.cfg.given_sigma)
        return rectified_flow.denoise_flow(network, x, level, given)


def critic_loss(model: CosmosTransformer, how: WindowMatching) -> tuple[jax.Array, score_losses.Metrics]:
    """Return the loss of the critic on fresh windows of the student: the weighted squared error of the velocity."""
    weight = flow_matching.error_weights(how.draws.level, how.cfg.sigma_floor) if how.cfg.sigma_floor else None
    return score_losses.critic_loss(model, how, weight)


def matching(
    batch: objective.Batch,
    key: jax.Array,
    cfg: MatchingConfig,
    sample: SampleConfig,
    *,
    view_ids: tuple[int, ...] = (),
    level: jax.Array | None = None,
) -> WindowMatching:
    """Draw the random numbers of a loss; `level` replaces the noise levels of the scores."""
    given_key, key = jax.random.split(key)
    least, most = cfg.conditioning_frames
    shape = batch["latent"].shape
    draws = distribution_matching.draw(key, shape, sample.num_steps, cfg, level)
    given = jax.random.randint(given_key, shape[:1], least, most + 1)
    return WindowMatching(batch, draws, given, cfg, sample, view_ids)
