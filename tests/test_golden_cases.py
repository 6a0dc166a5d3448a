import math
import pathlib

import golden_cases
import numpy as np
import pytest


def test_the_longest_known_kind_wins() -> None:
    kinds = {"one/loss", "one/loss_memory", "two/loss"}
    assert golden_cases.kind_of("one/loss_memory_sample", kinds) == "one/loss_memory"
    assert golden_cases.kind_of("one/loss_window", kinds) == "one/loss"
    assert golden_cases.kind_of("one/lost", kinds) is None


def test_every_folder_with_a_config_is_a_case(tmp_path: pathlib.Path) -> None:
    for name in ("one/b", "one/a", "two/c", "two/empty"):
        (tmp_path / name).mkdir(parents=True)
        if name != "two/empty":
            (tmp_path / name / "config.json").write_text('{"seed": 3}')
    cases = golden_cases.discover(tmp_path)
    assert [case.name for case in cases] == ["one/a", "one/b", "two/c"]
    assert cases[0].config == {"seed": 3}


def test_errors_are_relative_and_never_hide_a_nan() -> None:
    assert golden_cases.relative_error([3.0, 4.4], [3.0, 4.0]) == pytest.approx(0.08)
    assert golden_cases.relative_error([0.5], [0.0]) == 0.5
    expected = {"a": np.ones(2), "b": np.ones(2)}
    assert math.isnan(golden_cases.largest_error({"a": np.array([np.nan, 1]), "b": np.zeros(2)}, expected))
    with pytest.raises(AssertionError, match="shape"):
        golden_cases.relative_error(np.ones(3), np.ones(2))
    with pytest.raises(KeyError):
        golden_cases.largest_error({"a": np.ones(2)}, expected)
