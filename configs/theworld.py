"""TheWorld: Gemma-3 with the latents of an image as additional inputs, trained to answer questions about the image.

Variants (`--config=configs/theworld.py:<variant>`):
  tiny (or none)  small model on questions about recorded episodes; minutes on two CPU cores
  tiny_steps      the same with two frames predicted by the tiny base of Cosmos-Predict2 in assets/cosmos
  tiny_lora       LoRA adapters on the language model of the first variant's run, which stays frozen
  projection      Gemma-3-4b-it; only the projection of the world latents is trained
  vision          the projection, the vision tower and its projector are trained
  language        the projection and the language model are trained
  full            all of these and the encoder of the autoencoder are trained
  lora            the projection and LoRA adapters on the language model are trained
  projection_12b, projection_27b, lora_12b, lora_27b          the same for Gemma-3-12b-it and 27b-it
  language_270m, language_1b, lora_270m, lora_1b              Gemma-3-270m and 1b: text alone, without a world
"""

import ml_collections

VARIANTS = (
    *("", "tiny", "tiny_steps", "tiny_lora", "projection", "vision", "language", "full", "lora"),
    *("projection_12b", "projection_27b", "lora_12b", "lora_27b"),
    *("language_270m", "language_1b", "lora_270m", "lora_1b"),
)
#: Variants that the planner's table lists.
PUBLISHED = ("projection", "vision", "language", "full")
#: Published variant -> regular expression of the parameters that it trains.
TRAINABLE = {
    "projection": r"world/.*",
    "vision": r"(world|vision|projector)/.*",
    "language": r"(world|language)/.*",
    # The decoder is not used here and gets no gradient.
    "full": r"(world|vision|projector|language|autoencoder/(encoder|moments))/.*",
    "lora": r"world/.*|(.*/)?lora/[ab]",
}
#: Size -> hyper-parameters that differ from those of Gemma-3-4b; the smallest two have no vision tower.
SIZES = {
    "270m": {"width": 640, "mlp_width": 2048, "num_layers": 18, "num_heads": 4, "num_key_heads": 1},
    "1b": {"width": 1152, "mlp_width": 6912, "num_layers": 26, "num_heads": 4, "num_key_heads": 1},
    "12b": {"width": 3840, "mlp_width": 15360, "num_layers": 48, "num_heads": 16, "num_key_heads": 8},
    "27b": {"width": 5376, "mlp_width": 21504, "num_layers": 62, "num_heads": 32, "num_key_heads": 16}
    | {"head_dim": 128, "query_scale": 168.0},
}
TEXT_SIZES = ("270m", "1b")
TARGETS = ("language/layers/attention/(query|key|value|out)", "language/layers/mlp/(gate|up|down)")
#: That of the starter weights: the tiny models of all systems share their latents.
AUTOENCODER = "assets/starter/encoders/autoencoder.safetensors"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    config = _tiny()
    if variant == "tiny_steps":
        config.model.world.steps = 2
    if variant == "tiny_lora":
        config.init_from = "runs/theworld"
        config.steps = 200
        config.model.lora = {"targets": TARGETS, "rank": 4, "alpha": 4.0}
        config.optimizer.trainable = r"(.*/)?lora/[ab]"
    kind, _, size = variant.partition("_")
    if kind in TRAINABLE:
        _published(config)
        config.optimizer.trainable = TRAINABLE[kind]
        if kind == "lora":
            config.model.lora = {"targets": TARGETS, "rank": 16, "alpha": 16.0}
    if size in SIZES:
        config.model.update(SIZES[size])
        config.init_from = f"checkpoints/theworld-base-{size}"
        config.data.tokenizer = f"{config.init_from}/encoders"
    if size in TEXT_SIZES:
        _text(config)
    config.lock()
    return config


def _tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system = "theworld"
    config.seed = 0
    config.steps = 1500
    config.global_batch = 32
    config.init_from = ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = _tiny_model()
    config.data = {
        "records": "data/rooms256/questions",
        "tokenizer": "assets/tokenizer",
        "threads": 2,
        "prefetch": 4,
        "recording": {
            "source": "rooms",
            # The 56 training episodes of ar_mem.py would be learned by heart.
            "directory": "data/rooms256/episodes",
            "episodes": 256,
            "frames": 241,
            "image_size": (192, 144),
            "seed": 1000,
        },
        "conversations": {"format": "questions"},
        "questions": {"per_answer": 12, "view_size": (64, 48), "seed": 0},
        "clip": {"lengths": (64, 80), "images": 1, "image_size": 64, "world_size": 64, "labels": "answers"},
    }
    config.optimizer = {
        "name": "adamw",
        # Autoencoder and predictor stay frozen.
        "trainable": r"(?!(autoencoder|predictor)/).*",
        "learning_rate": 3e-4,
        "schedule": "linear_with_min_lr",
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.99,
        "clip_norm": 1.0,
        "skip_limit": 20,
        "ema_rate": 0.0,
        "accumulate": 1,
    }
    config.loss = {"chunk": 256}
    config.checkpoint = {"interval": 500, "max_to_keep": 2, "step": -1}
    # Repository for uploads of checkpoints, docs/theworld.md; "" for none.
    config.checkpoint.hub = {"repo": "", "strategy": "every_save", "private": False, "patience": 15.0}
    config.log = {"interval": 20, "watchdog_minutes": 30.0, "wandb": "off"}
    config.sample = {"rollout": {"max_tokens": 8, "prompt_multiple": 16}, "questions": 6, "seed": 0}
    return config


def _tiny_model() -> dict[str, object]:
    return {
        "vocabulary": 491,
        "width": 128,
        "mlp_width": 384,
        "num_layers": 3,
        "num_heads": 4,
        "num_key_heads": 2,
        "head_dim": 32,
        "query_scale": 32.0,
        "pattern": ("sliding", "sliding", "full"),
        "window": 128,
        "rope_factor": 1.0,
        "frozen_dtype": "float32",
        "image_token": 7,
        "image_tokens": 16,
        "vision_width": 96,
        "vision_mlp_width": 192,
        "vision_layers": 2,
        "vision_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "dtype": "float32",
        "remat": "none",
        "world": {
            "compat": "",
            "layout": "spatial",
            "image_size": 64,
            "latent_channels": 128,
            "autoencoder_file": AUTOENCODER,
            "autoencoder_ratio": 16,
            "start_token": 9,
            "end_token": 10,
            # Number of frames predicted from the image, and the run of the network that predicts them.
            "steps": 0,
            "predictor": "assets/cosmos",
            "predictor_steps": 4,
        },
    }


def _published(config: ml_collections.ConfigDict) -> None:
    """Set the values of the original's configs/default.json and its variants; docs/theworld.md maps every key."""
    config.steps = 10_000
    config.init_from = "checkpoints/theworld-base"
    config.global_batch = 16
    config.model = {
        # Tokens of the tokenizer with two added brackets; published Gemma has a few more rows, used by no token.
        "vocabulary": 262147,
        "image_token": 262144,
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "frozen_dtype": "bfloat16",
        # The activations of thousands of tokens would fill a device.
        "remat": "attention",
        "world": {
            "compat": "",
            "layout": "spatial",
            "image_size": 512,
            "latent_channels": 16,
            "start_token": 262145,
            "end_token": 262146,
            "steps": 0,
            "predictor": "checkpoints/cosmos-predict2-2b",
            "predictor_steps": 4,
        },
    }
    config.data.records = "data/llava_pretrain/conversations"
    config.data.tokenizer = "checkpoints/theworld-base/encoders"
    config.data.threads = 4
    config.data.recording = {"source": ""}
    config.data.conversations = {
        "format": "llava",
        "path": "data/llava_pretrain/chat.json",
        "images": "data/llava_pretrain",
    }
    config.data.clip = {
        "lengths": (512, 1024, 2048),
        "images": 1,
        "image_size": 896,
        "world_size": 512,
        "labels": "answers",
    }
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.999
    config.loss = {"chunk": 256}
    config.log.interval = 10
    config.sample = {"rollout": {"max_tokens": 128, "prompt_multiple": 64}, "questions": 6, "seed": 0}


def _text(config: ml_collections.ConfigDict) -> None:
    """Set the values of the sizes without a vision tower; chats are rows without images."""
    config.model.update({"vocabulary": 262144, "vision_layers": 0, "window": 512, "rope_factor": 1.0})
    del config.model["world"]
    config.data.clip.update({"images": 0, "world_size": 0})
    if "lora" in config.model:
        config.optimizer.trainable = r"(.*/)?lora/[ab]"
