"""Stage 4 of The Matrix: distillation of a frozen teacher into a student that needs few evaluations."""

import dataclasses

import jax
import ml_collections
import numpy as np

from jworld.diffusion import windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.systems.matrix import objective, stream_matching
from jworld.systems.matrix.objective import ObjectiveConfig
from jworld.systems.matrix.sampling import SampleConfig
from jworld.systems.matrix.stream_matching import MatchingConfig
from jworld.training import parts
from jworld.utils import errors

Loss = ObjectiveConfig | MatchingConfig
LOSSES: dict[str, type[Loss]] = {
    **dict.fromkeys(("clip", "windows", "consistency"), ObjectiveConfig),
    "distribution_matching": MatchingConfig,
}

#: Samplers that an evaluation compares: see `compared`.
MANY_STEPS, UNDISTILLED, STUDENT, STUDENT_TWICE = (
    "teacher in many steps",
    "teacher in few steps",
    "student",
    "student in twice the steps",
)
OF_TEACHER = (MANY_STEPS, UNDISTILLED)


def check(config: ml_collections.ConfigDict, cfg: Loss, sample: SampleConfig, *, frames: int) -> None:
    """Raise a `UserError` if other sections of the config do not fit stage 4; `frames` are those of an example."""
    if not config.init_from:
        raise errors.UserError("config.init_from is empty, expected a run of stage 3, which becomes the teacher")
    parts.check_trainable(config.optimizer.trainable, "patch_in/kernel")
    if isinstance(cfg, MatchingConfig):
        stream_matching.check(config, cfg, sample, frames)
        return
    has_ema = config.optimizer.get("ema_decay", 0) or config.optimizer.get("ema_rate", 0)
    if cfg.target == "ema" and not has_ema:
        raise errors.UserError(
            "config.loss.target is 'ema', which needs EMA weights: set config.optimizer.ema_decay, for example to 0.95"
        )
    if config.model.get("guidance_dim") is None and cfg.guidance[0] != cfg.guidance[1]:
        raise errors.UserError(
            f"config.loss.guidance is {cfg.guidance}, but the student has no guidance embedding: set "
            "config.model.guidance_dim, for example to 512, or make both scales equal"
        )


def compared(sample: SampleConfig, cfg: Loss) -> dict[str, SampleConfig]:
    """Return the sampler settings of teacher and student for a comparison, by name."""
    few = max(sample.groups, sample.num_steps)
    guidance = cfg.teacher_guidance if isinstance(cfg, MatchingConfig) else sum(cfg.guidance) / 2
    solved = dataclasses.replace(
        sample, solver="ddim", spacing="trailing", guidance=guidance, num_steps=cfg.solver_steps
    )
    return {
        MANY_STEPS: solved,
        UNDISTILLED: dataclasses.replace(solved, num_steps=few),
        STUDENT: dataclasses.replace(sample, num_steps=few),
        STUDENT_TWICE: dataclasses.replace(sample, num_steps=2 * few),
    }


def loss(
    model: CogVideoXTransformer,
    target: CogVideoXTransformer,
    batch: objective.Batch,
    key: jax.Array,
    cfg: objective.ObjectiveConfig,
    alphas: np.ndarray,
    level: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the scalar float32 loss, and the student's prediction of the clean latents [B, F, H, W, C].

    Args:
      model: the student with its teacher, see `parts`.
      target: the model that maps the earlier points of trajectories: the student, or its EMA.
      batch: inputs of `objective.example_of`, and "null_states", the text states of the empty prompt.
      key: source of all randomness.
      cfg: the objective.
      alphas: [1000], of the noise schedule.
      level: timestep as a share of a phase, from 0 to 1, instead of the draw.
    """
    time_key, noise_key, guidance_key = jax.random.split(key, 3)
    example = objective.example_of(batch)
    count, frames = example.latents.shape[:2]
    timestep = windows.sample_timesteps(
        time_key,
        count,
        cfg.groups,
        (frames - 1) // cfg.groups,
        phases_per_group=cfg.phases_per_group,
        lowest=cfg.stride,
        level=level,
    )
    draws = objective.Draws(timestep, jax.random.normal(noise_key, example.latents.shape))
    least, most = cfg.guidance
    guidance = jax.random.uniform(guidance_key, (count,), minval=least, maxval=most)
    how = objective.Distillation(cfg.phases, cfg.stride, guidance[:, None, None, None, None], cfg.distance, cfg.huber_c)
    path = objective.teacher_step(parts.of(model, parts.TEACHER), example, batch["null_states"], draws, alphas, how)
    embedded = guidance if model.cfg.guidance_dim is not None else None
    value = objective.consistency_loss(model, target, example, path, alphas, how, guidance=embedded)
    # In training nothing uses the prediction, and the compiler removes it.
    return value, objective.predict(model, example, draws, alphas, guidance=embedded)
