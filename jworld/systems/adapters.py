"""The optional section `model.lora` of a recipe: adapters on the network of any system."""

from typing import Any, TypeVar

import ml_collections
from flax import nnx

from jworld.models.layers import lora
from jworld.utils import config as run_config
from jworld.utils import errors

Model = TypeVar("Model", bound=nnx.Module)


def section(config: ml_collections.ConfigDict) -> lora.LoRAConfig | None:
    """Return the section `config.model.lora`, or None if it is absent.

    Raises:
      UserError: a key is unknown or of the wrong type, or all parameters would train.
    """
    if "lora" not in config.model:
        return None
    if config.optimizer.trainable == ".*":
        raise errors.UserError(
            f"config.optimizer.trainable is '.*', which trains the base of config.model.lora too: set it to "
            f"{lora.TRAINABLE!r} to train only the adapters, or remove config.model.lora"
        )
    return run_config.section(lora.LoRAConfig, config.model.lora, "model.lora")


def network(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return `config.model` without the adapters: the fields of the network's config."""
    return {key: value for key, value in config.model.items() if key != "lora"}


def adapted(model: Model, cfg: lora.LoRAConfig | None, *, rngs: nnx.Rngs) -> Model:
    """Add the adapters that the section describes, if any, and return the model."""
    if cfg is not None:
        lora.add(model, cfg, rngs=rngs)
    return model
