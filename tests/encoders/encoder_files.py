"""What the tests of encoders write."""

import json
import pathlib


def write_json(path: pathlib.Path, value: object) -> None:
    """Its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
