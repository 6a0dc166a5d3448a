"""Released weights that refer to an autoencoder instead of holding a copy."""

import pathlib

import numpy as np
import pytest
import tiny_run

import jworld
from jworld.data import records
from jworld.systems import runs
from scripts import release_weights


def test_an_autoencoder_of_several_models_is_stored_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run.make_run(tmp_path)
    shared = tmp_path / "shared.safetensors"
    shared.write_bytes((run / runs.ENCODERS / records.AUTOENCODER_FILE).read_bytes())
    released = tmp_path / "released"
    release_weights.main([f"--run={run}", f"--output={released}", f"--autoencoder={shared}"])
    assert [path.name for path in (released / runs.ENCODERS).iterdir()] == [records.MANIFEST]
    latents = np.random.default_rng(0).standard_normal((1, 2, 3, 4, tiny_run.CHANNELS), np.float32)
    found, expected = (jworld.load(folder).encoders.autoencoder.decode(latents) for folder in (released, run))
    np.testing.assert_array_equal(found, expected)

    other = tmp_path / "other.safetensors"
    other.write_bytes(shared.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit) as ended:
        release_weights.main([f"--run={run}", f"--output={tmp_path / 'again'}", f"--autoencoder={other}"])
    assert ended.value.code == 2
    assert f"--autoencoder {other} is not the autoencoder of the run" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
