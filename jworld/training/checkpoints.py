"""Checkpoints: saved in the background, restored onto any mesh, with a checksum for every leaf.

`<directory>/<step>/` holds the items `params`, `ema` (if enabled), `critic` (its parameters and optimizer, if there is
one), `rest` (step, optimizer, counters), `data` (the data iterator's position) and `checksums`.
`<directory>/frozen/0/` holds the frozen parameters, written once.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
import orbax.checkpoint as ocp

from jworld.training import checksums, storage
from jworld.training import state as train_state
from jworld.utils import errors, nnx_types

TrainState = train_state.TrainState

FROZEN = "frozen"
PARTIAL = "*.orbax-checkpoint-tmp*"
#: Damaged steps are renamed to this name and their number, never deleted.
DAMAGED = "damaged"
_READING = ocp.CheckpointManagerOptions(create=False)


def saved_items(state: TrainState) -> dict[str, Any]:
    """Return the items saved at every step."""
    rest = {"step": state.step, "opt_state": state.opt_state}
    rest |= {"skipped": state.skipped, "skipped_in_row": state.skipped_in_row}
    items = {"params": state.params, "rest": rest}
    if state.ema is not None:
        items["ema"] = state.ema
    if (critic := state.critic) is not None:
        items["critic"] = {"params": critic.params, "opt_state": critic.opt_state, "skipped": critic.skipped}
    return items


def assembled(abstract: TrainState, items: Mapping[str, Any], frozen: nnx_types.State) -> TrainState:
    """Return the state of the items of `saved_items` and the frozen parameters."""
    critic = train_state.CriticState(**items["critic"]) if "critic" in items else None
    return dataclasses.replace(
        abstract, params=items["params"], ema=items.get("ema"), frozen=frozen, critic=critic, **items["rest"]
    )


def find_not_finite(items: Mapping[str, Any]) -> str:
    """Return the name of the first parameter with NaN or infinite values, "" without."""
    trained = {"params": items["params"], "ema": items.get("ema"), "critic": items.get("critic", {}).get("params")}
    for name, parameters in trained.items():
        if leaf := checksums.find_not_finite(parameters):
            return f"{name}/{leaf}"
    return ""


def _json_checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


class DamagedError(errors.UserError):
    """A checkpoint that differs from what was saved."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, directory: pathlib.Path, *, interval: int = 1000, max_to_keep: int = 3, create: bool = True
    ) -> None:
        """Open `directory` for a run, or with `create=False` for reading.

        Raises:
          UserError: it is opened for reading and does not exist.
        """
        self.directory = directory.absolute()
        self.interval = interval
        self._restored: int | None = None
        if not create and not self.directory.is_dir():
            raise errors.UserError(f"there are no checkpoints: the folder {directory} does not exist; train first")
        storage.install()
        # Checked before the processes synchronize in the manager's constructor: later, process 0 may be writing.
        self._frozen_saved = self._frozen_complete()
        # Only a writer may clean up: a reader would delete the files that a concurrent run is writing.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep, create=create, cleanup_tmp_directories=create, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.close()

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint."""
        return max(self._manager.all_steps(), default=None)

    def due(self, step: int) -> bool:
        """Return whether the configured interval requires a checkpoint at this step."""
        return step % self.interval == 0

    def check_space(self, state: TrainState) -> None:
        """Raise a `UserError` if the next checkpoint of a state would not fit on the disk, before steps are made."""
        self._require_space(None, self._trees(state))

    def _trees(self, state: TrainState) -> list[Any]:
        """Return what a save of a state writes: frozen parameters only once."""
        frozen = bool(jax.tree.leaves(state.frozen)) and not self._frozen_saved
        return [saved_items(state), state.frozen] if frozen else [saved_items(state)]

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Save `state` under its step, with the data iterator's JSON state; returns before the files are written.

        The state may be donated afterwards. An existing step is not overwritten.

        Raises:
          UserError: the disk is full, in this save or the previous one, or a parameter is not finite.
        """
        step = int(state.step)
        self.wait()
        self._forget_abandoned()
        if step in self._manager.all_steps():
            return
        items, *frozen = self._trees(state)
        self._require_space(step, [items, *frozen])
        self._require_finite(step, items)
        with self._disk_errors(step):
            for parameters in frozen:
                self._save_frozen(parameters)
            entries = {name: checksums.tree_checksums(item) for name, item in items.items()}
            verified: dict[str, Any] = {"leaves": entries, "data": _json_checksum(data)}
            verified["self"] = _json_checksum(verified)
            saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **saved, data=ocp.args.JsonSave(dict(data)), checksums=ocp.args.JsonSave(verified)
                ),
                force=True,
            )

    def wait(self) -> None:
        """Wait until the files of the last save are complete.

        Raises:
          UserError: the disk was full.
        """
        with self._disk_errors(None):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save, then release the threads."""
        self.wait()
        self._manager.close()

    def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """Return (state, the data iterator's JSON state) of a step, by default the newest, in the layout of `abstract`.

        Raises:
          DamagedError: a file is damaged.
          UserError: the step does not exist, or was saved by another model or optimizer.
        """
        step = self.existing(step)
        with self._damage(step):
            items, data = self._restore_items(step, saved_items(abstract))
        restored = assembled(abstract, items, self.restore_frozen(abstract.frozen))
        self._restored = step
        return restored, data

    def restore_newest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any], list[str]]:
        """Restore the newest intact step, and return the problems of the damaged steps after it.

        A restarted job has no user to choose another step. The damaged ones are renamed to `damaged-<step>`.

        Raises:
          DamagedError: no step is intact.
          RestartError: a process of a multi-process run found the newest step damaged and set it aside.
          UserError: they were saved by another model or optimizer.
        """
        if jax.process_count() > 1:
            return (*self._restore_or_restart(abstract), [])
        problems: list[DamagedError] = []
        for step in reversed(self.steps()):
            try:
                state, data = self.restore(abstract, step)
            except DamagedError as error:
                problems.append(error)
                continue
            self._set_aside([other for other in self.steps() if other > step])
            return state, data, [str(problem) for problem in problems]
        raise problems[0]

    def _restore_or_restart(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restore in a multi-process run, or end all processes: only one may find the damage while the others wait."""
        *earlier, newest = self.steps()
        try:
            return self.restore(abstract, newest)
        except DamagedError as error:
            if not earlier:
                raise
            self._set_aside([newest])
            problem = str(error).partition("; ")[0]
            raise errors.RestartError(
                f"{problem}; it was set aside: the same command continues from the previous step"
            ) from error

    def restore_params(self, abstract: nnx_types.State, step: int | None = None) -> nnx_types.State:
        """Restore the weights for inference: the EMA weights if the checkpoint has them, else the parameters.

        Raises:
          UserError: as in `restore`.
        """
        step = self.existing(step)
        name = "ema" if (self.directory / str(step) / "ema").is_dir() else "params"
        with self._damage(step):
            items, _ = self._restore_items(step, {name: abstract})
        params: nnx_types.State = items[name]
        if leaf := checksums.find_not_finite(params):
            raise errors.UserError(
                f"checkpoint step {step} in {self.directory}: {name}/{leaf} has NaN or infinite values: choose an "
                "earlier step"
            )
        return params

    def restore_frozen(self, abstract: nnx_types.State) -> nnx_types.State:
        """Restore the frozen parameters; returns `abstract` itself if it has none.

        Raises:
          UserError: they were saved by another model, or a file is damaged.
        """
        if not jax.tree.leaves(abstract):
            return abstract
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), checksums=ocp.args.JsonRestore())
        try:
            with ocp.CheckpointManager(self.directory / FROZEN, options=_READING) as manager:
                restored = manager.restore(0, args=args)
            if problem := _first_difference(restored.checksums, checksums.tree_checksums(restored.state)):
                raise _DamageError(problem)
        except Exception as error:
            raise errors.UserError(
                f"the frozen parameters in {self.directory / FROZEN} are damaged, missing or of another model: "
                f"{_reason(error)}; put that folder back from a copy, or start again with another --workdir"
            ) from error
        frozen: nnx_types.State = restored.state
        if leaf := checksums.find_not_finite(frozen):
            raise errors.UserError(
                f"{self.directory / FROZEN}: {leaf} has NaN or infinite values: start again from other weights"
            )
        return frozen

    def _restore_items(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        written = self._manager.restore(
            step, args=ocp.args.Composite(data=ocp.args.JsonRestore(), checksums=ocp.args.JsonRestore())
        )
        own = written.checksums.pop("self", None)
        if own != _json_checksum(written.checksums) or written.checksums["data"] != _json_checksum(written.data):
            raise _DamageError("data or checksums differs from what was saved")
        leaves = {name: written.checksums["leaves"].get(name, {}) for name in targets}
        for name, target in targets.items():
            expected = checksums.describe(target)
            found = {
                leaf: {k: v for k, v in entry.items() if k in ("dtype", "shape")}
                for leaf, entry in leaves[name].items()
            }
            if problem := _first_difference(expected, found):
                raise errors.UserError(
                    f"checkpoint step {step} in {self.directory} was saved by another model or optimizer: "
                    f"{name}/{problem}; use the config it was made with, or another --workdir"
                )
        args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        items = dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        for name, item in items.items():
            if problem := _first_difference(leaves[name], checksums.tree_checksums(item)):
                raise _DamageError(f"{name}/{problem}")
        return items, written.data

    def existing(self, step: int | None = None) -> int:
        """Return the step itself, or the newest for None; a `UserError` if there is none."""
        steps = self.steps()
        if not steps:
            raise errors.UserError(f"{self.directory} has no complete checkpoint; train first")
        if step is not None and step not in steps:
            raise errors.UserError(
                f"{self.directory} has no step {step}, expected one of {', '.join(map(str, steps))}: choose another "
                "--step, or for training config.checkpoint.step"
            )
        return steps[-1] if step is None else step

    @contextmanager
    def _damage(self, step: int) -> Iterator[None]:
        """Convert the exceptions that a damaged file causes in three libraries to one `DamagedError` with a remedy."""
        try:
            yield
        except errors.UserError:
            raise
        except Exception as error:
            storage.silence()
            previous = [other for other in self.steps() if other < step]
            offer = (
                f"continue from the previous complete step with --config.checkpoint.step={previous[-1]}"
                if previous
                else "there is no earlier step: start again with another --workdir"
            )
            raise DamagedError(
                f"checkpoint step {step} in {self.directory} is damaged: {_reason(error)}; {offer}"
            ) from error

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            names = itertools.chain([f"{DAMAGED}-{step}"], (f"{DAMAGED}-{step}-{i}" for i in itertools.count(2)))
            target = next(path for name in names if not (path := self.directory / name).exists())
            # Another process may have renamed it first.
            with suppress(FileNotFoundError):
                (self.directory / str(step)).rename(target)
        self._manager.reload()

    def _forget_abandoned(self) -> None:
        """Delete the steps after a restored older one: the run continues from there and will save them again."""
        if self._restored is not None:
            for step in self.steps():
                if step > self._restored:
                    self._manager.delete(step)
            self._restored = None

    def _frozen_complete(self) -> bool:
        path = self.directory / FROZEN / "0"
        return path.is_dir() and ocp.utils.is_checkpoint_finalized(path)

    def _save_frozen(self, frozen: nnx_types.State) -> None:
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        with ocp.CheckpointManager(self.directory / FROZEN, options=options) as manager:
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(frozen), checksums=ocp.args.JsonSave(checksums.tree_checksums(frozen))
            )
            manager.save(0, args=args)
        self._frozen_saved = True

    def _require_space(self, step: int | None, trees: list[Any]) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise self._disk_full(step, f"it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")

    def _require_finite(self, step: int, items: Mapping[str, Any]) -> None:
        """Refuse parameters that no command would accept: saved, they would push good checkpoints out."""
        if leaf := find_not_finite(items):
            raise errors.UserError(
                f"the checkpoint of step {step} is not saved: {leaf} has NaN or infinite values; "
                f"{self._previous()}; lower config.optimizer.learning_rate and run again"
            )

    def _previous(self) -> str:
        latest = self.latest_step()
        return f"the previous checkpoint (step {latest}) is intact" if latest is not None else "it is the first one"

    def _disk_full(self, step: int | None, reason: str) -> errors.UserError:
        for _ in range(5):  # pending writes create the folder again
            for pattern in (PARTIAL, f"{FROZEN}/{PARTIAL}"):
                for partial in self.directory.glob(pattern):
                    shutil.rmtree(partial, ignore_errors=True)
            time.sleep(0.1)
        name = "the checkpoint" if step is None else f"the checkpoint of step {step}"
        return errors.UserError(
            f"{name} does not fit on the disk of {self.directory}: {reason}; {self._previous()}; free some space and "
            "run again"
        )

    @contextmanager
    def _disk_errors(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            problem = storage.disk_problem(error)
            if isinstance(error, errors.UserError) or not problem:
                raise
            raise self._disk_full(step, problem) from error


class _DamageError(Exception):
    """A leaf that differs from what was saved."""


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {errors.one_line(error)}"


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _DamageError) else f"it cannot be read ({_one_line(error)})"


def _first_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Describe the first leaf that differs; empty if none does."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not expected"
    for name, entry in expected.items():
        for key, value in entry.items():
            if found[name][key] != value:
                return f"{name} has the {key} {found[name][key]}, expected {value}"
    return ""


def require_same_config(
    workdir: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any], *, may_change: tuple[str, ...]
) -> None:
    """Refuse to resume the run in `workdir` with another config; keys below one of `may_change` may differ.

    Raises:
      UserError: the first other key whose value differs.
    """
    # The JSON round trip makes tuples comparable with the lists from the file.
    old, new = _flat(json.loads(json.dumps(stored))), _flat(json.loads(json.dumps(config)))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(may_change):
            raise errors.UserError(
                f"{workdir} holds a run with config.{key} = {old.get(key)!r}, but now it is {new.get(key)!r}: "
                "continue with the same config, or start the new run in another --workdir"
            )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
