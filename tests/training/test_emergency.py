"""Emergency checkpoints of the toy run in one process, and the decisions that several processes make alike."""

import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import full_disk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from jworld.training import checksums, emergency, memory_files, memory_plan
from jworld.utils import errors, host_memory

BLOCKS = nnx.All(nnx.Param, nnx.PathContains("blocks"))
FACTS = {"the config": "a", "the program": "b"}


class Launch:
    """One start of a run with emergency checkpoints in `folder`, with the lines that it prints."""

    def __init__(self, folder: pathlib.Path, run: toy.Run, **facts: str) -> None:
        self.lines: list[str] = []
        self.run = run
        config = emergency.EmergencyConfig(every=1, folder=str(folder / "memory"))
        self.memory = emergency.EmergencyCheckpoints(config, folder, {**FACTS, **facts}, message=self.lines.append)

    def restore(self, **options: Any) -> tuple[Any, Any] | None:
        options = {"ordinary": None} | options
        found = self.memory.restore(self.run.abstract(), self.run.mesh, **options)
        self.memory.register()
        return found

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.run.step()
            self.memory.save(self.run.state, {"next_batch": int(self.run.state.step)})

    def wait(self) -> None:
        """Wait for the background work."""
        if self.memory._thread is not None:
            self.memory._thread.join()

    def crash(self) -> None:
        """End as by an error, after the background work."""
        self.wait()
        self.memory.__exit__(RuntimeError, None, None)


@pytest.fixture(scope="module")
def adapters() -> toy.Run:
    """Make a run on 8 devices with frozen parameters and EMA."""
    return toy.Run(mesh=(2, 2, 2), trainable=BLOCKS, ema_decay=0.9, name="muon")


def trained(folder: pathlib.Path, run: toy.Run, steps: int) -> Launch:
    launch = Launch(folder, run)
    assert launch.restore() is None
    launch.train(steps)
    launch.crash()
    return launch


def shards(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "memory").parent.name) for path in folder.rglob("*.shards"))


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def equal(a: Any, b: Any) -> None:
    for x, y in toy.pairs(a, b):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_the_state_comes_back_bit_for_bit(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    trained(tmp_path, adapters, 3)
    number = int(adapters.state.step)
    # The generation before it is kept, all others are not.
    assert shards(tmp_path) == sorted([str(number - 1), str(number), "frozen"])
    expected = jax.device_get(adapters.state)

    again = Launch(tmp_path, adapters)
    state, data = again.restore()
    assert data == {"next_batch": number}
    equal(state, expected)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, adapters.state)
    assert again.lines[-1] == f"restored step {number} from memory"
    # Buffers that a step can donate, more than once.
    adapters.state = state
    again.train(1)
    with again.memory:
        pass
    assert not shards(tmp_path)
    assert not list((tmp_path / "memory").iterdir())


def test_every_dtype_and_shape_comes_back(tmp_path: pathlib.Path) -> None:
    mesh = toy.make_mesh((2, 2, 1))
    kinds = {
        "rows": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))),
        "columns": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp")),
        "all": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    }
    values = np.random.default_rng(0).normal(scale=50, size=(4, 6))
    tree = {
        f"{name}-{dtype}": jax.device_put(jnp.asarray(values).astype(dtype), sharding)
        for name, sharding in kinds.items()
        for dtype in ("float32", "bfloat16", "int32", "int8", "bool", "float8_e4m3fn")
    }
    tree |= {"scalar": jnp.int32(-7), "empty": jnp.zeros((0, 3))}
    folder = memory_files.MemoryFolder(tmp_path, "run", {})
    folder.write("1", 0, tree, checksums.describe(tree), {}).finish()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    opened = memory_files.Shards.open(folder.path("1", 0))
    opened.verify()
    restored = opened.restore(abstract)
    for name, array in tree.items():
        assert (restored[name].dtype, restored[name].sharding) == (array.dtype, array.sharding)
        assert np.asarray(restored[name]).tobytes() == np.asarray(array).tobytes()
    # Every distinct shard is written once.
    assert opened.record["bytes"] == memory_files.tree_bytes(abstract) < 3 * sum(x.nbytes + 256 for x in tree.values())
    with pytest.raises(memory_files.DamagedError, match="another model or optimizer"):
        opened.restore({**abstract, "scalar": jax.ShapeDtypeStruct((), jnp.float32, sharding=tree["scalar"].sharding)})
    moved = jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=kinds["rows"])
    with pytest.raises(memory_files.DamagedError, match="another sharding"):
        opened.restore({**abstract, "all-float32": moved})


def test_a_newer_or_chosen_ordinary_checkpoint_is_preferred(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    for options, is_restored in (
        ({"ordinary": 10**6}, False),
        ({"ordinary": 0, "chosen": True}, False),
        ({"ordinary": 0}, True),
    ):
        trained(tmp_path, adapters, 1)
        again = Launch(tmp_path, adapters)
        assert (again.restore(**options) is not None) == is_restored
        # A step that is not continued must not be found later.
        assert shards(tmp_path) == (["frozen"] if not is_restored else [str(int(adapters.state.step)), "frozen"])
        with again.memory:
            pass


@pytest.mark.parametrize("where", [100, -5], ids=["content", "record"])
def test_a_damaged_file_is_named_and_the_generation_before_it_taken(
    tmp_path: pathlib.Path, adapters: toy.Run, where: int
) -> None:
    trained(tmp_path, adapters, 2)
    number = int(adapters.state.step)
    (path,) = tmp_path.glob(f"memory/*/{number}/0.shards")
    flip(path, where)
    again = Launch(tmp_path, adapters)
    state, _ = again.restore()
    assert int(state.step) == number - 1
    if where > 0:
        assert any(line.startswith(f"damaged in memory: {path}: its content differs") for line in again.lines)
    (frozen,) = tmp_path.glob("memory/*/frozen/0.shards")
    flip(frozen, 64)
    last = Launch(tmp_path, adapters)
    assert last.restore() is None
    assert any("frozen" in line for line in last.lines)


@pytest.mark.parametrize("name", ["the config", "the program"])
def test_files_of_another_config_or_program_are_ignored(tmp_path: pathlib.Path, adapters: toy.Run, name: str) -> None:
    trained(tmp_path, adapters, 1)
    again = Launch(tmp_path, adapters, **{name: "another"})
    assert again.restore() is None
    assert any(line.endswith(f"they differ in {name}") for line in again.lines)
    assert not shards(tmp_path)


def test_files_of_another_mesh_are_ignored(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    trained(tmp_path, adapters, 1)
    again = Launch(tmp_path, adapters)
    assert again.memory.restore(adapters.abstract((1, 4, 2)), toy.make_mesh((1, 4, 2)), ordinary=None) is None
    assert any(line.endswith("they differ in the mesh") for line in again.lines)


def test_another_run_in_the_same_folder_is_left_alone(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    trained(tmp_path, adapters, 1)
    before = sorted((tmp_path / "memory").rglob("*.shards"))
    first = emergency.run_of(tmp_path)
    (tmp_path / emergency.FILE).unlink()
    other = Launch(tmp_path, adapters)
    assert other.restore() is None
    assert emergency.run_of(tmp_path) != first
    with other.memory:
        other.train(1)
    assert sorted((tmp_path / "memory").rglob("*.shards")) == before
    emergency.forget(other.memory.config, first)
    assert not shards(tmp_path)


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = {path!r}
import test_emergency, toy
from jworld.training import memory_files
launch = test_emergency.Launch(pathlib.Path({folder!r}), toy.Run())
launch.restore()
launch.train({before})
written, write = [], memory_files._write_all
def killing(file, view):
    write(file, view[: len(view) // 2])
    written.append(len(view))
    if len(written) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, view[len(view) // 2 :])
memory_files._write_all = killing
launch.train(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_kill_in_the_middle_of_a_write_keeps_the_generation_before(tmp_path: pathlib.Path, before: int) -> None:
    program = KILLED.format(path=[*sys.path, str(pathlib.Path(__file__).parent)], folder=str(tmp_path), before=before)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(tmp_path.rglob(".0.shards.*"))) == 1
    again = Launch(tmp_path, toy.Run())
    restored = again.restore()
    assert (int(restored[0].step) if restored else 0) == before
    assert not list(tmp_path.rglob(".0.shards.*"))


def test_a_full_memory_is_one_line_and_ends_nothing(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    launch = Launch(tmp_path, adapters)
    launch.restore()
    launch.train(1)
    number = int(adapters.state.step)
    launch.wait()
    with full_disk.after(2000):
        launch.train(1)
    launch.train(1)
    (line,) = (line for line in launch.lines if "could not be written" in line)
    assert line.startswith("emergency checkpoint: it could not be written to ")
    assert "File too large" in line
    launch.crash()
    assert shards(tmp_path) == sorted([str(number), str(number + 2), "frozen"])


def test_a_copy_that_fails_is_one_line_and_ends_nothing(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    launch = Launch(tmp_path, adapters)
    launch.restore()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch.memory._neighbor, launch.memory._addresses = 0, [("127.0.0.1", port)]
    launch.train(2)
    number = int(adapters.state.step)
    (line,) = (line for line in launch.lines if "no copy" in line)
    assert f"no copy on this process: no connection to 127.0.0.1:{port} (Connection refused)" in line
    launch.crash()
    # The own file is complete all the same.
    assert int(Launch(tmp_path, adapters).restore()[0].step) == number


def test_too_little_memory_is_refused_before_training(
    tmp_path: pathlib.Path, adapters: toy.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "free", lambda folder: 2000)
    (tmp_path / "memory" / "other").mkdir(parents=True)
    with pytest.raises(errors.UserError, match=r"need 0\.0 MB .* 0\.0 MB are free .*1 other runs \(other\)"):
        Launch(tmp_path, adapters).restore()


def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: pathlib.Path, adapters: toy.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").write_text("")
    with pytest.raises(errors.UserError, match=r"emergency\.folder: .*memory cannot be created"):
        Launch(tmp_path, adapters).restore()
    (tmp_path / "memory").unlink()
    (tmp_path / "memory").mkdir()
    owner = (tmp_path / "memory").stat().st_uid
    monkeypatch.setattr(emergency.os, "geteuid", lambda: 12345)
    if owner:
        with pytest.raises(errors.UserError, match="belongs to another user"):
            Launch(tmp_path, adapters).restore()


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    launch = Launch(tmp_path, adapters)
    launch.restore()
    state = adapters.state
    broken = state.replace(params=jax.tree.map(lambda x: x * jnp.inf, state.params))
    with pytest.raises(errors.UserError, match=r"is not saved: params/blocks/.* has NaN or infinite values"):
        launch.memory.save(broken, {})
    launch.crash()
    assert not shards(tmp_path)


def test_an_id_that_is_a_path_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / emergency.FILE).write_text('{"run": "../../home"}')
    with pytest.raises(errors.UserError, match="expected an id of letters and digits"):
        emergency.run_of(tmp_path)


def test_off_nothing_is_touched(tmp_path: pathlib.Path, adapters: toy.Run) -> None:
    config = emergency.EmergencyConfig(folder=str(tmp_path / "memory"))
    with emergency.EmergencyCheckpoints(config, tmp_path, FACTS, message=print) as memory:
        assert memory.restore(adapters.abstract(), adapters.mesh, ordinary=None) is None
        memory.register()
        assert not any(memory.due(step) for step in range(10))
    assert not list(tmp_path.iterdir())


# Decisions that the processes of a run make alike.


class Device:
    def __init__(self, process: int) -> None:
        self.process_index = process


class Mesh:
    def __init__(self, owners: list[list[int]]) -> None:
        self.devices = np.array([[Device(owner) for owner in row] for row in owners])
        self.shape = {"data": len(owners), "fsdp": len(owners[0])}


def test_a_process_that_takes_over_the_devices_of_another_takes_its_seat() -> None:
    before, after = Mesh([[0, 0, 1, 1], [2, 2, 3, 3]]), Mesh([[2, 2, 0, 0], [3, 3, 1, 1]])
    assert memory_plan.seats(before) == [0, 1, 2, 3]
    assert memory_plan.seats(after) == [1, 3, 0, 2]
    assert memory_plan.layout(before) == memory_plan.layout(after)
    assert memory_plan.layout(before) != memory_plan.layout(Mesh([[0, 1, 0, 1], [2, 3, 2, 3]]))
    assert memory_plan.layout(before) != memory_plan.layout(Mesh([[0, 0, 1, 1, 2, 2, 3, 3]]))


@pytest.mark.parametrize(
    "places, expected",
    [
        (["a"], [None]),
        (["a", "a"], [None, None]),
        (["a", "b"], [1, 0]),
        (["a", "b", "c"], [1, 2, 0]),
        # Never on the own host, and spread over the processes of the next one.
        (["a", "a", "b", "b"], [2, 3, 0, 1]),
        (["a", "a", "a", "b"], [3, 3, 3, 0]),
    ],
)
def test_copies_lie_on_the_next_host(places: list[str], expected: list[int | None]) -> None:
    assert memory_plan.neighbors(places) == expected


@pytest.mark.parametrize(
    "held, has_frozen, expected",
    [
        # All hosts came back: the newest step, unless one of them had not finished it.
        ([{"4": [0, 1], "2": [0, 1]}, {"4": [1, 0], "2": [1, 0]}], False, 4),
        ([{"4": [0], "2": [0, 1]}, {"2": [1, 0]}], False, 2),
        # One host is new, its neighbor has the copy.
        ([{"4": [0, 1]}, {}], False, 4),
        ([{}, {"10": [0, 1], "9": [0, 1]}], False, 10),
        # Two neighboring hosts of three are new.
        ([{"4": [0, 2]}, {}, {}], False, None),
        # Frozen parameters are needed too.
        ([{"4": [0, 1]}, {"4": [0, 1]}], True, None),
        ([{"4": [0, 1], "frozen": [0]}, {"4": [0, 1], "frozen": [1]}], True, 4),
        ([{}, {}], False, None),
    ],
)
def test_the_newest_step_that_is_complete(held: list[Any], has_frozen: bool, expected: int | None) -> None:
    assert memory_plan.newest(held, len(held), has_frozen=has_frozen) == expected


def test_a_process_without_its_file_is_supplied_by_one_that_has_it() -> None:
    held = [{"4": [2, 0]}, {}, {"4": [1, 2]}]
    assert memory_plan.suppliers(held, "4", [0, 1, 2]) == [0, 2, 2]
    # The hosts have changed places.
    assert memory_plan.suppliers(held, "4", [1, 0, 2]) == [2, 0, 2]


def test_the_space_of_a_host_is_that_of_its_processes_and_their_neighbors() -> None:
    demands = [memory_plan.Demand(generation=10 * (i + 1), frozen=i, free=100 - i, used=5) for i in range(3)]
    # Host a has the files of 0 and 1 and the copies of 2; host b those of 2 and the copies of 0 and 1.
    for process in range(3):
        needed, free = memory_plan.space(demands, ["a", "a", "b"], process)
        assert needed == 2 * (10 + 20 + 30) + (0 + 1 + 2)
        assert free == (103 if process == 2 else 104)
    assert memory_plan.space(demands[:1], ["a"], 0) == (20, 105)


def test_processes_of_one_host_find_the_same_place(tmp_path: pathlib.Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(memory_files.MemoryFolder(tmp_path, "run", {}).place()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert memory_files.MemoryFolder(tmp_path, "other", {}).place() not in found


def test_memory_of_this_host(tmp_path: pathlib.Path) -> None:
    available = host_memory.available()
    total = int(re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) * 1024
    assert available is not None
    assert 0 < available <= total
    assert host_memory.is_in_memory(pathlib.Path("/dev/shm/some/folder"))
    assert not host_memory.is_in_memory(pathlib.Path("/proc"))
    assert host_memory.free(pathlib.Path("/dev/shm")) <= available
    assert host_memory.free(tmp_path) > 0
