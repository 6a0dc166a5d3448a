"""The one place where sizes of the guides' commands are reduced. Nothing else about a command changes.

- `RECIPES`: config keys per recipe and variant. Their sizes are those of the stand-ins in `downloads.py`. The keys of
  `RUN` are added for training.
- `PLANS`: the same for `jworld.plan`.
- `COMMANDS`, `EVALUATIONS`: options per command.
- `IMPORTS`: config keys of imported weights per output folder. Their sizes come from the stand-ins, but resolution and
  number of denoising steps are not in a checkpoint.
  An import that names a recipe gets one with the small sizes (`small.py`), because it refuses keys that contradict it.
- `VALUES`: sizes that a guide writes out, and their small values.
- `ENVIRONMENT`: one device, no optimization of programs that run a few times, no network.

Options replace those of the guide.
"""

import json
import pathlib
import re

import commands
import xla_flags

#: Two steps on one device.
RUN = (
    "--config.steps=2",
    "--config.global_batch=2",
    "--config.log.interval=1",
    "--config.mesh.sequence=1",
    "--config.optimizer.warmup_steps=0",
)
#: Four short episodes at low resolution.
ROOMS = (
    "--config.data.recording.episodes=4",
    "--config.data.recording.frames=121",
    "--config.data.recording.image_size=(64,48)",
)
_WORLDPLAY = (*ROOMS, "--config.data.clip.memory_points=200", "--config.sample.rollout.num_steps=1")
_HUNYUAN = (
    "--config.model.width=32",
    "--config.model.num_heads=2",
    "--config.model.num_layers=2",
    "--config.model.rope_dims=(4,6,6)",
)
#: The published WorldPlay at 48x32 pixels; windows and memory have their published lengths.
_WORLDPLAY_IMAGE = ("--config.data.encoding.image_size=(48,32)", "--config.data.clip.latent_size=(2,3)")
_WORLDPLAY_TOKENS = (
    "--config.data.clip.text_tokens=64",
    "--config.data.clip.glyph_tokens=32",
    "--config.data.clip.vision_tokens=4",
)
_WORLDPLAY_PUBLISHED = (
    *_HUNYUAN,
    "--config.model.text_dim=16",
    "--config.model.glyph_dim=8",
    "--config.model.glyph_hidden=8",
    "--config.model.glyph_out=8",
    "--config.model.vision_dim=12",
    *_WORLDPLAY_IMAGE,
    "--config.data.clip.memory_points=50",
    *_WORLDPLAY_TOKENS,
    "--config.sample.rollout.num_steps=1",
)
#: The size of the model is that of the shipped weights.
_COSMOS = (*ROOMS, "--config.sample.rollout.num_steps=2")
_COSMOS_SMALL = (*_COSMOS, "--config.model.width=48", "--config.model.num_layers=2")
#: The published Cosmos-Predict2 at 32x16 pixels, with 24 latent frames as published.
_COSMOS_IMAGE = ("--config.data.encoding.image_size=(32,16)", "--config.data.clip.latent_size=(2,4)")
_COSMOS_PUBLISHED = (
    "--config.model.width=48",
    "--config.model.num_heads=4",
    "--config.model.num_layers=2",
    "--config.model.text_dim=24",
    "--config.model.text_width=24",
    "--config.model.modulation_rank=8",
    *_COSMOS_IMAGE,
    "--config.sample.rollout.num_steps=2",
)
#: The size of the model is that of the shipped weights.
_MATRIX = (*ROOMS, "--config.sample.rollout.num_steps=4")
#: The published sizes of The Matrix at 32x16 pixels, with 17 latent frames as published.
_MATRIX_IMAGE = ("--config.data.encoding.image_size=(32,16)", "--config.data.clip.latent_size=(2,4)")
_MATRIX_PUBLISHED = (
    "--config.model.width=48",
    "--config.model.num_heads=2",
    "--config.model.num_layers=2",
    "--config.model.time_dim=16",
    "--config.model.text_dim=24",
    *_MATRIX_IMAGE,
    "--config.sample.rollout.num_steps=4",
)
_MATRIX_CONTROL = ("--config.model.control_dim=12", "--config.model.control_layers=(1,2)")
_THEWORLD = (
    *ROOMS,
    "--config.model.num_layers=1",
    "--config.model.vision_layers=1",
    "--config.data.questions.per_answer=3",
    "--config.data.questions.view_size=(32,24)",
    "--config.sample.questions=2",
)
#: Gemma-3 with the tokenizer of `assets/tokenizer`.
_THEWORLD_PUBLISHED = (
    "--config.model.vocabulary=491",
    "--config.model.width=32",
    "--config.model.mlp_width=48",
    "--config.model.num_layers=2",
    "--config.model.num_heads=2",
    "--config.model.num_key_heads=1",
    "--config.model.head_dim=16",
    "--config.model.query_scale=16.0",
    "--config.model.pattern=('sliding','full')",
    "--config.model.image_token=7",
    "--config.model.image_tokens=4",
    "--config.model.vision_width=24",
    "--config.model.vision_mlp_width=32",
    "--config.model.vision_layers=1",
    "--config.model.vision_heads=2",
    "--config.model.image_size=28",
    "--config.model.patch_size=7",
    "--config.model.world.image_size=32",
    "--config.model.world.autoencoder_width=8",
    "--config.model.world.start_token=9",
    "--config.model.world.end_token=10",
    # One percent of a few images is none.
    "--config.data.conversations.val_share=0.5",
    "--config.data.clip.lengths=(64,128)",
    "--config.data.clip.image_size=28",
    "--config.data.clip.world_size=32",
    "--config.sample.rollout.max_tokens=4",
    "--config.sample.questions=2",
)
_AUTOENCODER = (*ROOMS, "--config.data.videos.val_share=0.5", "--config.sample.frames=5")
_PATCH = (
    *ROOMS,
    "--config.data.videos.image_size=(64,48)",
    "--config.data.clip.size=(32,32)",
    "--config.model.latent_channels=8",
    "--config.model.width=8",
    "--config.model.rank=8",
    "--config.sample.frames=5",
)

#: "recipe.py:variant" -> config keys.
RECIPES = {
    "ar_mem.py": _WORLDPLAY,
    "ar_mem.py:rooms": (*_WORLDPLAY, *_HUNYUAN),
    # ViZDoom is an extra that tests do not install.
    "ar_mem.py:starter": (*_WORLDPLAY, *_HUNYUAN, "--config.data.recording.source=rooms"),
    "ar_mem.py:8b": _WORLDPLAY_PUBLISHED,
    "ar_mem.py:bidirectional": _WORLDPLAY,
    "ar_distill.py": _WORLDPLAY,
    "ar_distill.py:shortcut": _WORLDPLAY,
    "ar_distill.py:forcing": (*_WORLDPLAY, "--config.critic.updates=1"),
    "cosmos_video2world.py": _COSMOS,
    "cosmos_video2world.py:tiny_action": _COSMOS,
    "cosmos_video2world.py:base": _COSMOS,
    "cosmos_video2world.py:tiny_lerobot": _COSMOS_SMALL,
    "cosmos_video2world.py:coinrun": _COSMOS_SMALL,
    "cosmos_video2world.py:tiny_multiview": _COSMOS_SMALL,
    "cosmos_video2world.py:2b_multiview": _COSMOS_PUBLISHED,
    "cosmos_video2world.py:2b": _COSMOS_PUBLISHED,
    "cosmos_video2world.py:2b_lora": (
        *_COSMOS_PUBLISHED,
        "--config.model.lora.rank=4",
        "--config.model.lora.alpha=4.0",
    ),
    "cosmos_video2world.py:14b": _COSMOS_PUBLISHED,
    "cosmos_video2world.py:14b_lora": (
        *_COSMOS_PUBLISHED,
        "--config.model.lora.rank=4",
        "--config.model.lora.alpha=4.0",
    ),
    # Their students have four steps.
    "cosmos_distill.py": (*_COSMOS, "--config.sample.rollout.num_steps=4", "--config.critic.updates=1"),
    "matrix_scm.py:matching": (*_MATRIX, "--config.critic.updates=1"),
    "matrix_lora.py:base": _MATRIX,
    "matrix_lora.py": _MATRIX,
    "matrix_control.py": _MATRIX,
    "matrix_swin_dpm.py": _MATRIX,
    "matrix_scm.py": _MATRIX,
    "matrix_lora.py:2b": (*_MATRIX_PUBLISHED, "--config.model.lora.rank=4", "--config.model.lora.alpha=4.0"),
    "matrix_control.py:2b": (*_MATRIX_PUBLISHED, *_MATRIX_CONTROL),
    "matrix_swin_dpm.py:2b": (*_MATRIX_PUBLISHED, *_MATRIX_CONTROL),
    "matrix_scm.py:2b": (*_MATRIX_PUBLISHED, *_MATRIX_CONTROL),
    "theworld.py": _THEWORLD,
    "theworld.py:tiny_steps": _THEWORLD,
    "theworld.py:tiny_lora": _THEWORLD,
    "theworld.py:projection": _THEWORLD_PUBLISHED,
    "theworld.py:vision": _THEWORLD_PUBLISHED,
    "theworld.py:full": _THEWORLD_PUBLISHED,
    # The last width is a multiple of twice the latent channels, and at most four times the width before it.
    "autoencoder.py": (*_AUTOENCODER, "--config.model.widths=(12,12,12,48,192)"),
    "autoencoder.py:small": (
        *_AUTOENCODER,
        "--config.model.widths=(8,8,8,32,128)",
        "--config.model.blocks=0",
        "--config.data.videos.image_size=(64,48)",
        "--config.data.clip.size=(32,32)",
        "--config.data.clip.frames=5",
    ),
    "autoencoder.py:patch": _PATCH,
    "autoencoder.py:worlds": _PATCH,
    # The original accumulates four parts of a batch.
    "my_recipe.py": (*_THEWORLD_PUBLISHED, "--config.optimizer.accumulate=1"),
    "my_config.py": (*_THEWORLD_PUBLISHED, "--config.optimizer.accumulate=1", "--config.epochs=0"),
}
#: Recipe and variant -> config keys where a step is only planned: on as many chips as the guide names.
PLANS = {
    "ar_mem.py:8b": (
        "--config.model.width=512",
        "--config.model.num_heads=4",
        "--config.model.num_layers=1",
        "--config.model.remat=none",
        "--config.optimizer.newton_schulz_steps=1",
        "--config.data.clip.latent_size=(4,4)",
        "--config.data.clip.window_frames=8",
        "--config.data.clip.memory_frames=4",
        "--config.data.clip.temporal_context=0",
        "--config.data.clip.text_tokens=64",
        "--config.data.clip.glyph_tokens=32",
        "--config.data.clip.vision_tokens=16",
    ),
    "cosmos_video2world.py:2b": _COSMOS_PUBLISHED,
    "theworld.py:projection": ("--config.model.num_layers=2", "--config.model.vision_layers=1"),
}
#: Command -> options.
COMMANDS = {
    "jworld.doctor": ("--config.mesh.sequence=1",),
    "scripts/train_motion.py": ("--steps=2",),
    # One golden case.
    "pytest": ("-k", "schedules", "-p", "no:cacheprovider"),
}
#: System of a checkpoint -> options of its evaluation.
EVALUATIONS = {
    "worldplay": ("--windows=2", "--chunks=2", "--revisits=1"),
    "cosmos": ("--windows=2",),
    "matrix": ("--windows=2", "--chunks=2"),
    "theworld": ("--limit=4",),
    "autoencoder": ("--windows=2", "--chunks=2"),
}
#: Folder of imported weights -> config keys.
IMPORTS = {
    "weights/ar": (*_WORLDPLAY_IMAGE, *_WORLDPLAY_TOKENS, "--config.sample.rollout.num_steps=1"),
    "weights/mine": (*_WORLDPLAY_IMAGE, *_WORLDPLAY_TOKENS, "--config.sample.rollout.num_steps=1"),
    "checkpoints/cosmos-predict2-2b": (*_COSMOS_IMAGE, "--config.sample.rollout.num_steps=2"),
    "checkpoints/cosmos-predict2-2b-multiview": (*_COSMOS_IMAGE, "--config.sample.rollout.num_steps=2"),
    # The published model is recognized by its width.
    "checkpoints/cosmos-predict2-14b": ("--variant=14b", *_COSMOS_IMAGE, "--config.sample.rollout.num_steps=2"),
    "checkpoints/posttrained": (*_COSMOS_IMAGE, "--config.sample.rollout.num_steps=2"),
    "checkpoints/cogvideox-2b": (*_MATRIX_IMAGE, "--config.sample.rollout.num_steps=4"),
    "checkpoints/matrix-stage1": (*_MATRIX_IMAGE, "--config.sample.rollout.num_steps=4"),
    "checkpoints/matrix-stage2": (*_MATRIX_IMAGE, "--config.sample.rollout.num_steps=4"),
}
#: Size written in a guide -> its small value, in every command. Longer texts come first.
VALUES = {
    "--output out/starter": "--output out/starter --chunks 2 --windows 1 --revisits 1",
    "--episodes 64 --frames 241 --size 192x144": "--episodes 4 --frames 121 --size 64x48",
    # ViZDoom is an extra that tests do not install.
    "--source doom --episodes 192 --size 256x192": "--source rooms --episodes 4 --frames 121 --size 64x48",
    "--width 832 --height 480": "--width 48 --height 32",
    "--width 1280 --height 704": "--width 32 --height 16",
    "--width 720 --height 480": "--width 32 --height 16",
    "--width 640 --height 480": "--width 32 --height 16",
    "none:1024": "none:24",
    # A benchmark takes its sizes from a recipe: the small one of `small.py`.
    "train_step.py --config configs/": "train_step.py --config small/",
}
ENVIRONMENT = {
    "XLA_FLAGS": xla_flags.fast_compilation(1),
    "JAX_OPTIMIZATION_LEVEL": "O0",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
}

_SUBCOMMANDS = {"convert": "conversion"}


def values(text: str) -> str:
    """Return the text of a block with small values."""
    for large, small in VALUES.items():
        text = text.replace(large, small)
    return text


def command(words: list[str]) -> list[str]:
    """Return a command with its overrides; `words` begin with the name of the program, `python` or `jworld`."""
    module, rest = _module(words)
    extra = list(COMMANDS.get(module, ()))
    if module == "jworld.evaluate" and (checkpoint := _value(rest, "--checkpoint")):
        config = pathlib.Path(checkpoint, "config.json")
        extra += EVALUATIONS[json.loads(config.read_text())["system"]] if config.is_file() else ()
    if module == "jworld.train" and "--dry-run" not in rest and "--from-json" not in rest:
        extra += (*RECIPES.get(_recipe(rest), ()), *RUN)
    if module == "jworld.plan":
        extra += PLANS.get(_recipe(rest), ())
    if module == "conversion" and rest[:1] in (["import"], ["fuse"]):
        extra += IMPORTS.get(_value(rest, "--output").rstrip("/"), ())
        words = [word.replace("--config=configs/", "--config=small/") for word in words]
    return commands.replaced(words, *extra)


def _module(words: list[str]) -> tuple[str, list[str]]:
    if words[0] == "jworld" and len(words) > 1:
        return _SUBCOMMANDS.get(words[1], f"jworld.{words[1]}"), words[2:]
    if words[1:2] == ["-m"]:
        return words[2], words[3:]
    return (words[1], words[2:]) if len(words) > 1 else ("", [])


def _value(words: list[str], option: str) -> str:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def _recipe(words: list[str]) -> str:
    return re.sub(r"^.*/", "", _value(words, "--config"))
