"""The class of the section `config.loss`, for systems with several kinds of losses."""

from collections.abc import Mapping
from typing import TypeVar

import ml_collections

from jworld.utils import errors

Loss = TypeVar("Loss")


def chosen(config: ml_collections.ConfigDict, classes: Mapping[str, type[Loss]]) -> type[Loss]:
    """Return the class of `config.loss` by its kind, which is the first of `classes` if it is absent.

    Raises:
      UserError: there is no such kind.
    """
    kind = config.loss.get("kind", next(iter(classes)))
    if kind not in classes:
        raise errors.UserError(f"config.loss.kind: found {kind!r}, expected one of {', '.join(classes)}")
    return classes[kind]
