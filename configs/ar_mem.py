"""WorldPlay: autoregressive training with actions, cameras and retrieved memory; one variant is bidirectional.

Variants (`--config=configs/ar_mem.py:<variant>`):
  (none)         tiny model on ray-cast rooms, fine-tuned from the starter weights; minutes on two CPU cores
  doom           the same model on ViZDoom's maze, from scratch
  starter        training of the starter weights: the tiny model on 768 episodes of both worlds; over two hours on two
                 CPU cores
  rooms          a smaller model from scratch, on images of 64x48 pixels whose autoencoder is fitted; for own data
  small          about 100M parameters at the recorder's full resolution; half an hour on one GPU
  bidirectional  the tiny model with attention in both directions, fine-tuned from the starter weights: a teacher for
                 configs/ar_distill.py:forcing; docs/distill.md
  8b             the published model with every value of the original's launch script; docs/worldplay.md
"""

import ml_collections

VARIANTS = ("", "doom", "starter", "rooms", "small", "bidirectional", "8b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("8b",)
STARTER = "assets/starter"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    config = _tiny()
    if variant == "doom":
        _from_scratch(config, source="doom")
    if variant == "starter":
        _starter(config)
    if variant in ("rooms", "small"):
        _from_scratch(config, source="rooms")
        _fitted(config)
    if variant == "small":
        _small(config)
    if variant == "bidirectional":
        _bidirectional(config)
    if variant == "8b":
        _published(config)
    config.lock()
    return config


def _tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system = "worldplay"
    config.seed = 3208
    config.steps = 100
    config.global_batch = 16
    config.init_from = STARTER
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {
        "channels": 128,
        # 12 tokens of 512 numbers for a latent frame: more than 192 can carry, if they have noise.
        "patch_size": (1, 2, 2),
        "prediction": "clean",
        # A view that comes back is copied, and neighboring tokens are joined.
        "references": True,
        "output_kernel": 3,
        "width": 192,
        "num_heads": 4,
        "num_layers": 4,
        "mlp_ratio": 3.0,
        "rope_dims": (16, 16, 16),
        "refiner_layers": 1,
        "text_dim": 64,
        "glyph_dim": None,
        "vision_dim": 12,
        "dtype": "float32",
        "remat": "none",
    }
    config.data = _tiny_data()
    config.optimizer = {
        "name": "muon",
        "trainable": ".*",
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "warmup_steps": 10,
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "skip_norm": 10.0,
        "skip_limit": 20,
        "ema_decay": 0.99,
        "accumulate": 1,
        "newton_schulz_dtype": "float32",
    }
    config.loss = {
        # The first channel is 8 times as strong as the last and stays visible through most noise, so the layout of a
        # scene is learned only from times close to pure noise; details are learned from the others.
        "shift": 5.0,
        "weighting": "logit_normal",
        "logit_std": 1.4,
        "memory_times": (1, 400),
        # A rollout's context has any size and little noise, from its second chunk on.
        "clean_context": 0.25,
        # What a rollout continues from, and copies, are its own latents.
        "own_errors": 0.4,
        "sigma_floor": 0.3,
    }
    config.checkpoint = {"interval": 100, "max_to_keep": 2, "step": -1}
    config.log = {"interval": 10, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample = {
        "rollout": {"mode": "autoregressive", "num_steps": 4, "shift": 5.0, "guidance": 1.0},
        # Motion per latent in the recorded episodes, so that a pose string moves as the training data does.
        "motion": {"step": 0.24, "turn": 8.0, "focal": (1 / 2, 2 / 3)},
        "actions": "forward*6,yaw_right*9",
        "seed": 0,
    }
    return config


def _tiny_data() -> dict[str, object]:
    return {
        "records": "data/rooms/records",
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
        # The latents of the starter weights; docs/autoencoder.md.
        "encoding": {
            "image_size": (128, 96),
            "spatial_ratio": 16,
            "autoencoder": f"{STARTER}/encoders/autoencoder.safetensors",
        },
        "clip": {
            "latent_size": (6, 8),
            "window_frames": 16,
            "memory_frames": 12,
            "temporal_context": 4,
            "memory_probability": 0.3,
            "memory_points": 2000,
            "text_tokens": 32,
            "glyph_tokens": 0,
            "vision_tokens": 12,
            "curriculum": ((0, 61),),
        },
    }


def _from_scratch(config: ml_collections.ConfigDict, *, source: str) -> None:
    config.init_from = ""
    config.steps = 600
    config.data.records = f"data/{source}/records"
    config.data.recording.source = source
    config.data.recording.directory = f"data/{source}/episodes"
    if source == "doom":
        config.sample.motion = {"step": 0.25, "turn": 8.0, "focal": (0.5, 0.8)}
    config.optimizer.learning_rate = 2e-3


def _starter(config: ml_collections.ConfigDict) -> None:
    # Two thirds of the episodes are of the rooms, one third of ViZDoom's maze.
    _from_scratch(config, source="worlds")
    config.steps = 4000
    config.data.records = "data/worlds768/records"
    config.data.recording.directory = "data/worlds768/episodes"
    config.data.recording.episodes = 768
    # Other episodes than those that the tiny recipe records, which fine-tunes these weights.
    config.data.recording.seed = 0
    config.optimizer.warmup_steps = 50
    config.optimizer.ema_decay = 0.998
    config.checkpoint.interval = 250
    config.log.interval = 25


def _bidirectional(config: ml_collections.ConfigDict) -> None:
    config.steps = 400
    config.loss = {
        "kind": "bidirectional",
        # As many as sampling denoises together, after memory of up to 24 latents.
        "chunks": 4,
        **{name: config.loss[name] for name in ("shift", "weighting", "logit_std", "memory_times", "sigma_floor")},
        # A rollout's own frames are worse than recorded ones.
        "noisy_context": 0.5,
    }
    config.sample.rollout.update({"mode": "bidirectional", "num_steps": 8})


def _fitted(config: ml_collections.ConfigDict) -> None:
    """Fit a linear autoencoder to the data."""
    config.model.update({"patch_size": (1, 1, 1), "prediction": "velocity", "width": 144, "mlp_ratio": 4.0})
    config.model.update({"channels": 96, "rope_dims": (12, 12, 12), "references": False, "output_kernel": 1})
    config.data.records = "data/rooms/records-fitted"
    config.data.encoding.update({"image_size": (64, 48), "autoencoder": ""})
    config.data.clip.update({"latent_size": (3, 4), "memory_probability": 0.7})
    # Its first channels are about 70 times stronger than the last.
    config.loss = {"shift": 10.0, "weighting": "logit_normal", "memory_times": (1, 400)}
    config.sample.rollout.shift = 10.0


def _small(config: ml_collections.ConfigDict) -> None:
    config.steps = 6000
    config.global_batch = 16
    config.model.update(
        {"width": 512, "num_heads": 8, "num_layers": 10, "rope_dims": (16, 24, 24), "dtype": "bfloat16", "channels": 64}
    )
    config.model.remat = "attention"
    config.data.records = "data/rooms256/records-192x144"
    config.data.recording.directory = "data/rooms256/episodes"
    config.data.recording.update({"episodes": 256, "image_size": (192, 144), "seed": 1000})
    config.data.encoding.image_size = (192, 144)
    config.data.clip.latent_size = (9, 12)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.ema_decay = 0.999
    config.optimizer.newton_schulz_dtype = "bfloat16"
    config.checkpoint.interval = 500
    config.log.interval = 50


def _published(config: ml_collections.ConfigDict) -> None:
    """Set the values of HY-WorldPlay's run_ar_hunyuan_action_mem.sh; docs/worldplay.md maps every argument."""
    config.init_from = ""
    config.steps = 200_000
    # One sample per sequence group; the authors recommend a total batch of 32 or more.
    config.global_batch = 32
    # Original: 4 GPUs, sp_size 4, weights sharded over the 4. Here 4 devices split a sample too, and the weights are
    # sharded over fsdp x sequence, which is all devices of a pod; `data` adds replicas. On v5p-128 a chip needs 18 of
    # its 95 GiB; docs/scaling.md lists other pods.
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 4}
    config.model = _published_model()
    config.data.records = "data/worldplay/records"
    config.data.recording = {"source": ""}
    config.data.encoding = {"image_size": (832, 480), "spatial_ratio": 16}
    config.data.clip = {
        "latent_size": (30, 52),
        "window_frames": 24,
        "chunk_frames": 4,
        "memory_frames": 20,
        "temporal_context": 12,
        "memory_probability": 0.8,
        "memory_points": 50_000,
        "memory_fov": (60.0, 35.0),
        "memory_radius": 8.0,
        "text_dropout": 0.1,
        "text_tokens": 1000,
        "glyph_tokens": 256,
        "vision_tokens": 729,
        "curriculum": ((0, 32), (500, 64), (1000, 96), (2000, 128), (3000, 160)),
    }
    config.optimizer = {
        "name": "muon",
        "trainable": ".*",
        "learning_rate": 1e-5,
        "schedule": "constant",
        "weight_decay": 1e-4,
        "momentum": 0.95,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "newton_schulz_steps": 5,
        "newton_schulz_dtype": "bfloat16",
        "clip_norm": 1.0,
        "skip_norm": 10.0,
        "skip_limit": 100,
        "ema_decay": 0.0,
        "accumulate": 1,
    }
    config.loss = {
        "shift": 3.0,
        "weighting": "logit_normal",
        "logit_mean": 0.0,
        "logit_std": 1.0,
        "memory_times": (16, 500),
    }
    config.checkpoint = {"interval": 500, "max_to_keep": 3, "step": -1}
    config.log = {"interval": 10, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample.rollout = {
        "mode": "autoregressive",
        "num_steps": 50,
        "shift": 5.0,
        "guidance": 6.0,
        "context_time": 14.0,
    }
    config.sample.motion = {"step": 0.08, "turn": 3.0, "focal": (50 / 99, 800 / 891)}


def _published_model() -> dict[str, object]:
    return {
        "channels": 32,
        "patch_size": (1, 1, 1),
        "width": 2048,
        "num_heads": 16,
        "num_layers": 54,
        "mlp_ratio": 4.0,
        "rope_dims": (16, 56, 56),
        "rope_theta": 256.0,
        "refiner_layers": 2,
        "text_dim": 3584,
        "glyph_dim": 1472,
        "glyph_hidden": 2048,
        "glyph_out": 2048,
        "vision_dim": 1152,
        "actions": True,
        "dtype": "bfloat16",
        "param_dtype": "float32",
        # Original: enable_gradient_checkpointing_type "full" recomputes each block; this also saves attention outputs.
        "remat": "attention",
    }
