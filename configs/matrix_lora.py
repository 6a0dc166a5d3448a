"""The Matrix, stage 1: LoRA adapters on CogVideoX-2B, which generates clips from captions.

Variants (`--config=configs/matrix_lora.py:<variant>`):
  (none)  LoRA adapters on the tiny base in assets/matrix; a minute or two on two CPU cores
  base    that base, in place of CogVideoX-2B, trained from scratch; some ten minutes
  2b      CogVideoX-2B with every value of the original's configs/lora_config.py; docs/matrix.md
"""

import ml_collections

VARIANTS = ("", "base", "2b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b",)
AUTOENCODER = "assets/starter/encoders/autoencoder.safetensors"
#: Weights of the variant base, trained for longer: docs/matrix.md.
STARTER = "assets/matrix"
TARGETS = ("blocks/attention/(query|key|value|out)",)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    config = _base()
    if variant == "2b":
        _published(config)
    if variant != "base":
        _lora(config, rank=256 if variant else 8)
    config.lock()
    return config


def _base() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system = "matrix"
    config.seed = 42
    config.steps = 1000
    config.global_batch = 16
    config.init_from = ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {
        "channels": 128,
        # 12 tokens of 512 numbers for a latent frame: more than 192 can carry, if they have noise.
        "patch_size": 2,
        "prediction": "clean",
        "output_kernel": 3,
        "width": 192,
        "num_heads": 4,
        "num_layers": 4,
        "time_dim": 64,
        "text_dim": 64,
        "text_tokens": 32,
        "spatial_scale": 1.0,
        "control_dim": None,
        "dtype": "float32",
        "remat": "none",
    }
    config.data = _base_data()
    config.optimizer = {
        # The original uses AdamW; in so few steps Muon reaches a lower loss.
        "name": "muon",
        "trainable": ".*",
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
        "weight_decay": 1e-3,
        "b1": 0.9,
        "b2": 0.95,
        "clip_norm": 1.0,
        "skip_limit": 20,
        "ema_decay": 0.99,
        "accumulate": 1,
        "newton_schulz_dtype": "float32",
    }
    # The first channel is 8 times as strong as the last and stays visible through most noise. Errors at low noise would
    # outweigh all others.
    config.loss = {"kind": "clip", "snr_shift": 10.0, "sigma_floor": 0.3}
    config.checkpoint = {"interval": 200, "max_to_keep": 2, "step": -1}
    config.log = {"interval": 20, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample = {
        "rollout": {"mode": "clip", "solver": "ddim", "num_steps": 20, "guidance": 1.5},
        # Actions recorded on a held-out map to compare with the sampled clip; control models are conditioned on them.
        "actions": "D*4,DR*4",
        "seed": 0,
    }
    return config


def _base_data() -> dict[str, object]:
    return {
        "records": "data/rooms/records-33frames",
        "threads": 2,
        "prefetch": 4,
        "recording": {
            "source": "rooms",
            "directory": "data/rooms/episodes",
            "episodes": 64,
            "frames": 241,
            "image_size": (256, 192),
            "seed": 1,
        },
        "encoding": {
            "image_size": (128, 96),
            "spatial_ratio": 16,
            "autoencoder": AUTOENCODER,
            # Nine latents: in stage 3 one context latent and four groups of two.
            "clip_frames": 33,
        },
        # The original has no text dropout in any stage: its base was trained with it. This base needs it, too.
        "clip": {"latent_size": (6, 8), "window_frames": 9, "controls": "", "text_dropout": 0.1},
    }


def _lora(config: ml_collections.ConfigDict, *, rank: int) -> None:
    config.model.lora = {"targets": TARGETS, "rank": rank, "alpha": float(rank), "base_dtype": config.model.dtype}
    config.optimizer.trainable = r"(.*/)?lora/[ab]"
    if not config.init_from:
        config.init_from = STARTER
        config.steps = 200
        config.optimizer.learning_rate = 2e-3


def _published(config: ml_collections.ConfigDict) -> None:
    """Set the values of The Matrix' configs/lora_config.py; docs/matrix.md maps every key."""
    config.steps = 100_000
    config.init_from = "checkpoints/cogvideox-2b"
    # Original: 8 GPUs, 8 clips each.
    config.global_batch = 64
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {
        "channels": 16,
        "patch_size": 2,
        "width": 1920,
        "num_heads": 30,
        "num_layers": 30,
        "time_dim": 512,
        "text_dim": 4096,
        "text_tokens": 226,
        "spatial_scale": 1.875,
        "temporal_scale": 1.0,
        "control_dim": None,
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "remat": "attention",
    }
    config.data.records = "data/matrix/records"
    config.data.recording = {"source": ""}
    config.data.encoding = {"image_size": (720, 480), "spatial_ratio": 8}
    # The original mixes clips of 17, 33 and 65 frames, one length per batch; here all clips have the longest.
    config.data.clip = {"latent_size": (60, 90), "window_frames": 17, "controls": "", "posterior": True}
    config.loss = {"kind": "clip", "snr_shift": 3.0}
    config.optimizer = {
        "name": "adamw",
        "trainable": ".*",
        "learning_rate": 1e-5,
        # The original config sets 200 warm-up steps, which its constant schedule ignores.
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 1e-3,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip_norm": 1.0,
        "skip_limit": 100,
        "ema_decay": 0.0,
        "accumulate": 1,
    }
    # The original keeps every checkpoint.
    config.checkpoint = {"interval": 200, "max_to_keep": 3, "step": -1}
    config.log = {"interval": 10, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample.rollout = {
        "mode": "clip",
        "solver": "ddim",
        "num_steps": 50,
        "spacing": "trailing",
        "guidance": 6.0,
        "dynamic_guidance": True,
    }
