"""The config.json of every export has values of the types that the other program's own file has."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import adapted
import pytest

from conversion import __main__ as conversion


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of both whose values have other types, such as 256 and 256.0, which strict readers refuse."""
    for key in theirs.keys() & ours.keys():
        pair = theirs[key], ours[key]
        if all(isinstance(value, dict) for value in pair):
            yield from differences(*pair, prefix=f"{prefix}{key}.")
        elif (
            len({str([type(each) for each in value] if isinstance(value, list) else type(value)) for value in pair}) > 1
        ):
            yield f"{prefix}{key}: {pair[0]!r} and {pair[1]!r}"


@pytest.mark.parametrize("name", adapted.DOWNLOADS)
def test_types_of_values(tmp_path: pathlib.Path, name: str) -> None:
    source = adapted.DOWNLOADS[name]().write(tmp_path / "source")
    layout = ["--layout", "diffusers"] if name.endswith("diffusers") else []
    conversion.main(["import", str(source), "--output", str(tmp_path / "ours")])
    conversion.main(["export", str(tmp_path / "ours"), *layout, "--output", str(tmp_path / "theirs")])
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "theirs"))
    assert list(differences(before, after)) == []
    assert len(before.keys() & after.keys()) > 3
