"""Values from the command line, for keys that a config lists and for those that only its dataclasses have."""

import dataclasses
from typing import Any, Literal

import ml_collections
import pytest

from jworld.utils import config_keys, errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Fields of two sections.

    Attributes:
      width: inner width, which
        may be long.
    """

    width: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Base):
    """A model.

    Attributes:
      rate, scale: two numbers; a colon: allowed.
      depth: layers, or None.

    Raises:
      ValueError: never.
    """

    rate: float = 1.0
    scale: float = 2.0
    depth: int | None = None
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    on: bool = False
    remat: str | None = "none"
    dtype: Any = "float32"


@dataclasses.dataclass(frozen=True)
class Hub:
    repo: str = ""


TYPES = {"model": Model, "checkpoint.hub": Hub}


def config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {"steps": 3, "model": {"width": 4, "rate": 1, "sizes": [1, 2]}, "checkpoint": {"interval": 5}}
    ).lock()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "7", 7),
        ("model.width", "16", 16),
        # The recipe has an integer there, the dataclass a number.
        ("model.rate", "0.5", 0.5),
        ("model.scale", "3", 3.0),
        ("model.depth", "2", 2),
        ("model.depth", "None", None),
        ("model.kind", "b", "b"),
        ("model.sizes", "4, 5", (4, 5)),
        ("model.sizes", "(4,)", (4,)),
        ("model.names", "blocks/(query|key)", ("blocks/(query|key)",)),
        ("model.names", "a maze, with walls", ("a maze, with walls",)),
        ("model.names", "('a, b','c')", ("a, b", "c")),
        ("model.names", "", ()),
        ("model.on", "true", True),
        ("model.on", "False", False),
        ("model.remat", "none", "none"),
        ("model.remat", "None", None),
        ("model.dtype", "bfloat16", "bfloat16"),
        ("checkpoint.hub.repo", "7", "7"),
        ("checkpoint.hub.repo", "a=b c", "a=b c"),
    ],
)
def test_values(key: str, text: str, value: Any) -> None:
    changed = config_keys.override(config(), {key: text}, TYPES)
    node: Any = changed
    for part in key.split("."):
        node = node[part]
    assert node == value
    assert type(node) is type(value)
    assert changed.is_locked


def test_the_config_itself_stays() -> None:
    before = config()
    config_keys.override(before, {"model.width": "9", "checkpoint.hub.repo": "x"}, TYPES)
    assert before == config()


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.widht", "3", "config.model.widht: this config has no such key; did you mean 'width'?"),
        ("model.scalf", "3", "config.model.scalf: this config has no such key; did you mean 'scale'?"),
        ("modle.width", "3", "config.modle: this config has no such key; did you mean 'model'?"),
        ("checkpoint.hbu.repo", "3", "config.checkpoint.hbu: this config has no such key; did you mean 'hub'?"),
        ("checkpoint.x", "3", "config.checkpoint.x: this config has no such key; the keys there are interval, hub"),
        ("steps.x", "3", "config.steps is a single value, so there is no key config.steps.x"),
        ("checkpoint", "3", "config.checkpoint is a section with the keys interval, hub: set one of them"),
        ("checkpoint.hub", "3", "config.checkpoint.hub is a section with the keys repo: set one of them"),
        ("steps", "many", "config.steps: expected an integer, got 'many' (it is 3)"),
        ("model.rate", "fast", "config.model.rate: expected a number, got 'fast' (it is 1)"),
        ("model.on", "maybe", "config.model.on: expected True or False, got 'maybe'"),
        ("model.depth", "deep", "config.model.depth: expected an integer or None, got 'deep'"),
        ("model.kind", "c", "config.model.kind: expected one of 'a', 'b', got 'c'"),
        ("model.sizes", "1,x", "config.model.sizes: expected a list such as 1,1, got '1,x' (it is (1, 2))"),
        ("model.sizes", "x", "config.model.sizes: expected a list such as 1,1, got 'x' (it is (1, 2))"),
    ],
)
def test_mistakes(key: str, text: str, message: str) -> None:
    with pytest.raises(errors.UserError) as found:
        config_keys.override(config(), {key: text}, TYPES)
    assert str(found.value) == message


def test_an_older_name() -> None:
    saved = ml_collections.ConfigDict({"sample": {"rollout": {"guidance_embedding_scale": 1.0}}})
    changed = config_keys.override(saved, {"sample.rollout.told_guidance": "2"})
    assert changed.sample.rollout.to_dict() == {"guidance_embedding_scale": 2.0}


def test_descriptions() -> None:
    assert config_keys.descriptions(Model) == {
        "width": "inner width, which may be long.",
        "rate": "two numbers; a colon: allowed.",
        "scale": "two numbers; a colon: allowed.",
        "depth": "layers, or None.",
    }
    assert config_keys.descriptions(Hub) == {}
