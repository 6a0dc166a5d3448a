"""Video autoencoder trained from scratch, for use without published weights.

Variants (`--config=configs/autoencoder.py:<variant>`):
  (none)  tiny network of HunyuanVideo's architecture on 64x48 frames of the rooms; 96 channels, 16x16 pixels and 4
          frames per latent, as in configs/ar_mem.py; a smoke test on two CPU cores
  small   the same architecture with 73M parameters at the recorder's full resolution, 64 channels; one GPU
  patch   1.4M parameters for two CPU cores, on 128x96 frames of the rooms: a linear autoencoder with 128 channels and
          16x16 pixels and 4 frames per latent, whose decoder joins the patches
  worlds  the same on rooms and ViZDoom's maze, which makes assets/starter/encoders/autoencoder.safetensors
"""

import ml_collections

VARIANTS = ("", "small", "patch", "worlds")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    config = _tiny()
    if variant == "small":
        _small(config)
    if variant in ("patch", "worlds"):
        _patch(config)
    if variant == "worlds":
        _worlds(config)
    config.lock()
    return config


def _tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system = "autoencoder"
    config.seed = 3208
    config.steps = 400
    config.global_batch = 8
    config.init_from = ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {
        "family": "hunyuan15",
        "latent_channels": 96,
        "widths": (12, 24, 48, 96, 192),
        "blocks": 0,
        "spatial_ratio": 16,
        "temporal_ratio": 4,
        # In latent frames: a training clip is one chunk; longer videos are encoded in bounded memory.
        "chunk": 3,
        "dtype": "float32",
    }
    config.data = {
        "records": "data/rooms/frames-64x48",
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
        "videos": {
            "format": "episodes",
            "path": "",
            "more_paths": (),
            "image_size": (64, 48),
            "fit": "crop",
            "val_share": 0.05,
        },
        "clip": {"frames": 5, "size": (32, 32)},
    }
    config.optimizer = {
        "name": "adamw",
        "trainable": ".*",
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 10,
        "weight_decay": 1e-4,
        "b1": 0.9,
        "b2": 0.99,
        "clip_norm": 1.0,
        "skip_norm": 0.0,
        "skip_limit": 20,
        "ema_decay": 0.99,
        "accumulate": 1,
    }
    config.loss = {"gradient": 0.0, "kl": 1e-4}
    config.checkpoint = {"interval": 50, "max_to_keep": 2, "step": -1}
    config.log = {"interval": 10, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample = {"clips": 3, "frames": 17}
    return config


def _small(config: ml_collections.ConfigDict) -> None:
    config.steps = 30_000
    config.global_batch = 16
    config.model.update(
        {"latent_channels": 64, "widths": (48, 96, 192, 256, 256), "blocks": 1, "chunk": 5, "dtype": "bfloat16"}
    )
    config.data.records = "data/rooms256/frames-192x144"
    config.data.recording.update({"directory": "data/rooms256/episodes", "episodes": 256, "seed": 1000})
    config.data.videos.image_size = (192, 144)
    config.data.clip.update({"frames": 17, "size": (96, 96)})
    config.optimizer.update({"learning_rate": 2e-4, "warmup_steps": 500, "ema_decay": 0.999})
    config.checkpoint.interval = 2_000
    config.log.interval = 50
    config.sample.frames = 33


def _patch(config: ml_collections.ConfigDict) -> None:
    config.steps = 1_500
    config.model = {
        "family": "patch",
        "latent_channels": 128,
        "width": 64,
        "rank": 96,
        "blocks": 4,
        "spatial_ratio": 16,
        "temporal_ratio": 4,
        "chunk": 8,
        "dtype": "float32",
        "whitening": 1.0,
    }
    # Episodes of their own: `small` records other ones in data/rooms256.
    config.data.records = "data/rooms256-large/frames-128x96"
    config.data.recording.update({"directory": "data/rooms256-large/episodes", "episodes": 256})
    config.data.recording.image_size = (256, 192)
    config.data.videos.image_size = (128, 96)
    # Whole frames: in a smaller crop most patches are at the border, and floor and ceiling may be anywhere.
    config.global_batch = 8
    config.data.clip.update({"frames": 9, "size": (128, 96)})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 100, "ema_decay": 0.995, "weight_decay": 0.0})
    # Transform and overlap keep their fitted values: a step of Adam at this rate would move them by a tenth.
    config.optimizer.update({"trainable": "decoder/(hints|enter|blocks|leave)/.*", "clip_norm": 0.1})
    config.loss = {"absolute": 0.0, "squared": 1.0, "gradient": 0.05, "kl": 0.0}
    config.checkpoint.interval = 500


def _worlds(config: ml_collections.ConfigDict) -> None:
    config.data.records = "data/worlds/frames-128x96"
    config.data.recording.update({"directory": "data/worlds/rooms", "episodes": 384})
    # Half as many episodes as rooms have, each twice.
    config.data.videos.more_paths = ("data/worlds/doom", "data/worlds/doom")
    # Halfway: the first channel is 8 times as strong as the last, not 75 times, and still says most about a scene.
    config.model.whitening = 0.5
