"""How the processes of a run find each other: one per host, or one per GPU, each with a part of the devices.

Where nothing says otherwise there is one process. Several are found by JAX's own detection (TPU VM, GKE, SLURM, Open
MPI), or are told by flags or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. JWORLD_HOSTS, names of
hosts in the order of the processes, makes messages clearer; JWORLD_START_SECONDS is how long they wait for each other.
"""

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator

import jax

# The detection that jax.distributed.initialize begins with has no public name.
from jax._src import clusters

from jworld.parallel import rendezvous
from jworld.utils import errors

START_SECONDS = 60
#: What shells say of a command that Ctrl-C ended.
INTERRUPTED = 130

_peers: rendezvous.Peers | None = None


def find(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> rendezvous.ProcessInfo | None:
    """This process's place: as given, else as the environment says; None where it is alone.

    Raises:
      UserError: a part of what is needed is missing or impossible.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator and ":" not in coordinator and (port := os.environ.get("JAX_COORDINATOR_PORT")):
        coordinator = f"{coordinator}:{port}"
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    if num_processes == 1:
        return None
    local: list[int] | None = None
    if None in (coordinator, num_processes, process_id):
        try:
            coordinator, num_processes, process_id, found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, num_processes, process_id, None, None, START_SECONDS
            )
            local = None if found is None else list(found)
        except (RuntimeError, OSError, ImportError) as error:
            raise errors.UserError(
                f"the cluster around this process could not be read ({' '.join(str(error).split())}): give "
                "--coordinator, --num-processes and --process-id, or JAX_NUM_PROCESSES=1 for a process of its own"
            ) from error
    if num_processes == 1 or (coordinator, num_processes, process_id) == (None, None, None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise errors.UserError(
            f"--coordinator is {coordinator}, --num-processes {num_processes}, --process-id {process_id}: give all "
            "three (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or none for a process of its own"
        )
    if not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise errors.UserError(f"--coordinator is {coordinator}, expected host:port of process 0, such as node1:8476")
    if not 0 <= process_id < num_processes:
        raise errors.UserError(f"--process-id is {process_id}, expected 0 to {num_processes - 1} (--num-processes - 1)")
    return rendezvous.ProcessInfo(
        coordinator=coordinator,
        count=num_processes,
        index=process_id,
        local_devices=local,
        hosts=_hosts(num_processes),
    )


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise errors.UserError(f"{variable} is {text!r}, expected a whole number")
    return int(text)


def _hosts(count: int) -> list[str]:
    """The host of each process where a variable names them; each may have several processes in a row."""
    names = [name for name in os.environ.get("JWORLD_HOSTS", "").split(",") if name]
    if names and count % len(names) == 0:
        return [names[index * len(names) // count] for index in range(count)]
    # Of several slices, each knows its own hosts alone.
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return workers if len(workers) == count else []


def require_alone(command: str) -> None:
    """Refuse to run `command` in several processes.

    Raises:
      UserError: there are several.
    """
    if place := find():
        raise errors.UserError(
            f"{command} works in one process, but this is process {place.index} of {place.count}: start it on one host "
            "alone, with JAX_NUM_PROCESSES=1"
        )


def part() -> tuple[int, int]:
    """(index, count) of this process, for work that is divided once and whose processes need not know each other.

    On a host with a process per GPU, each sees its own alone from here on.
    """
    place = find()
    if place is None:
        return 0, 1
    if place.local_devices is not None:
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, place.local_devices)))
    return place.index, place.count


@contextlib.contextmanager
def processes(place: rendezvous.ProcessInfo | None) -> Iterator[None]:
    """A run of several processes, which begin and end together; `None` for one process changes nothing.

    To be entered before any device is touched. What ends one process ends the others, each with the same sentence.

    Raises:
      RestartError: some did not come in time.
    """
    global _peers
    if place is None:
        yield
        return
    _peers = rendezvous.Peers.meet(place, _number("JWORLD_START_SECONDS") or START_SECONDS)
    _peers.watch()
    try:
        jax.distributed.initialize(place.coordinator, place.count, place.index, place.local_devices)
        yield
    except SystemExit:
        _part()
        raise
    except (errors.UserError, errors.RestartError) as error:
        _peers.fail(str(error), errors.exit_code(error))
    except KeyboardInterrupt:
        _peers.fail("interrupted", INTERRUPTED)
    except Exception as error:
        # Where a peer died, what fails here is a consequence, and the watch is about to tell the cause.
        time.sleep(rendezvous.PATIENCE_SECONDS)
        traceback.print_exc()
        _peers.fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", errors.exit_code(error))
    else:
        _part()


def _part() -> None:
    global _peers
    assert _peers is not None
    jax.distributed.shutdown()
    _peers.leave()
    _peers = None


def once(action: Callable[[], None]) -> None:
    """Run `action` in process 0 while the others wait for it; what it writes is there for all."""
    if _peers is None:
        action()
    elif _peers.place.index == 0:
        action()
        _peers.announce_ready()
    else:
        _peers.wait_until_ready()
