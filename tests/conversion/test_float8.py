"""Weights in float8: stored in bfloat16, or refused where their values need scales."""

import pathlib
from typing import Any

import converted
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from conversion import __main__ as conversion
from conversion import importing, sources
from jworld.utils import errors

ACTION = "transformer_ar_train"


def test_float8_becomes_bfloat16(tmp_path: pathlib.Path) -> None:
    """The same values in a dtype that can be trained, sampled and exported."""
    tensors = converted.case(ACTION).weights
    narrow = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors.items()}
    source = converted.download(tmp_path / "source", ACTION)
    save_float8(source / sources.WEIGHTS_NAME, narrow)
    record = importing.import_weights(source, tmp_path / "out", importing.Options())[1]
    assert record["dtype"] == "bfloat16"
    conversion.main(["verify", str(tmp_path / "out"), str(source)])
    conversion.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "back")])
    name = "final_layer.linear.weight"
    _, _, data = converted.contents(tmp_path / "back")[name]
    assert data == narrow[name].astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("scale", ["scaled_fp8", "double_blocks.0.img_attn_q.scale_weight"])
def test_float8_with_scales_is_refused(tmp_path: pathlib.Path, scale: str) -> None:
    tensors = dict(converted.case(ACTION).weights)
    narrow = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors.items()}
    source = converted.download(tmp_path / "source", ACTION)
    save_float8(source / sources.WEIGHTS_NAME, narrow | {scale: np.zeros(1, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(
        errors.UserError, match=rf"weights are float8 with scales \('{scale}'\), expected plain weights: give the"
    ):
        importing.import_weights(source, tmp_path / "out", importing.Options(allow=[".*"]))


def save_float8(path: pathlib.Path, tensors: dict[str, Any]) -> None:
    """Write tensors of float8, which the library's functions for numpy do not write."""
    views = {name: torch.from_numpy(value.view(np.uint8)).view(torch.float8_e4m3fn) for name, value in tensors.items()}
    safetensors.torch.save_file(views, path)
