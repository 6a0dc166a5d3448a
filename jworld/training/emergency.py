"""Emergency checkpoints in the memory of the hosts, with a copy on the next host.

Every process writes what its devices hold into a folder in its host's memory, and in the background sends a copy to a
process of the next host. After a loss the processes agree on the newest step that they hold together; a process whose
memory is gone receives its part from the host that has the copy. The shared folder with the ordinary checkpoints is
not read. Two generations are kept while one of them is written, so a crash at any moment leaves a complete one.

Orbax 0.12 has emergency checkpoints too. They need a second replica of the weights on other hosts: with weights that
are sharded over all hosts, its managers write nothing locally, or find no complete step after the loss of a host.
"""

import dataclasses
import os
import pathlib
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jworld.parallel import roll_call, startup, transfers
from jworld.training import checkpoints, checksums, memory_files, memory_plan
from jworld.utils import errors, files, host_memory, ranges

#: File in the folder of a run with the id under which its emergency checkpoints lie in memory.
FILE = "emergency.json"
_FROZEN = memory_files.FROZEN

TrainState = checkpoints.TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmergencyConfig:
    """Settings of emergency checkpoints (`config.checkpoint.emergency`).

    Attributes:
      every: steps between two checkpoints in the memory of the hosts; 0: none.
      folder: folder in the memory of each host, which may have another name on each.
    """

    every: ranges.CountOrZero = 0
    folder: ranges.Path = "/dev/shm/jworld"

    def __post_init__(self) -> None:
        ranges.check(self)


def run_of(workdir: pathlib.Path) -> str:
    """Return the id under which the emergency checkpoints of a run lie in memory; "" if it has none."""
    path = workdir / FILE
    if not path.is_file():
        return ""
    run = files.read_json(path, fix="delete it").get("run")
    if not isinstance(run, str) or not run.isalnum():
        raise errors.UserError(f"{path}: run is {run!r}, expected an id of letters and digits: delete the file")
    return run


def forget(config: EmergencyConfig, run: str) -> None:
    """Delete the emergency checkpoints of a run on this host."""
    if run:
        shutil.rmtree(pathlib.Path(config.folder) / run, ignore_errors=True)


@dataclasses.dataclass
class _Outcome:
    """Result of the last save of this process: whether its own file is complete, and what went wrong."""

    stored: bool = True
    problem: str = ""


class EmergencyCheckpoints:
    """The emergency checkpoints of one run, a context manager around training; off, it does nothing.

    All processes call `restore`, `save` and the end of the context at the same points. At a normal end the files are
    deleted; an error leaves them for the next start.
    """

    def __init__(
        self,
        config: EmergencyConfig,
        workdir: pathlib.Path,
        facts: Mapping[str, str],
        *,
        message: Callable[[str], object],
    ) -> None:
        """Prepare; nothing is touched before `restore`.

        Args:
          config: the settings.
          workdir: folder of the run.
          facts: what a checkpoint must have been written with, by name.
          message: prints a line in process 0.
        """
        self.config = config
        self._workdir, self._facts, self._message = workdir, facts, message
        self._run = ""
        self._server: transfers.Server | None = None
        self._thread: threading.Thread | None = None
        self._outcome = _Outcome()
        #: The last step that all processes hold, and the one that was written after it.
        self._complete: int | None = None
        self._written: int | None = None

    def __enter__(self) -> "EmergencyCheckpoints":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if not self.config.every:
            return
        if kind is None:
            self._report(self._finished())
        if self._server is not None:
            self._server.close()
        if kind is None:
            self._folder.remove()

    def due(self, step: int) -> bool:
        """Return whether an emergency checkpoint is required at this step."""
        return bool(self.config.every) and step % self.config.every == 0

    def register(self) -> None:
        """Write the id of the run into its folder; only process 0 calls this."""
        if self.config.every and run_of(self._workdir) != self._run:
            files.write_json(self._workdir / FILE, {"run": self._run})

    def restore(
        self, abstract: TrainState, mesh: jax.sharding.Mesh, *, ordinary: int | None, chosen: bool = False
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Return (state, the data iterator's JSON state) of the newest step in memory, in the layout of `abstract`.

        Args:
          abstract: description of the state.
          mesh: its mesh.
          ordinary: step of the newest ordinary checkpoint; a newer one than in memory is preferred.
          chosen: the user has chosen an ordinary checkpoint.

        Returns:
          None if emergency checkpoints are off, or no step is complete, intact and of this run.

        Raises:
          UserError: the folder cannot be used, or has too little space.
        """
        if not self.config.every:
            return None
        self._open(abstract, mesh)
        has_frozen = bool(jax.tree.leaves(abstract.frozen))
        step = None if chosen else self._agree(ordinary, has_frozen)
        restored = None if step is None else self._load(step, abstract, has_frozen)
        self._complete = step if restored else None
        held = self._folder.held()
        self._folder.keep({item: held.get(item, []) for item in (_FROZEN, str(self._complete))})
        # No copy may arrive before this.
        startup.share(None)
        if restored:
            self._start([], copies=[_FROZEN, str(step)] if has_frozen else [str(step)])
        return restored

    def save(self, state: TrainState, data: Mapping[str, Any]) -> None:
        """Save `state` under its step, with the data iterator's JSON state; returns when it is in the host's memory.

        The state may be donated afterwards. Checksums and the copy on the next host follow in the background; a problem
        with them is printed at the next save and ends nothing.

        Raises:
          UserError: a parameter is not finite.
        """
        step, items = int(state.step), checkpoints.saved_items(state)
        if leaf := checkpoints.find_not_finite(items):
            raise errors.UserError(
                f"the emergency checkpoint of step {step} is not saved: {leaf} has NaN or infinite values; the earlier "
                "ones are intact; lower config.optimizer.learning_rate and run again"
            )
        is_frozen_held = self._settle()
        trees: dict[str, tuple[Any, Mapping[str, Any]]] = {str(step): (items, data)}
        if jax.tree.leaves(state.frozen) and not is_frozen_held:
            trees = {_FROZEN: (state.frozen, {}), **trees}
        # Every process takes part in these computations.
        sums = {item: checksums.tree_checksums(tree) for item, (tree, _) in trees.items()}
        drafts, problem = [], ""
        try:
            for item, (tree, further) in trees.items():
                if item != _FROZEN or self._folder.find(_FROZEN, self._seat) is None:
                    drafts.append(self._folder.write(item, self._seat, tree, sums[item], further))
        except OSError as error:
            problem = f"it could not be written to {self._folder.folder} ({error.strerror or error})"
        self._written = step
        has_frozen = bool(jax.tree.leaves(state.frozen))
        self._start(drafts, copies=[_FROZEN, str(step)] if has_frozen else [str(step)], problem=problem)

    def _open(self, abstract: TrainState, mesh: jax.sharding.Mesh) -> None:
        """Create the folder, exchange addresses, and check the space of every host."""
        process = jax.process_index()
        self._seats = memory_plan.seats(mesh)
        self._seat = self._seats[process]
        root = _root(self.config.folder)
        run = (run_of(self._workdir) or secrets.token_hex(8)) if process == 0 else ""
        self._run, secret = startup.share([run, secrets.token_hex(16)])[0]
        self._secret = f"{roll_call.token()}:{secret}"
        try:
            self._folder = memory_files.MemoryFolder(
                root, self._run, {**self._facts, "the mesh": memory_plan.layout(mesh)}
            )
            place = self._folder.place()
        except OSError as error:
            raise _unusable(root, f"cannot be written ({error.strerror or error})") from error
        if jax.process_count() > 1:
            host = startup.address() if process else roll_call.bind_host()
            self._server = transfers.Server(host, self._secret, self._folder)
        demand = memory_plan.Demand(
            generation=memory_files.tree_bytes(checkpoints.saved_items(abstract)),
            frozen=memory_files.tree_bytes(abstract.frozen),
            free=host_memory.free(root),
            used=self._folder.used(),
        )
        port = self._server.port if self._server else 0
        everyone = startup.share(
            {"place": place, "address": [startup.address(), port], "demand": dataclasses.asdict(demand)}
        )
        places = [own["place"] for own in everyone]
        self._addresses = [(str(own["address"][0]), int(own["address"][1])) for own in everyone]
        self._neighbor = memory_plan.neighbors(places)[process]
        self._check_space([memory_plan.Demand(**own["demand"]) for own in everyone], places, root)

    def _check_space(self, demands: Sequence[memory_plan.Demand], places: Sequence[str], root: pathlib.Path) -> None:
        needed, free = memory_plan.space(demands, places, jax.process_index())
        if needed > free:
            others = [path.name for path in root.iterdir() if path.is_dir() and path.name != self._run]
            left = f"; {root} also holds files of {len(others)} other runs ({', '.join(others[:4])})" if others else ""
            raise errors.UserError(
                f"config.checkpoint.emergency: {memory_plan.GENERATIONS} checkpoints and their copies need "
                f"{needed / 1e6:,.1f} MB of memory on this host, and {free / 1e6:,.1f} MB are free in {root}{left}: "
                "give the folder or the host more memory, delete what is not needed there, or set "
                "config.checkpoint.emergency.every=0"
            )
        hosts = len(set(places))
        copies = f"with a copy on the next of {hosts} hosts" if hosts > 1 else "without a copy: there is a single host"
        size = f"{needed / 1e6:,.1f} MB of each host"
        self._message(f"every {self.config.every} steps the state is saved in memory ({size}), {copies}")

    def _agree(self, ordinary: int | None, has_frozen: bool) -> int | None:
        """Return the newest step that all processes together hold intact, None if an ordinary checkpoint is newer."""
        held, strangers, process = self._folder.held(), self._folder.strangers(), jax.process_index()
        ignored = sorted({name for names in startup.share(strangers) for name in names})
        if ignored:
            self._message(f"emergency checkpoints in memory are not used: they differ in {', '.join(ignored)}")
        while True:
            shared = startup.share([held, ordinary])
            everyone = [own[0] for own in shared]
            step = memory_plan.newest(everyone, len(self._seats), has_frozen=has_frozen)
            if step is None or (shared[0][1] is not None and shared[0][1] > step):
                return None
            damaged = {}
            for item in [_FROZEN, str(step)] if has_frozen else [str(step)]:
                suppliers = memory_plan.suppliers(everyone, item, self._seats)
                for seat in {self._seats[i] for i, supplier in enumerate(suppliers) if supplier == process}:
                    if problem := self._folder.find_damage(item, seat):
                        damaged[f"{self._folder.path(item, seat)}: {problem}"] = (item, seat)
            for item, seat in damaged.values():
                held[item].remove(seat)
                self._folder.path(item, seat).unlink(missing_ok=True)
            problems = self._tell(f"damaged in memory: {'; '.join(damaged)}" if damaged else "")
            if not problems:
                self._everyone = everyone
                return step

    def _load(self, step: int, abstract: TrainState, has_frozen: bool) -> tuple[TrainState, dict[str, Any]] | None:
        """Restore a step of which all files are intact; None with a line if that fails in any process."""
        trees: dict[str, Any] = {str(step): checkpoints.saved_items(abstract)}
        if has_frozen:
            trees[_FROZEN] = abstract.frozen
        restored: dict[str, Any] = {}
        records: dict[str, Mapping[str, Any]] = {}
        problem = ""
        try:
            for item in trees:
                supplier = memory_plan.suppliers(self._everyone, item, self._seats)[jax.process_index()]
                if supplier != jax.process_index():
                    transfers.get(self._addresses[supplier], self._secret, item, self._seat, self._folder)
            for item, tree in trees.items():
                shards = memory_files.Shards.open(self._folder.path(item, self._seat))
                restored[item], records[item] = shards.restore(tree), shards.record
        except (transfers.TransferError, memory_files.DamagedError) as error:
            problem = f"step {step} in memory is not used: {error}"
        if self._tell(problem):
            return None
        # The same in every process, because a checksum is that of the whole array.
        if any(checksums.tree_checksums(restored[item]) != records[item]["leaves"] for item in trees):
            self._message(f"step {step} in memory is not used: its checksums differ from those of what was saved")
            return None
        suppliers = memory_plan.suppliers(self._everyone, str(step), self._seats)
        moved = sum(supplier != process for process, supplier in enumerate(suppliers))
        source = f", {moved} of {len(self._seats)} processes from the copy on another host" if moved else ""
        self._message(f"restored step {step} from memory{source}")
        state = checkpoints.assembled(abstract, restored[str(step)], restored.get(_FROZEN, abstract.frozen))
        return state, dict(records[str(step)]["data"])

    def _tell(self, problem: str) -> list[str]:
        """Return the problems of all processes; process 0 prints them."""
        problems = startup.share(problem)
        named = [
            f"{text} ({startup.name(i)})" if len(problems) > 1 else text for i, text in enumerate(problems) if text
        ]
        for text in named:
            self._message(text)
        return named

    def _start(self, drafts: list[memory_files.Draft], *, copies: list[str], problem: str = "") -> None:
        """Complete the files and send the copies in the background."""
        self._outcome = _Outcome(stored=not problem, problem=problem)
        if not problem:
            self._thread = threading.Thread(target=self._complete_files, args=(drafts, copies), name="emergency")
            self._thread.daemon = True
            self._thread.start()

    def _complete_files(self, drafts: list[memory_files.Draft], copies: list[str]) -> None:
        try:
            for draft in drafts:
                draft.finish()
        except OSError as error:
            self._outcome = _Outcome(False, f"it could not be completed ({error.strerror or error})")
            return
        try:
            for item in copies if self._neighbor is not None else []:
                path = self._folder.path(item, self._seat)
                fingerprint = self._folder.fingerprint(item, self._seat)
                address = self._addresses[self._neighbor or 0]
                transfers.put(address, self._secret, item, self._seat, path, fingerprint)
        except (OSError, transfers.TransferError) as error:
            self._outcome.problem = f"no copy on {startup.name(self._neighbor or 0)}: {error}"

    def _finished(self) -> list[dict[str, Any]]:
        """Wait for the last save of all processes, and return its outcomes."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        frozen = self._folder.find(_FROZEN, self._seat) is not None
        outcome, self._outcome = self._outcome, _Outcome()
        return startup.share(dataclasses.asdict(outcome) | {"frozen": frozen})

    def _report(self, outcomes: list[dict[str, Any]]) -> None:
        for index, outcome in enumerate(outcomes):
            if outcome["problem"]:
                owner = f" of {startup.name(index)}" if len(outcomes) > 1 else ""
                self._message(f"emergency checkpoint{owner}: {outcome['problem']}")

    def _settle(self) -> bool:
        """Wait until the last save has ended everywhere, and delete the generation that is not needed any more.

        Returns:
          Whether every process has its frozen parameters in memory.
        """
        outcomes = self._finished()
        self._report(outcomes)
        if self._written is not None:
            is_complete = all(outcome["stored"] for outcome in outcomes)
            unneeded = self._complete if is_complete else self._written
            if is_complete:
                self._complete = self._written
            if unneeded is not None:
                self._folder.delete(unneeded)
            self._written = None
        return all(outcome["frozen"] for outcome in outcomes)


def _root(folder: str) -> pathlib.Path:
    root = pathlib.Path(folder)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.stat().st_uid
    except OSError as error:
        raise _unusable(root, f"cannot be created ({error.strerror or error})") from error
    # Its owner could replace the files, which become weights.
    if owner not in (0, os.geteuid()):
        raise _unusable(root, "belongs to another user")
    return root


def _unusable(root: pathlib.Path, problem: str) -> errors.UserError:
    return errors.UserError(
        f"config.checkpoint.emergency.folder: {root} {problem}: name a folder in the memory of every host, such as "
        "/dev/shm/jworld, or set config.checkpoint.emergency.every=0"
    )
