"""Detection of a process's index and count, and the part of a batch that a mesh assigns to it."""

import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from jworld.parallel import mesh as mesh_lib
from jworld.parallel import startup
from jworld.utils import errors

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "JWORLD_HOSTS": "node07,node08",
}


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_run_has_one_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert startup.find() is None
    set_all(monkeypatch, SLURM)
    assert startup.find() is not None
    assert startup.find(num_processes=1) is None
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    assert startup.find() is None
    with startup.processes(None):
        assert not jax.distributed.is_initialized()


def test_slurm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM)
    place = startup.find()
    assert place.coordinator == "node07:61441"  # 65535 - 4096 + 1 + job id modulo 4096, as JAX documents
    assert (place.count, place.index, place.local_devices) == (4, 3, [1])
    assert place.name(3) == "process 3 (node08)"
    assert place.name(1) == "process 1 (node07)"


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        ({}, ("node1:8476", 2, 1), ("node1:8476", 2, 1)),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"},
            (None, None, None),
            ("a:1", 3, 0),
        ),
        # As xpk sets them on GPU nodes.
        (
            {"JAX_COORDINATOR_ADDRESS": "job-0-0.job", "JAX_COORDINATOR_PORT": "6002"},
            (None, 4, 2),
            ("job-0-0.job:6002", 4, 2),
        ),
        (SLURM, ("other:5", 2, 0), ("other:5", 2, 0)),
    ],
)
def test_flags_and_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], arguments: Any, expected: Any
) -> None:
    set_all(monkeypatch, variables)
    place = startup.find(*arguments)
    assert (place.coordinator, place.count, place.index) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node1:8476", None, None), "--num-processes None, --process-id None: give all three"),
        (("node1", 2, 0), "--coordinator is node1, expected host:port"),
        (("node1:99999", 2, 0), "--coordinator is node1:99999, expected host:port"),
        (("no\nde1:8476", 2, 0), "expected host:port"),
        (("node1:8476", 0, 0), "--num-processes is 0, expected a positive integer"),
        (("node1:8476", 2, 2), "--process-id is 2, expected 0 to 1"),
    ],
)
def test_mistakes(arguments: Any, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        startup.find(*arguments)


def test_commands_of_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch) -> None:
    startup.require_alone("python -m jworld.generate")
    set_all(monkeypatch, SLURM)
    with pytest.raises(errors.UserError, match=r"jworld\.generate runs in a single process, but this is process 3"):
        startup.require_alone("python -m jworld.generate")


def test_work_is_divided_without_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    assert startup.part() == (0, 1)
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    set_all(monkeypatch, SLURM)
    assert startup.part() == (3, 4)
    assert options == {"jax_cuda_visible_devices": "1"}


def test_detection_initializes_no_device() -> None:
    code = (
        "from jworld.parallel import startup; startup.find(); from jax._src import xla_bridge; "
        "raise SystemExit(xla_bridge.backends_are_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fake_mesh(processes: list[int], **shape: int) -> Any:
    """Make a mesh whose devices, in order, belong to these processes."""
    devices = np.array([types.SimpleNamespace(process_index=index) for index in processes], object)
    return types.SimpleNamespace(devices=devices.reshape(*shape.values()), shape=shape)


@pytest.mark.parametrize(
    ("processes", "shape", "parts"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], {"data": 2, "fsdp": 2, "sequence": 2}, [(0, 2), (1, 2)]),
        ([0, 0, 0, 0, 1, 1, 1, 1], {"data": 1, "fsdp": 1, "sequence": 8}, [(0, 1), (0, 1)]),
        # One process per GPU; two share the tokens of a sample.
        ([0, 1, 2, 3], {"data": 1, "fsdp": 2, "sequence": 2}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        # Devices of a process that are not adjacent in the mesh.
        ([0, 1, 0, 1], {"data": 2, "fsdp": 2, "sequence": 1}, [(0, 2), (1, 2)]),
    ],
)
def test_batch_parts(monkeypatch: pytest.MonkeyPatch, processes: list[int], shape: dict[str, int], parts: Any) -> None:
    mesh = fake_mesh(processes, **shape)
    found = []
    for index in range(len(parts)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(mesh_lib.batch_part(mesh))
    assert found == parts


def test_uneven_parts_are_refused() -> None:
    with pytest.raises(errors.UserError, match="splits samples across them unevenly"):
        mesh_lib.batch_part(fake_mesh([0, 0, 0, 1, 1, 1], data=1, fsdp=3, sequence=2))
