"""Cosmos-Predict2 Video2World: prediction of a video from its first frames and a caption.

Variants (`--config=configs/cosmos_video2world.py:<variant>`):
  (none)       post-training of the tiny base in assets/cosmos on ray-cast rooms, at 128x96 pixels; two minutes on two
               CPU cores
  tiny_action  the same base, with the camera's motion as a new condition
  tiny_lora    LoRA adapters on the base
  base         that base, in place of the published models, trained from scratch; half an hour
  tiny_lerobot a smaller model for a fitted autoencoder, conditioned on the commands of a LeRobot data set;
               docs/lerobot.md
  tiny_multiview  a tiny model for three synchronized cameras in the rooms (ahead, to the left and to the right), from
               scratch
  coinrun      a small model of CoinRun at 64x64 pixels, conditioned on its 15 actions; docs/array_records.md
  2b, 14b      post-training of the published models with every value of the original's experiment; docs/cosmos.md
  2b_480p, 2b_10fps, 2b_480p_10fps, 14b_480p, ...  post-training of the checkpoints for 768x432 pixels and for 10 fps
  2b_lora, 14b_lora  LoRA adapters on the published models, which stay frozen in bfloat16
  2b_action    the published action-conditioned model
  2b_lerobot   the same post-training on a LeRobot data set
  2b_multiview post-training of the published model of seven cameras on the five of Waymo
"""

import ml_collections

#: Suffixes of the published checkpoints other than model-720p-16fps.pt.
CHECKPOINTS = ("_480p", "_10fps", "_480p_10fps")
VARIANTS = (
    *("", "tiny_action", "tiny_lora", "base", "2b", "14b", "2b_lora", "14b_lora", "2b_action"),
    *("tiny_lerobot", "2b_lerobot", "coinrun", "tiny_multiview", "2b_multiview"),
    *(f"{size}{suffix}" for size in ("2b", "14b") for suffix in CHECKPOINTS),
)
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b", "14b", "2b_lora", "14b_lora", "2b_action", "2b_multiview")
#: Weights of the variant base: docs/cosmos.md.
STARTER = "assets/cosmos"
#: 128 channels for 16x16 pixels and 4 frames; docs/autoencoder.md.
AUTOENCODER = "assets/starter/encoders/autoencoder.safetensors"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    config = _base()
    if variant in ("", "tiny_action", "tiny_lora"):
        _post_training(config)
    if variant == "tiny_action":
        _tiny_action(config)
    if variant == "tiny_lora":
        _tiny_lora(config)
    if variant.startswith(("2b", "14b")):
        _published(config)
    if variant.startswith("14b"):
        _fourteen(config)
    if variant.endswith(CHECKPOINTS):
        config.init_from = f"checkpoints/cosmos-predict2-{variant.replace('_', '-')}"
        config.data.records += variant[variant.index("_") :].replace("_", "-")
    if "_480p" in variant:
        # 16:9; the original's other sizes are in docs/cosmos.md.
        config.data.encoding.image_size = (768, 432)
        config.data.clip.latent_size = (54, 96)
    if variant.endswith("_10fps"):
        # 61 frames.
        config.data.clip.window_frames = 16
    if variant in ("2b_lora", "14b_lora"):
        _lora(config, rank={"2b": 16, "14b": 32}[variant.removesuffix("_lora")])
        config.checkpoint.interval = 200
    if variant in ("2b_action", "2b_lerobot"):
        _action(config)
    if variant in ("tiny_lerobot", "coinrun"):
        _fitted(config)
    if variant.endswith("_lerobot"):
        _lerobot(config)
    if variant == "coinrun":
        _coinrun(config)
    if variant == "tiny_multiview":
        _three_cameras(config)
    if variant == "2b_multiview":
        _waymo(config)
    config.lock()
    return config


def _base() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system = "cosmos"
    config.seed = 0
    config.steps = 2600
    config.global_batch = 16
    config.init_from = ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {
        "channels": 128,
        # 12 tokens of 512 numbers for a latent frame: more than the width can carry, if they have noise.
        "patch_size": (1, 2, 2),
        "prediction": "clean",
        # Neighboring tokens are joined.
        "output_kernel": 3,
        "width": 192,
        "num_heads": 4,
        "num_layers": 4,
        "text_dim": 64,
        "text_width": 64,
        "modulation_rank": 32,
        "rope_scale": (1.0, 1.0, 1.0),
        "action_dim": None,
        "dtype": "float32",
        "remat": "none",
    }
    config.data = _base_data()
    config.optimizer = {
        "name": "muon",
        "trainable": ".*",
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "warmup_steps": 20,
        "weight_decay": 1e-4,
        "newton_schulz_dtype": "float32",
        "clip_norm": 1.0,
        "skip_limit": 20,
        "ema_rate": 0.1,
        "accumulate": 1,
    }
    config.loss = {
        # The first channel is 8 times as strong as the last and stays visible through most noise, so the layout of a
        # scene is learned only from levels close to pure noise; details are learned from the others.
        "log_mean": 0.6,
        "log_std": 1.4,
        "high_ratio": 0.05,
        "conditioning_frames": (1, 2),
        "text_dropout": 0.2,
        "sigma_floor": 0.3,
    }
    config.checkpoint = {"interval": 200, "max_to_keep": 2, "step": -1}
    config.log = {"interval": 20, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample = {
        # Better than the published solver for a model this small; docs/cosmos.md.
        "rollout": {
            "solver": "few_steps",
            "num_steps": 4,
            "shift": 5.0,
            "guidance": 0.0,
            "conditioning_frames": 1,
        },
        # Motion per latent in the recorded episodes, so that a pose string moves as the training data does.
        "motion": {"step": 0.24, "turn": 8.0, "focal": (1 / 2, 2 / 3)},
        "windows": 2,
        "seed": 0,
    }
    return config


def _base_data() -> dict[str, object]:
    return {
        "records": "data/rooms/records-29frames",
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
            # Eight clips per episode, each encoded separately with its own first frame.
            "clip_frames": 29,
        },
        "clip": {"latent_size": (6, 8), "window_frames": 8, "text_tokens": 32, "actions": ""},
    }


def _post_training(config: ml_collections.ConfigDict) -> None:
    config.init_from = STARTER
    config.steps = 150
    config.optimizer.learning_rate = 5e-4


def _tiny_action(config: ml_collections.ConfigDict) -> None:
    """Set 7 numbers for each of 7 latents; the layers that embed them are new, so it takes longer."""
    config.model.action_dim = 49
    config.data.clip.actions = "poses"
    config.steps = 500
    config.optimizer.learning_rate = 2e-3


def _tiny_lora(config: ml_collections.ConfigDict) -> None:
    config.steps = 100
    _adamw(config)
    _lora(config, rank=4)


def _published(config: ml_collections.ConfigDict) -> None:
    """Set the values of predict2_video2world_training_2b_cosmos_nemo_assets; docs/cosmos.md maps every key."""
    config.steps = 1000
    config.init_from = "checkpoints/cosmos-predict2-2b"
    # Original: 8 GPUs, context parallel 2, one sample per pair.
    config.global_batch = 4
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 2}
    config.model = {
        "channels": 16,
        "patch_size": (1, 2, 2),
        "width": 2048,
        "num_heads": 16,
        "num_layers": 28,
        "text_dim": 1024,
        "text_width": 1024,
        "modulation_rank": 256,
        "rope_scale": (1.0, 3.0, 3.0),
        "action_dim": None,
        "dtype": "bfloat16",
        # Original: bfloat16 parameters, float32 master weights in the optimizer; here the parameters are the masters.
        "param_dtype": "float32",
        "remat": "attention",
    }
    config.data.records = "data/cosmos_nemo_assets/records"
    config.data.recording = {"source": ""}
    config.data.encoding = {"image_size": (1280, 704), "spatial_ratio": 8}
    config.data.clip = {"latent_size": (88, 160), "window_frames": 24, "text_tokens": 512, "actions": ""}
    config.optimizer = {
        "name": "adamw",
        "trainable": ".*",
        # 2^-14.5 times f_max 0.6.
        "learning_rate": 0.6 * 2**-14.5,
        "schedule": "linear_with_min_lr",
        "warmup_steps": 0,
        "weight_decay": 0.1,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        # Value of the original config, whose code does not clip (docs/cosmos.md).
        "clip_norm": 1.0,
        "skip_limit": 100,
        "ema_rate": 0.1,
        "accumulate": 1,
    }
    config.loss = {"high_ratio": 0.05, "conditioning_frames": (1, 2), "text_dropout": 0.2}
    config.checkpoint = {"interval": 500, "max_to_keep": 3, "step": -1}
    config.log = {"interval": 10, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample.rollout = {"num_steps": 35, "guidance": 7.0, "conditioning_frames": 1}
    config.sample.windows = 1


def _fourteen(config: ml_collections.ConfigDict) -> None:
    """Set the values of predict2_video2world_training_14b_cosmos_nemo_assets."""
    config.init_from = "checkpoints/cosmos-predict2-14b"
    # Original: 32 GPUs, context parallel 8.
    config.mesh.sequence = 8
    config.model.update({"width": 5120, "num_heads": 40, "num_layers": 36, "rope_scale": (20 / 24, 2.0, 2.0)})
    config.optimizer.learning_rate = 0.25 * 2**-14.5
    config.optimizer.weight_decay = 0.2


def _lora(config: ml_collections.ConfigDict, *, rank: int) -> None:
    """Set the values of predict2_video2world_lora_training_{2b,14b}_cosmos_nemo_assets."""
    config.model.lora = {
        "targets": (".*_attention/(query|key|value|out)", "blocks/mlp/(up|down)"),
        "rank": rank,
        "alpha": float(rank),
        "base_dtype": config.model.dtype,
    }
    config.optimizer.trainable = r"(.*/)?lora/[ab]"


def _action(config: ml_collections.ConfigDict) -> None:
    """Set the values of predict2_video2world_2b_action_conditioned_training, on the Bridge data set."""
    # The original experiment sets no number of steps.
    config.steps = 20_000
    config.global_batch = 16
    config.mesh.sequence = 1
    config.model.action_dim = 84
    config.data.records = "data/bridge/records"
    config.data.encoding.image_size = (640, 480)
    config.data.clip = {"latent_size": (60, 80), "window_frames": 4, "text_tokens": 512, "actions": "motion"}
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.ema_rate = 0.0
    config.loss = {"high_ratio": 0.0, "conditioning_frames": (1, 1), "text_dropout": 0.2}
    # The original pipeline has no negative prompt, so that its guidance has no effect.
    config.sample.rollout.guidance = 0.0


def _lerobot(config: ml_collections.ConfigDict) -> None:
    """Set the sizes of 13 frames with the 6 commands of an SO-100 arm each; precompute prints those of other arms."""
    config.data.records = "data/lerobot/records"
    config.data.recording = {"source": ""}
    config.data.clip.update({"window_frames": 4, "actions": "commands", "command_size": 6})
    config.model.action_dim = 6 * 12
    # A window of an action model continues one frame.
    config.loss.conditioning_frames = (1, 1)


def _coinrun(config: ml_collections.ConfigDict) -> None:
    """Set the sizes of 13 frames of CoinRun, as Jasmine records them, with one of 15 actions each."""
    config.steps = 20_000
    config.model.update({"width": 256, "num_layers": 6, "action_dim": 15 * 12})
    config.data.records = "data/coinrun/records"
    config.data.recording = {"source": ""}
    # A linear autoencoder that precompute fits on the data.
    config.data.encoding = {"image_size": (64, 64), "spatial_ratio": 8}
    config.data.clip.update({"latent_size": (8, 8), "window_frames": 4, "actions": "commands", "command_size": 15})
    config.optimizer.learning_rate = 1e-3
    config.loss.conditioning_frames = (1, 1)
    config.checkpoint.interval = 1000


def _fitted(config: ml_collections.ConfigDict) -> None:
    """Set a model of a linear autoencoder that precompute fits on the data: a token for each latent, as published."""
    config.model.update({"channels": 96, "patch_size": (1, 1, 1), "width": 128})
    config.model.update({"prediction": "velocity", "output_kernel": 1})
    config.data.encoding.update({"image_size": (64, 48), "autoencoder": ""})
    config.data.clip.latent_size = (3, 4)
    config.steps = 600
    _adamw(config)
    config.loss = {"high_ratio": 0.05, "conditioning_frames": (1, 2), "text_dropout": 0.2}
    config.sample.rollout = {"num_steps": 10, "guidance": 0.0, "conditioning_frames": 1}


def _adamw(config: ml_collections.ConfigDict) -> None:
    del config.optimizer.newton_schulz_dtype
    config.optimizer.update({"name": "adamw", "learning_rate": 2e-3, "schedule": "linear_with_min_lr"})
    config.optimizer.update({"weight_decay": 0.01, "b1": 0.9, "b2": 0.99})


def _three_cameras(config: ml_collections.ConfigDict) -> None:
    """Set three cameras in the rooms, which overlap by 30 degrees."""
    config.steps = 350
    config.optimizer.learning_rate = 2e-3
    names, yaws = ("front", "left", "right"), (0.0, -60.0, 60.0)
    config.model.update({"views": 3, "view_dim": 3, "view_frames": 4, "fps_modulation": True})
    config.data.records = "data/rooms-three-cameras/records-13frames"
    config.data.recording.update({"directory": "data/rooms-three-cameras/episodes", "views": names, "yaws": yaws})
    config.data.encoding.clip_frames = 13
    config.data.clip.update({"window_frames": 4, "views": names, "view_ids": (0, 1, 2), "caption_view": 0})
    config.loss.conditioning_frames = (0, 1)


def _waymo(config: ml_collections.ConfigDict) -> None:
    """Set the values of predict2_multiview_training_2b_720p_10fps_7views_29frames_waymo5views; docs/cosmos.md."""
    # The last step of the original's schedule, whose code ends there with an error.
    config.steps = 40_000
    config.init_from = "checkpoints/cosmos-predict2-2b-multiview"
    # Original: 8 GPUs, context parallel 8.
    config.global_batch = 1
    config.mesh.sequence = 8
    config.model.update(
        {"views": 7, "view_dim": 7, "view_frames": 8, "rope_scale": (8 / 24, 3.0, 3.0), "fps_modulation": True}
    )
    config.data.records = "data/waymo/records"
    # In the order of the original's data set; the published model knows seven cameras, of which Waymo has no 3 and 6.
    names = tuple(f"pinhole_{name}" for name in ("side_left", "front_left", "front", "front_right", "side_right"))
    config.data.clip.update({"window_frames": 8, "views": names, "view_ids": (4, 5, 0, 1, 2), "caption_view": 0})
    config.loss.conditioning_frames = (0, 1)
    config.optimizer.learning_rate = 0.25 * 2**-14.5
    config.optimizer.warmup_steps = 2000
    # f_min / f_max.
    config.optimizer.min_lr_ratio = 0.1 / 0.25
    config.sample.rollout.update({"lowest": 0.01, "highest": 200.0})
