"""Names of topologies as users write them."""

import subprocess
import sys

import pytest

from jworld.planning import compile_step, gpu_targets, topologies
from jworld.utils import errors, hardware


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


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [("h100-64", 64, "8x8"), ("a100-4", 4, "1x4"), ("gb200-64", 64, "16x4"), ("h100:2x4", 8, "2x4")],
)
def test_gpus_are_counted_in_hosts(name: str, chips: int, shape: str) -> None:
    topology = topologies.parse(name)
    assert (topology.platform, topology.chips, topology.shape) == ("gpu", chips, shape)


def test_chips_that_fast_links_join() -> None:
    """Those of a host; 72 of GB200, whose hosts have four."""
    linked = {
        name: compile_step.linked(topologies.parse(name)) for name in ("h100-64", "h100:4x2", "gb200-144", "v5e-64")
    }
    assert linked == {"h100-64": 8, "h100:4x2": 2, "gb200-144": 72, "v5e-64": 64}


def test_descriptions_of_gpus_name_known_chips() -> None:
    for name, target in gpu_targets.TARGETS.items():
        assert any(target.kind.lower().startswith(kind) for kind in hardware.CHIPS[name].kinds)
        assert target.memory == pytest.approx(hardware.CHIPS[name].memory_bytes, rel=0.08)
        assert target.bandwidth == pytest.approx(hardware.CHIPS[name].hbm_bandwidth, rel=0.01)
        text = gpu_targets.description(target)
        assert text.count("{") == text.count("}")
        assert f"major: {target.capability} minor: 0" in text


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
        ("h100-12", "12 GPUs do not fill hosts of 8"),
        ("h100:8x", "expected hosts and GPUs of a host, as in h100:8x8"),
        ("cpu:2x2", "expected a number of devices"),
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
