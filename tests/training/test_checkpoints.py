"""Checkpoints of the toy run: any mesh, every bit verified, intact after a failed save."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from jworld.parallel import mesh
from jworld.training import checkpoints, checksums
from jworld.utils import errors

BLOCKS = nnx.All(nnx.Param, nnx.PathContains("blocks"))


def equal(a: Any, b: Any) -> None:
    for x, y in toy.pairs(a, b):
        np.testing.assert_array_equal(x, y)


def saved(directory: pathlib.Path, *, steps: int = 2, **options: Any) -> toy.Run:
    """Make a run that has made `steps` steps and saved each."""
    run = toy.Run(**options)
    with checkpoints.Checkpoints(directory) as store:
        for _ in range(steps):
            run.step()
            store.save(run.state, {"position": int(run.state.step)})
    return run


def flip(path: pathlib.Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "int8"])
def test_one_flipped_bit_changes_the_checksum(dtype: str) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=(3, 5)) > 0, jnp.dtype(dtype))
    checksum = jax.jit(lambda x: checksums.sum_and_finite(x)[0])
    before = int(checksum(jnp.asarray(x)))
    for position in range(x.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            content = bytearray(x.tobytes())
            content[position] ^= 1 << bit
            changed = np.frombuffer(bytes(content), x.dtype).reshape(x.shape)
            assert int(checksum(jnp.asarray(changed))) != before


def test_exchanged_elements_change_the_checksum() -> None:
    x = jnp.arange(1000.0)
    swapped = x.at[3].set(x[700]).at[700].set(x[3])
    assert int(checksums.sum_and_finite(x)[0]) != int(checksums.sum_and_finite(swapped)[0])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2)])
def test_checksum_does_not_depend_on_the_mesh(sizes: tuple[int, int, int]) -> None:
    one = toy.Run(mesh=(1, 1, 1)).state.params
    layout = jax.tree.map(lambda x: x.sharding, toy.Run(mesh=sizes).state.params)
    assert checksums.tree_checksums(jax.device_put(one, layout)) == checksums.tree_checksums(one)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_checksum_needs_no_memory(sizes: tuple[int, int, int], dtype: Any) -> None:
    """Every device computes its part: neither the words of the array nor the whole array are stored."""
    data, fsdp, sequence = sizes
    layout = jax.sharding.NamedSharding(
        mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence, devices=jax.devices()[: data * fsdp * sequence]),
        jax.P(None, "fsdp", "sequence"),
    )
    array = jax.ShapeDtypeStruct((8, 64, 256), dtype, sharding=layout)
    memory = jax.jit(checksums.sum_and_finite).lower(array).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_element_is_checked(value: float) -> None:
    x = jnp.ones((3, 5, 7), jnp.bfloat16)
    assert checksums.find_not_finite({"x": x}) == ""
    for index in ((0, 0, 0), (2, 4, 6), (1, 2, 3)):
        assert checksums.find_not_finite({"a": jnp.arange(3), "x": x.at[index].set(value)}) == "x"


def test_resume_on_the_same_mesh_is_exact(tmp_path: pathlib.Path) -> None:
    options: dict[str, Any] = {"name": "muon", "mesh": (2, 2, 2), "ema_decay": 0.9}
    straight = saved(tmp_path, **options)
    resumed = toy.Run(**options)
    with checkpoints.Checkpoints(tmp_path) as store:
        resumed.state, data = store.restore(resumed.abstract())
    assert data == {"position": 2}
    resumed.count = 2
    for run in (straight, resumed):
        run.step()
    equal(straight.state, resumed.state)


def test_restore_on_another_mesh(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path, name="muon", mesh=(2, 2, 2))
    with checkpoints.Checkpoints(tmp_path) as store:
        state, _ = store.restore(run.abstract((1, 4, 2)))
    equal(run.state, state)
    kernel = state.params["head"]["kernel"].get_raw_value()
    assert kernel.sharding.mesh.shape == {"data": 1, "fsdp": 4, "sequence": 2}
    assert kernel.addressable_shards[0].data.shape == (toy.WIDTH // 8, toy.WIDTH)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_byte_is_refused_and_the_previous_step_offered(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path)
    step2 = tmp_path / "2" / "params" / "ocdbt.process_0" / "d"
    caught = 0
    for path in sorted(step2.iterdir()):
        for position in range(8, path.stat().st_size, max(path.stat().st_size // 3, 1)):
            flip(path, position)
            message = ""
            with checkpoints.Checkpoints(tmp_path) as store:
                try:
                    # Bytes outside of arrays may pass.
                    equal(run.state, store.restore(run.abstract())[0])
                except errors.UserError as error:
                    message = str(error)
            if message:
                caught += 1
                assert f"step 2 in {tmp_path} is damaged: " in message
                assert "--config.checkpoint.step=1" in message
            flip(path, position)
    assert caught >= 3
    with checkpoints.Checkpoints(tmp_path) as store:
        assert store.restore(run.abstract(), step=1)[1] == {"position": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_newest_intact_step_is_found(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path)
    (tmp_path / "2" / "checksums" / "metadata").write_text("{}")
    with checkpoints.Checkpoints(tmp_path) as store:
        _, data, problems = store.restore_newest(run.abstract())
        assert data == {"position": 1}
        assert len(problems) == 1
        assert problems[0].startswith(f"checkpoint step 2 in {tmp_path} is damaged: ")
        assert store.steps() == [1]
    assert (tmp_path / "damaged-2").is_dir()
    (tmp_path / "1" / "checksums" / "metadata").write_text("{}")
    with checkpoints.Checkpoints(tmp_path) as store, pytest.raises(checkpoints.DamagedError, match="step 1 in"):
        store.restore_newest(run.abstract())
    assert (tmp_path / "1").is_dir()


def test_a_changed_leaf_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path, steps=1)
    original = checksums.sum_and_finite
    # Uncompressed arrays decode without errors, so only the checksum can differ: here by one.
    monkeypatch.setattr(
        checksums,
        "_sums_and_finite",
        lambda leaves: [(original(x)[0] + (x.shape == (2, toy.WIDTH, toy.HIDDEN)), True) for x in leaves],
    )
    with checkpoints.Checkpoints(tmp_path) as store, pytest.raises(errors.UserError, match="params/blocks/up/kernel"):
        store.restore(run.abstract())


@pytest.mark.parametrize("item", ["data", "checksums"])
def test_a_damaged_json_item_is_refused(tmp_path: pathlib.Path, item: str) -> None:
    run = saved(tmp_path, steps=1)
    path = tmp_path / "1" / item / "metadata"
    path.write_text(path.read_text().replace("1", "3"))
    with checkpoints.Checkpoints(tmp_path) as store, pytest.raises(errors.UserError, match="there is no earlier step"):
        store.restore(run.abstract())


def test_after_an_older_step_the_newer_ones_are_replaced(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path, steps=3)
    with checkpoints.Checkpoints(tmp_path) as store:
        run.state, _ = store.restore(run.abstract(), step=1)
        run.step(scale=2.0)
        store.save(run.state, {})
        store.wait()
        assert store.steps() == [1, 2]
        equal(store.restore(run.abstract())[0], run.state)


def test_another_model_or_optimizer_is_refused(tmp_path: pathlib.Path) -> None:
    saved(tmp_path, steps=1)
    with checkpoints.Checkpoints(tmp_path) as store:
        with pytest.raises(errors.UserError, match=r"bias has the shape \[2, 16\], expected \[2, 8\]"):
            store.restore(toy.Run(width=8).abstract())
        with pytest.raises(errors.UserError, match=r"another model or optimizer: ema/.* is missing"):
            store.restore(toy.Run(ema_decay=0.5).abstract())
        with pytest.raises(errors.UserError, match=r"has no step 7, expected one of 1.*: choose another --step"):
            store.restore(toy.Run().abstract(), step=7)


def test_another_dtype_is_refused(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path, steps=1)
    half = jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), run.abstract())
    with (
        checkpoints.Checkpoints(tmp_path) as store,
        pytest.raises(errors.UserError, match="dtype float32, expected bf"),
    ):
        store.restore(half)


def test_restored_weights_prefer_the_ema(tmp_path: pathlib.Path) -> None:
    plain, with_ema = saved(tmp_path / "plain"), saved(tmp_path / "ema", ema_decay=0.5)
    for run, name, expected in ((plain, "plain", plain.state.params), (with_ema, "ema", with_ema.state.ema)):
        store = checkpoints.Checkpoints(tmp_path / name, create=False)
        equal(store.restore_params(run.abstract().params), expected)
    with pytest.raises(errors.UserError, match="does not exist"):
        checkpoints.Checkpoints(tmp_path / "nowhere", create=False)


def test_frozen_parameters_are_stored_once(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path, trainable=BLOCKS, steps=2)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*") if path.is_file()}
    with checkpoints.Checkpoints(tmp_path) as store:
        run.step()
        store.save(run.state, {})
        store.wait()
        equal(store.restore(run.abstract((1, 2, 1)))[0], run.state)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not [path for path in (tmp_path / "3").rglob("_METADATA") if "head" in path.read_text()]
    for path in (tmp_path / "frozen" / "0" / "state" / "d").iterdir():
        for position in range(0, path.stat().st_size, 50):
            flip(path, position)
    with checkpoints.Checkpoints(tmp_path) as store, pytest.raises(errors.UserError, match="frozen parameters in"):
        store.restore(run.abstract())


def test_old_checkpoints_are_deleted(tmp_path: pathlib.Path) -> None:
    run = toy.Run()
    with checkpoints.Checkpoints(tmp_path, max_to_keep=2, interval=2) as store:
        for _ in range(6):
            run.step()
            if store.due(int(run.state.step)):
                store.save(run.state, {})
        store.wait()
        assert store.steps() == [4, 6]
        assert store.latest_step() == 6


def test_a_killed_save_leaves_the_previous_step(tmp_path: pathlib.Path) -> None:
    run = saved(tmp_path, steps=1)
    (tmp_path / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with checkpoints.Checkpoints(tmp_path) as store:
        assert store.latest_step() == 1
        equal(store.restore(run.abstract())[0], run.state)
        run.step()
        store.save(run.state, {})
        store.wait()
        assert store.steps() == [1, 2]
    assert not list(tmp_path.glob("*tmp*"))


def test_too_little_free_space_is_refused_before_writing(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    run = saved(tmp_path, steps=1)
    run.step()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with checkpoints.Checkpoints(tmp_path) as store:
        with pytest.raises(errors.UserError, match=r"the checkpoint does not fit .* \(step 1\) is intact"):
            store.check_space(run.state)
        with pytest.raises(errors.UserError, match=r"the previous checkpoint \(step 1\) is intact"):
            store.save(run.state, {})
        assert store.steps() == [1]


def with_nan(run: toy.Run, name: str) -> Any:
    """Return the state of a run with one value of `params` or `ema` that is not finite."""
    tree = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), getattr(run.state, name))
    return dataclasses.replace(run.state, **{name: tree})


@pytest.mark.parametrize("name", ["params", "ema"])
def test_parameters_that_are_not_finite_are_not_saved(tmp_path: pathlib.Path, name: str) -> None:
    """Saved, they would push good checkpoints out of `max_to_keep`."""
    run = saved(tmp_path, steps=1, ema_decay=0.5)
    run.step()
    with checkpoints.Checkpoints(tmp_path) as store:
        message = rf"step 2 is not saved: {name}/blocks/\S+ has NaN .*; the previous checkpoint \(step 1\) is intact"
        with pytest.raises(errors.UserError, match=message):
            store.save(with_nan(run, name), {})
        assert store.steps() == [1]


def test_parameters_that_are_not_finite_are_not_restored(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """Earlier versions saved them."""
    monkeypatch.setattr(checkpoints.Checkpoints, "_require_finite", lambda *_: None)
    run = saved(tmp_path, steps=1, ema_decay=0.5)
    run.step()
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(with_nan(run, "ema"), {})
        store.wait()
        with pytest.raises(errors.UserError, match=r"checkpoint step 2 .*: ema/blocks/\S+ has NaN .* an earlier step"):
            store.restore_params(run.abstract().ema)
        store.restore_params(run.abstract().ema, 1)


FULL_DISK = """
import pathlib, resource, sys
sys.path.insert(0, {tests!r})
import toy
from jworld.utils import errors
from jworld.training import checkpoints

@errors.exit_on_user_error
def main():
    run = toy.Run(width=128)
    with checkpoints.Checkpoints(pathlib.Path({directory!r})) as store:
        run.step()
        store.save(run.state, {{}})
        store.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        run.step()
        store.save(run.state, {{}})

main()
"""


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: pathlib.Path) -> None:
    code = FULL_DISK.format(tests=str(pathlib.Path(__file__).parent), directory=str(tmp_path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "the previous checkpoint (step 1) is intact" in result.stderr
    assert "Traceback" not in result.stderr
    with checkpoints.Checkpoints(tmp_path) as store:
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert int(store.restore(toy.Run(width=128).abstract())[0].step) == 1


def test_another_config_is_refused(tmp_path: pathlib.Path) -> None:
    config = {"system": "toy", "model": {"width": 16, "sizes": (1, 2)}, "mesh": {"data": 1}}
    stored = json.loads(json.dumps(config))
    checkpoints.require_same_config(tmp_path, stored, config, may_change=())
    checkpoints.require_same_config(tmp_path, stored, config | {"mesh": {"data": 8}}, may_change=("mesh.",))
    wider = config | {"model": {"width": 32, "sizes": (1, 2)}}
    with pytest.raises(errors.UserError, match=r"config\.model\.width = 16, but now it is 32"):
        checkpoints.require_same_config(tmp_path, stored, wider, may_change=("mesh.",))
