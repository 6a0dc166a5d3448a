"""Single values of a config, as set by --set."""

from typing import Any

from jworld.utils import config as run_config


def test_values_keep_their_types() -> None:
    values: dict[str, Any] = {"a": {"x": 1.5, "size": (2, 3), "name": "n", "on": False, "none": None}}
    for text in ("a.x=2", "a.size=4, 5", "config.a.name=7", "a.on=true", "a.none=8"):
        run_config.set_value(values, *run_config.parse_setting(text))
    assert values == {"a": {"x": 2.0, "size": (4, 5), "name": "7", "on": True, "none": 8}}
    assert isinstance(values["a"]["x"], float)
