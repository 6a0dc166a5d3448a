"""Networks that a model carries while it trains: a frozen teacher, and a critic that trains in turns with it.

They are attributes of the model, so their weights have the layout that their logical axes give them on any mesh. The
filter of trainable parameters leaves them out: a teacher's weights are saved once, and those of a critic with its own
optimizer (`optimizers.CriticConfig`). A model without them is built for sampling.
"""

import re
from typing import TypeVar, cast

import ml_collections
from flax import nnx

from jworld.utils import errors

TEACHER, CRITIC = "teacher", "critic"
#: Parameters of a model with parts that train with it (`config.optimizer.trainable`).
TRAINABLE = f"(?!({TEACHER}|{CRITIC})/).*"

Model = TypeVar("Model", bound=nnx.Module)


def attach(model: Model, *, teacher: Model | None = None, critic: Model | None = None) -> Model:
    """Give a model its parts, and return it."""
    for name, part in ((TEACHER, teacher), (CRITIC, critic)):
        if part is not None:
            setattr(model, name, part)
    return model


def has(model: nnx.Module, name: str) -> bool:
    """Return whether the model has the part `name`."""
    return hasattr(model, name)


def of(model: Model, name: str) -> Model:
    """Return the part `name` of a model, a network of the same kind.

    Raises:
      UserError: the model was built without it.
    """
    if not has(model, name):
        raise errors.UserError(
            f"the weights have no {name}, which the loss of a distillation needs: choose a checkpoint of one"
        )
    return cast(Model, getattr(model, name))


def check_trainable(pattern: str, parameter: str) -> None:
    """Raise a `UserError` if `config.optimizer.trainable` also matches a part; `parameter` is one of the model's."""
    for name in (TEACHER, CRITIC):
        if re.fullmatch(pattern, f"{name}/{parameter}"):
            raise errors.UserError(
                f"config.optimizer.trainable is {pattern!r}, which trains the {name} too: set it to {TRAINABLE!r}"
            )


def check_critic(config: ml_collections.ConfigDict, loss: str) -> None:
    """Raise a `UserError` if the config has no optimizer of the critic that a loss trains."""
    if "critic" not in config:
        raise errors.UserError(
            f"config.critic is missing: {loss} trains a critic, whose optimizer this section describes"
        )
