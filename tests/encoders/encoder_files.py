"""Files for the tests of encoders."""

import json
import pathlib


def write_json(path: pathlib.Path, value: object) -> None:
    """Write a JSON file, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
