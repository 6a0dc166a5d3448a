"""Records of small episodes, made once."""

import pathlib

import pytest
from precompute_inputs import episode_settings, write_episodes

from jworld.data import records
from jworld.data.records import shards
from jworld.precompute import job


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("raw")
    write_episodes(directory, ["train", "train", "train", "val"])
    return directory


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> shards.Summary:
    return job.precompute(episode_settings(raw), tmp_path_factory.mktemp("sets") / "records")


@pytest.fixture(scope="module")
def autoencoder_path(prepared) -> str:
    return str(prepared.directory / records.AUTOENCODER_FILE)
