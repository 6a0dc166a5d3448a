"""The Matrix, stage 2: a control adapter, which conditions every latent frame of a clip on an action.

Variants (`--config=configs/matrix_control.py:<variant>`):
  (none)  tiny model, on the result of configs/matrix_lora.py; minutes on two CPU cores
  2b      the published size with every value of the original's configs/sft_config.py of stage 2; docs/matrix.md
"""

import ml_collections

from jworld.utils import config as run_config

VARIANTS = ("", "2b")
#: Variants of published size, which the planner's table lists.
PUBLISHED = ("2b",)
STAGE_1 = "configs/matrix_lora.py"


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of {', '.join(VARIANTS[1:])}")
    # All other values are those of stage 1.
    config = run_config.load_recipe(f"{STAGE_1}:{variant or 'base'}").unlock()
    if variant == "2b":
        _published(config)
    else:
        _tiny(config)
    config.optimizer.trainable = "control_.*"
    config.lock()
    return config


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.init_from = "runs/matrix_lora"
    config.steps = 600
    config.model.control_dim = 32
    # From the first layer on: a base this small models motion there.
    config.model.control_layers = (0, 4)
    config.data.clip.update({"controls": "labels", "control_dropout": 0.1, "text_dropout": 0.0})


def _published(config: ml_collections.ConfigDict) -> None:
    config.init_from = "checkpoints/matrix-stage1"
    del config.model["lora"]
    config.model.control_dim = 768
    config.model.control_layers = (15, 30)
    # The original mixes clips of 21 and 65 frames.
    config.data.clip.update(
        {"controls": "tokens", "control_states": "data/matrix/controls.safetensors", "control_dropout": 0.1}
    )
