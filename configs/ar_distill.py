"""WorldPlay: distillation of the autoregressive model into one that needs few denoising steps per chunk.

Nobody publishes a trainer of these weights: docs/distill.md says what is known and what was chosen here.

Variants (`--config=configs/ar_distill.py:<variant>`):
  (none)  the tiny model, distilled from the starter weights by consistency; minutes on two CPU cores
  8b      the published model, distilled from the published autoregressive weights by consistency
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "8b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("8b",)
TEACHER = "configs/ar_mem.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # Model, data and clips are those of the teacher.
    config = run_config.load_recipe(f"{TEACHER}:{variant}" if variant else TEACHER).unlock()
    # The teacher is frozen, so its weights are saved only once.
    config.optimizer.trainable = "(?!(teacher|critic)/).*"
    config.optimizer.ema_decay = 0.99
    config.sample.rollout.update({"num_steps": 4, "shift": 5.0, "guidance": 1.0})
    if variant == "8b":
        _published(config)
    else:
        _tiny(config)
    config.lock()
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.steps = 300
    config.optimizer.learning_rate = 2e-4
    config.loss = {
        "kind": "consistency",
        "shift": 5.0,
        "solver_steps": 48,
        # The tiny model is trained without dropped captions.
        "teacher_guidance": 1.0,
        "noisy_context": 0.5,
        "memory_times": (1, 400),
        "distance": "l2",
        "teacher_dtype": "float32",
    }


def _published(config: ml_collections.ConfigDict) -> None:
    config.init_from = "checkpoints/worldplay-ar"
    config.steps = 3000
    config.global_batch = 64
    # The prompt is needed: the teacher's guidance contrasts it with the negative one.
    config.data.clip.text_dropout = 0.0
    # Whole clips from the first step: the weights are trained.
    config.data.clip.curriculum = ((0, 160),)
    config.optimizer.update({"name": "adamw", "learning_rate": 2e-6, "schedule": "constant_with_warmup"})
    config.optimizer.update({"warmup_steps": 100, "weight_decay": 0.0, "b1": 0.9, "b2": 0.95})
    config.loss = {
        "kind": "consistency",
        "shift": 5.0,
        "solver_steps": 48,
        # The scale of the published rollout.
        "teacher_guidance": 6.0,
        "noisy_context": 0.5,
        "memory_times": (16, 500),
        "distance": "l2",
        "huber_c": 1e-3,
        # The teacher has no gradients; bfloat16 halves its memory.
        "teacher_dtype": "bfloat16",
    }
