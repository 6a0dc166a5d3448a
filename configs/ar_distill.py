"""WorldPlay: distillation of the autoregressive model into one that needs few denoising steps per chunk.

Nobody publishes a trainer of these weights: docs/distill.md says what is known and what was chosen here.

Variants (`--config=configs/ar_distill.py:<variant>`):
  (none)      the tiny model, distilled from the starter weights by consistency; minutes on two CPU cores
  forcing     context forcing of that student: it learns on its own rollouts with memory
  shortcut    in place of consistency: the tiny model learns large steps from its own small ones, without a teacher
  8b          the published model, distilled from the published autoregressive weights by consistency
  8b_forcing  context forcing of that student, with the scores of the published bidirectional model
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "forcing", "shortcut", "8b", "8b_forcing")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("8b", "8b_forcing")
TEACHER = "configs/ar_mem.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # Model, data and clips are those of the teacher.
    config = run_config.load_recipe(f"{TEACHER}:8b" if variant.startswith("8b") else TEACHER).unlock()
    # The teacher is frozen, so its weights are saved only once; a critic has its own optimizer.
    config.optimizer.trainable = "(?!(teacher|critic)/).*"
    config.optimizer.ema_decay = 0.99
    config.sample.rollout.update({"num_steps": 4, "shift": 5.0, "guidance": 1.0})
    if variant.startswith("8b"):
        _published(config)
    else:
        _tiny(config)
    if variant == "forcing":
        _tiny_forcing(config)
    if variant == "shortcut":
        _tiny_shortcut(config)
    if variant == "8b_forcing":
        _published_forcing(config)
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


def _tiny_forcing(config: ml_collections.ConfigDict) -> None:
    config.loss = {
        "kind": "context_forcing",
        # The window of the teacher, which is the autoregressive model, has four chunks.
        "chunks": 2,
        "score": "autoregressive",
        "teacher": config.init_from,
        "teacher_guidance": 1.0,
        "score_levels": (0.02, 0.98),
        "shift": 5.0,
        "sigma_floor": 0.3,
        "teacher_dtype": "float32",
    }
    config.init_from = "runs/ar_distill"
    config.steps = 100
    config.optimizer.update({"name": "adamw", "learning_rate": 2e-5, "schedule": "constant", "weight_decay": 0.0})
    config.optimizer.update({"b1": 0.0, "b2": 0.999})
    config.critic = {"name": "adamw", "learning_rate": 1e-4, "b1": 0.0, "b2": 0.999, "clip_norm": 1.0, "updates": 5}
    config.data.clip.curriculum = ((0, 16), (25, 32), (50, 61))
    config.checkpoint.interval = 25


def _tiny_shortcut(config: ml_collections.ConfigDict) -> None:
    # Starts without effect, so the starter weights fit.
    config.model.step_sizes = True
    config.loss = {
        "kind": "shortcut",
        "shift": 5.0,
        "weighting": "logit_normal",
        "logit_std": 1.4,
        "sigma_floor": 0.3,
        "finest": 64,
        "consistent": 4,
        "noisy_context": 0.5,
        "memory_times": (1, 400),
    }


def _published(config: ml_collections.ConfigDict) -> None:
    config.init_from = "weights/ar"
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


def _published_forcing(config: ml_collections.ConfigDict) -> None:
    config.loss = {
        "kind": "context_forcing",
        "chunks": 4,
        "score": "bidirectional",
        "teacher": "weights/bidirectional",
        "teacher_guidance": 5.0,
        "score_levels": (0.02, 0.98),
        "shift": 5.0,
        "sigma_floor": 0.0,
        "teacher_dtype": "bfloat16",
    }
    config.init_from = "runs/ar_distill-8b"
    config.steps = 200
    # The longest prefix grows.
    config.data.clip.curriculum = ((0, 32), (25, 64), (50, 96), (100, 128), (150, 160))
    config.optimizer.update({"schedule": "constant", "warmup_steps": 0, "b1": 0.0, "b2": 0.999})
    config.critic = {
        "name": "adamw",
        "trainable": "critic/.*",
        "learning_rate": 4e-7,
        "schedule": "constant",
        "weight_decay": 0.0,
        "b1": 0.0,
        "b2": 0.999,
        "clip_norm": 1.0,
        "skip_norm": 10.0,
        "updates": 5,
    }
    config.checkpoint.interval = 50
