"""Machines with the TPU library and without a TPU: JAX starts on other devices, silently."""

import glob
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from jworld.utils import tpu_environment

needs_library = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.fixture
def no_tpu(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder in the place of /dev, empty, on a machine with the library."""
    monkeypatch.setattr(tpu_environment, "DEVICES", (f"{tmp_path}/accel*", f"{tmp_path}/vfio/[0-9]*"))
    monkeypatch.setattr(tpu_environment.importlib.util, "find_spec", lambda name: object())
    return tmp_path


def test_without_a_tpu(no_tpu: pathlib.Path) -> None:
    environment = {"HOME": "/root", "TPU_SKIP_MDS_QUERY": "true"}
    assert tpu_environment.settle(environment)
    assert environment == {"HOME": "/root"} | tpu_environment.ABSENT


@pytest.mark.parametrize("device", ["accel0", "vfio/3"])
def test_a_tpu_is_left_alone(no_tpu: pathlib.Path, device: str) -> None:
    (no_tpu / device).parent.mkdir(exist_ok=True)
    (no_tpu / device).touch()
    environment: dict[str, str] = {}
    assert not tpu_environment.settle(environment)
    assert environment == {}


def test_a_driver_without_devices_is_no_tpu(no_tpu: pathlib.Path) -> None:
    (no_tpu / "vfio").mkdir()
    (no_tpu / "vfio" / "vfio").touch()
    assert tpu_environment.settle({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PLATFORMS", "cpu"),
        ("JAX_FORCE_TPU_INIT", "1"),
        ("TPU_NAME", "local"),
        ("TPU_WORKER_ID", "0"),
        ("TPU_WORKER_HOSTNAMES", "a,b"),
        ("TPU_PROCESS_ADDRESSES", "a:1"),
        ("TPU_LIBRARY_PATH", "/lib/libtpu.so"),
    ],
)
def test_what_the_user_or_a_cluster_says_stays(no_tpu: pathlib.Path, name: str, value: str) -> None:
    environment = {name: value}
    assert not tpu_environment.settle(environment)
    assert environment == {name: value}


def test_without_the_library(no_tpu: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_environment.importlib.util, "find_spec", lambda name: None)
    assert not tpu_environment.settle({})


@needs_library
@pytest.mark.skipif(
    any(glob.glob(pattern) for pattern in tpu_environment.DEVICES),
    reason="this machine may have a TPU",
)
def test_jax_starts_silently_and_still_describes_tpus() -> None:
    code = (
        "import jworld, jax\n"
        "print(jax.devices()[0].platform)\n"
        "from jax.experimental import topologies\n"
        "print(len(topologies.get_topology_desc('v5p:2x2x2', platform='tpu').devices))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "TPU_"))}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.split()[0] != "tpu"
    assert result.stdout.split()[1] == "8"
    assert result.stderr == ""
