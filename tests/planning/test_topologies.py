"""Names of topologies as users write them."""

import subprocess
import sys

import pytest

from jworld.planning import topologies
from jworld.utils import errors


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [
        ("v5p-128", 64, "4x4x4"),
        ("v4-32", 16, "2x2x4"),
        ("v5p:4x4x8", 128, "4x4x8"),
        ("v5e-64", 64, "8x8"),
        ("v5litepod-16", 16, "4x4"),
        ("V6E-256", 256, "16x16"),
    ],
)
def test_tpu_names_count_chips_or_cores(name: str, chips: int, shape: str) -> None:
    topology = topologies.parse(name)
    assert (topology.platform, topology.chips, topology.shape) == ("tpu", chips, shape)


def test_other_names() -> None:
    assert topologies.parse("cpu:8").chip is None
    h200 = topologies.parse("h200-8")
    assert (h200.platform, h200.chips) == ("gpu", 8)
    assert h200.chip is not None
    assert h200.chip.memory_bytes == 141 * 10**9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x-8", "unknown name; examples: v5e-64"),
        ("pod", "unknown name"),
        ("v5e-48", r"the slices are v5e-1, .*v5e-64"),
        ("v5p-9", r"the slices are v5p-8, "),
        ("v5p:5x5x5", "shapes of v5p: 2x2x1"),
        ("cpu:0", "expected a number of devices"),
    ],
)
def test_wrong_names_are_refused_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        topologies.parse(name)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.UserError, match=r'pip install -e "\.\[tpu\]"'):
        topologies.check_tools(topologies.parse("v5e-4"))
    topologies.check_tools(topologies.parse("cpu:4"))


def test_help_describes_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jworld.plan", "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0
    for word in ("a lower bound on the time of a step", "--topology", "v5p-128", "--search", "--json"):
        assert word in result.stdout
