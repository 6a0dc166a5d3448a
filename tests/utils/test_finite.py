"""NaN and infinity are found in every dtype of weights."""

import ml_dtypes
import numpy as np
import pytest

from jworld.utils import finite


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_anywhere(dtype: type, value: float) -> None:
    array = np.linspace(-1000, 1000, 300_001).astype(dtype)
    array[:2] = [np.finfo(np.float16).max, np.finfo(np.float16).min]
    assert finite.all_finite(array)
    for place in (0, 150_000, -1):
        changed = array.copy()
        changed[place] = value
        assert not finite.all_finite(changed)
        assert not finite.all_finite(np.stack([changed, changed], axis=1)[:, ::2])


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float64, np.int32, np.bool_])
def test_other_dtypes(dtype: type) -> None:
    array = np.ones((2, 3), dtype)
    assert finite.all_finite(array)
    assert finite.all_finite(array[:0])
    if np.dtype(dtype).kind not in "ib":
        array[1, 2] = np.nan
        assert not finite.all_finite(array)
