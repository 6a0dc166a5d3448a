"""The Matrix, stage 4: stream consistency distillation to a student with one network evaluation per window.

No trainer of this stage is published: docs/matrix.md lists the known facts and this implementation's choices. Variants
with "matching" learn on the student's own streams instead, by distribution matching: docs/distill.md.

Variants (`--config=configs/matrix_scm.py:<variant>`):
  (none)         the tiny model, distilled from that of stage 3; minutes on two CPU cores
  tiny_ema       the same with EMA weights as the target
  tiny_guidance  the same with a student conditioned on the guidance scale, drawn between 1 and 3
  2b             the published size, with the values of the published sampler: windows of two latents
  2b_live        the same with windows of one latent, as the published live server: a key is visible after 1 s
  matching       the tiny model by distribution matching
  2b_matching    the published size by distribution matching
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "tiny_ema", "tiny_guidance", "2b", "2b_live", "matching", "2b_matching")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b",)
STAGE_3 = "configs/matrix_swin_dpm.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # All other values are those of stage 3.
    config = run_config.load_recipe(f"{STAGE_3}:2b" if variant.startswith("2b") else STAGE_3).unlock()
    config.loss = {
        "kind": "consistency",
        "snr_shift": config.loss.snr_shift,
        "groups": 4,
        "phases_per_group": 1,
        "solver_steps": 40,
        "guidance": (6.0, 6.0),
        "distance": "huber",
        "huber_c": 1e-3,
        "target": "student",
        "teacher_dtype": "float32",
    }
    # The teacher is frozen, so its weights are saved only once.
    config.optimizer.trainable = "(?!(teacher|critic)/).*"
    config.data.clip.update({"text_dropout": 0.0, "control_dropout": 0.0})
    config.sample.rollout.update({"solver": "consistency", "num_steps": 4, "solver_steps": 40, "guidance": 1.0})
    if variant.startswith("2b"):
        _published(config, window_frames=1 if variant == "2b_live" else 2)
    else:
        _tiny(config)
    if variant == "tiny_ema":
        config.loss.target = "ema"
        config.optimizer.ema_decay = 0.95
    if variant == "tiny_guidance":
        config.loss.guidance = (1.0, 3.0)
        config.model.guidance_dim = 64
        config.sample.rollout.guidance_embedding_scale = 1.5
    if variant.endswith("matching"):
        _matching(config)
    config.lock()
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.init_from = "runs/matrix_swin_dpm"
    config.steps = 200
    config.loss.guidance = (1.5, 1.5)
    # The teacher of clean latents is close to the end of its path in 4 steps already: larger rates lead away from it.
    config.optimizer.learning_rate = 3e-5


def _published(config: ml_collections.ConfigDict, *, window_frames: int) -> None:
    config.init_from = "checkpoints/matrix-stage3"
    config.steps = 10_000
    config.sample.rollout.window_frames = window_frames
    # The given latent and the groups of a window.
    config.data.clip.window_frames = 1 + config.loss.groups * window_frames
    config.optimizer.learning_rate = 5e-6
    # The teacher has no gradients; bfloat16 halves its memory.
    config.loss.teacher_dtype = "bfloat16"


def _matching(config: ml_collections.ConfigDict) -> None:
    """Replace consistency by distribution matching; nobody publishes it for this model, so all values are choices."""
    is_tiny, size = config.loss.teacher_dtype == "float32", config.sample.rollout.window_frames
    config.loss = {
        "kind": "distribution_matching",
        "snr_shift": config.loss.snr_shift,
        "groups": 4,
        # All frames of the scored window are the student's.
        "slides": 4,
        "teacher_guidance": config.loss.guidance[0],
        # As in Self Forcing, but within each noise group.
        "score_levels": (0.02, 0.98),
        "shift": 1.0,
        "solver_steps": 40,
        "teacher_dtype": config.loss.teacher_dtype,
    }
    config.data.clip.window_frames = 1 + (config.loss.groups + config.loss.slides) * size
    # With 4 steps, steps of DDIM are jumps to the edges of 4 phases.
    config.sample.rollout = {
        "mode": "stream",
        "solver": "ddim",
        "num_steps": 4,
        "spacing": "trailing",
        "guidance": 1.0,
        "groups": 4,
        "window_frames": size,
    }
    # Values of Self Forcing, and higher rates for the tiny model.
    config.steps = 100 if is_tiny else 1000
    config.global_batch = config.global_batch if is_tiny else 64
    config.optimizer.update({"name": "adamw", "learning_rate": 5e-5 if is_tiny else 2e-6, "schedule": "constant"})
    config.optimizer.update({"warmup_steps": 0, "weight_decay": 0.0, "b1": 0.0, "b2": 0.999, "ema_decay": 0.99})
    config.critic = {
        "name": "adamw",
        "trainable": "critic/.*",
        "learning_rate": 1e-4 if is_tiny else 4e-7,
        "schedule": "constant",
        "weight_decay": 0.0,
        "b1": 0.0,
        "b2": 0.999,
        "clip_norm": 1.0,
        "updates": 5,
    }
    config.checkpoint.interval = 25 if is_tiny else 100
