"""Identity of a data set: a hash of its content that is the same on every machine and at every path."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from jworld.data.records import shard_files
from jworld.utils import indices

#: Checksums of records that are part of the hash, at most; they are spread over the set.
CHECKED = 4096
#: Keys that record where a set was made, and not what it holds.
_PLACES = ("request", "source", "sources")


def of_records(directory: pathlib.Path, manifest: Mapping[str, Any]) -> str:
    """Return the identity of a set of records: a hash of its manifest and of the checksums of its records.

    Raises:
      UserError: a shard is absent or damaged.
    """
    shards = [*(shard for split in manifest["splits"].values() for shard in split), *manifest["text"]]
    reader = shard_files.open_shards(directory, shards) if shards else None
    picked = indices.evenly(len(reader), CHECKED) if reader else []
    return combined(manifest, (reader.checksum(i).to_bytes(8, "little") for i in picked) if reader else ())


def combined(manifest: Mapping[str, Any], parts: Iterable[bytes]) -> str:
    """Return the hash of a manifest, without the places that it names, and of parts of the content."""
    digest = xxhash.xxh3_128(json.dumps(_without_places(manifest), sort_keys=True).encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items() if key not in _PLACES}
    return value
