"""Lookup of devices in the table of published figures by their names in JAX."""

import types

import jax
import pytest

from jworld.utils import hardware


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_device_kinds_are_found(kind: str, name: str) -> None:
    chip = hardware.of_device(types.SimpleNamespace(device_kind=kind))  # type: ignore[arg-type]
    assert chip is hardware.CHIPS[name]


def test_a_processor_is_not_in_the_table() -> None:
    assert hardware.of_device(jax.devices("cpu")[0]) is None
