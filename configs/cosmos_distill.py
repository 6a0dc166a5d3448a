"""Cosmos-Predict2 Video2World: distillation to four steps without guidance, by distribution matching (DMD2).

Variants (`--config=configs/cosmos_distill.py:<variant>`):
  (none)  the tiny base in assets/cosmos; minutes on two CPU cores
  2b      the published model, with the values of the published distillation of Cosmos-Predict2.5; docs/distill.md
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "2b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b",)
TEACHER = "configs/cosmos_video2world.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # Model and data are those of the teacher.
    config = run_config.load_recipe(f"{TEACHER}:{variant}" if variant else TEACHER).unlock()
    # The teacher is frozen, so its weights are saved only once; a critic has its own optimizer.
    config.optimizer.trainable = "(?!(teacher|critic)/).*"
    # Evenly spaced levels 1, 3/4, 1/2 and 1/4, shifted by 5, as published.
    config.sample.rollout = {
        "solver": "few_steps",
        "num_steps": 4,
        "shift": 5.0,
        "guidance": 0.0,
        "conditioning_frames": 1,
    }
    if variant == "2b":
        _published(config)
    else:
        _tiny(config)
    config.lock()
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.steps = 100
    config.loss = {
        "kind": "distribution_matching",
        # The tiny model is sampled without guidance.
        "teacher_guidance": 0.0,
        "conditioning_frames": (1, 2),
        "score_levels": (0.02, 0.98),
        "shift": 5.0,
        "sigma_floor": config.loss.sigma_floor,
        "teacher_dtype": "float32",
    }
    del config.optimizer.newton_schulz_dtype
    config.optimizer.update({"name": "adamw", "learning_rate": 5e-5, "schedule": "constant", "warmup_steps": 0})
    config.optimizer.update({"weight_decay": 0.01, "b1": 0.0, "b2": 0.999})
    config.critic = {"name": "adamw", "learning_rate": 1e-4, "b1": 0.0, "b2": 0.999, "clip_norm": 1.0, "updates": 4}
    config.checkpoint.interval = 25


def _published(config: ml_collections.ConfigDict) -> None:
    """Set the values of dmd2_trigflow_distill_cosmos_predict2_2B_bidirectional_TnI2V; docs/distill.md has the rest."""
    # Original: 30,000 iterations, of which every fifth updates the student and all others the critic.
    config.steps = 6000
    # Choice: the original's number of GPUs is not in its config; this is the batch of Self Forcing.
    config.global_batch = 64
    # Original: context parallel 4.
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 4}
    config.loss = {
        "kind": "distribution_matching",
        "teacher_guidance": 3.0,
        # As the post-training; the original has no conditioning frame in 60% of its examples.
        "conditioning_frames": (1, 2),
        "given_sigma": 1e-4,
        # Choice, as in Self Forcing.
        "score_levels": (0.02, 0.98),
        "shift": 5.0,
        # The teacher has no gradients; bfloat16 halves its memory.
        "teacher_dtype": "bfloat16",
    }
    # Choice: constant after the warm-up; the original's decays over 400,000 iterations, of which it runs 30,000.
    config.optimizer.update({"learning_rate": 1e-6, "schedule": "constant_with_warmup", "warmup_steps": 100})
    config.optimizer.update({"weight_decay": 0.01, "b1": 0.9, "b2": 0.999, "clip_norm": 1.0})
    config.critic = {
        "name": "adamw",
        "trainable": "critic/.*",
        "learning_rate": 2e-7,
        "schedule": "constant",
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.999,
        "clip_norm": 1.0,
        "updates": 4,
    }
