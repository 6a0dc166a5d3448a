"""Imported weights that are not finite, as another program may have written them, are refused where they are read."""

import pathlib

import converted
import numpy as np
import pytest
import safetensors.numpy

from conversion import importing, sources
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors, finite


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_imported_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    download = converted.download(tmp_path / "download", "transformer_ar_train")
    tensors = safetensors.numpy.load_file(download / sources.WEIGHTS_NAME)
    tensors["time_in.mlp.0.weight"] = np.full_like(tensors["time_in.mlp.0.weight"], value)
    safetensors.numpy.save_file(tensors, download / sources.WEIGHTS_NAME)
    output, options = tmp_path / "imported", importing.Options(variant="ar")
    with pytest.raises(errors.UserError, match=r"non-finite time_in\.mlp\.0\.weight"):
        importing.import_weights(download, output, options)
    assert not output.exists()
    with monkeypatch.context() as patched:
        patched.setattr(finite, "all_finite", lambda array: True)
        importing.import_weights(download, output, options)
    with pytest.raises(errors.UserError, match=r"weights: time/hidden/kernel has NaN or infinite values as float32"):
        runs.load_model(output, run_config.load(output))
