"""The Matrix, stage 3: sliding windows with noise that grows from frame to frame, for an endless stream (Swin-DPM).

Variants (`--config=configs/matrix_swin_dpm.py:<variant>`):
  (none)  the tiny model after stage 2; minutes on two CPU cores
  2b      the published size with every value of the original's configs/sft_config.py of stage 3; docs/matrix.md
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "2b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b",)
STAGE_2 = "configs/matrix_control.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # All other values are those of stage 2.
    config = run_config.load_recipe(f"{STAGE_2}:{variant}").unlock()
    config.loss.update({"kind": "windows", "groups": 4})
    # The base is trained, too.
    config.optimizer.trainable = ".*"
    if variant == "2b":
        _published(config)
    else:
        _tiny(config)
    config.lock()
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.init_from = "runs/matrix_control"
    config.steps = 600
    # Whole episodes: the first latent of a clip is one frame instead of four and does not occur within a stream.
    config.data.records += "-whole"
    config.data.encoding.clip_frames = 0
    config.data.clip.update({"window_frames": 9, "start": "middle", "text_dropout": 0.1})
    # A stream continues from its own latents.
    config.loss.own_errors = 0.3
    config.sample.rollout = {
        "mode": "stream",
        "solver": "dpm",
        "num_steps": 20,
        "guidance": 1.5,
        "groups": 4,
        "window_frames": 2,
    }
    # Starts with the actions of the initial window.
    config.sample.actions = "D*10,DR*8,D*6,DL*8"


def _published(config: ml_collections.ConfigDict) -> None:
    config.init_from = "checkpoints/matrix-stage2"
    # The original mixes clips of 33 and 65 frames.
    config.data.clip.update({"window_frames": 17, "start": "first"})
    config.sample.rollout = {
        "mode": "stream",
        "solver": "dpm",
        "num_steps": 20,
        "spacing": "trailing",
        "guidance": 6.0,
        "groups": 4,
        "window_frames": 4,
    }
