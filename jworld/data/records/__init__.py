"""Training records: their schema and manifest, shards, checks, statistics, and the store of encoded prompts."""

from jworld.data.records.manifest import FORMAT, MANIFEST, VERSION
from jworld.data.records.manifest import read as read_manifest
from jworld.data.records.manifest import write as write_manifest
from jworld.data.records.schema import (
    AUTOENCODER_FILE,
    CAMERA_CONVENTION,
    NO_ENCODER,
    SPLITS,
    ArraySpec,
    Record,
    RecordSource,
    RecordWriter,
    check_manifest,
    decode_record,
    encode_record,
    make_arrays,
)

__all__ = [
    "AUTOENCODER_FILE",
    "CAMERA_CONVENTION",
    "FORMAT",
    "MANIFEST",
    "NO_ENCODER",
    "SPLITS",
    "VERSION",
    "ArraySpec",
    "Record",
    "RecordSource",
    "RecordWriter",
    "check_manifest",
    "decode_record",
    "encode_record",
    "make_arrays",
    "read_manifest",
    "write_manifest",
]
