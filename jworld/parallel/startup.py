"""Start-up of multi-process runs: one process per host, or one per GPU with a part of the host's devices.

The default is a single process. Several are detected by JAX (TPU VM, GKE, SLURM, Open MPI), or configured by flags or
by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. JWORLD_HOSTS lists host names in the order of the
processes, for clearer messages. JWORLD_TOKEN is the run's secret, equal in all processes. JWORLD_START_SECONDS limits
the wait for other processes (default: 300). A process without a sign of life for JWORLD_HANG_SECONDS (default: 120)
ends the run.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The cluster detection of jax.distributed.initialize is not public.
from jax._src import clusters

from jworld.parallel import agreement, rendezvous, roll_call
from jworld.utils import errors, interrupts

START_SECONDS = 300
#: An address: a name, or one of IPv4 or IPv6, and a port.
_COORDINATOR = re.compile(r"[\w.:%\[\]-]+:[0-9]{1,5}", re.ASCII)
#: Times of XLA's collectives on CPUs, whose defaults end a process with a stack trace when another one is slow.
CPU_COLLECTIVES = (
    "xla_cpu_collective_timeout_seconds",
    "xla_cpu_collective_call_warn_stuck_timeout_seconds",
    "xla_cpu_collective_call_terminate_timeout_seconds",
)
#: Options of JAX that change what is computed.
OPTIONS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")

_peers: rendezvous.Peers | None = None


def find(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> roll_call.ProcessInfo | None:
    """Return this process's `ProcessInfo` from arguments, else from the environment; None in a single-process run.

    Raises:
      UserError: an argument is missing or invalid.
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
                "--coordinator, --num-processes and --process-id, or JAX_NUM_PROCESSES=1 for a single process"
            ) from error
    if num_processes == 1 or (coordinator, num_processes, process_id) == (None, None, None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise errors.UserError(
            f"--coordinator is {coordinator}, --num-processes {num_processes}, --process-id {process_id}: give all "
            "three (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or none for a single process"
        )
    if not _COORDINATOR.fullmatch(coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 2**16:
        raise errors.UserError(f"--coordinator is {coordinator}, expected host:port of process 0, such as node1:8476")
    if num_processes < 1:
        raise errors.UserError(f"--num-processes is {num_processes}, expected a positive integer")
    if not 0 <= process_id < num_processes:
        raise errors.UserError(f"--process-id is {process_id}, expected 0 to {num_processes - 1} (--num-processes - 1)")
    return roll_call.ProcessInfo(
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
    """Return the host of each process if a variable names them; consecutive processes may share a host."""
    names = [name for name in os.environ.get("JWORLD_HOSTS", "").split(",") if name]
    if names and count % len(names) == 0:
        return [names[index * len(names) // count] for index in range(count)]
    # With several TPU slices, the variable lists only the hosts of this slice.
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return workers if len(workers) == count else []


def require_alone(command: str) -> None:
    """Refuse to run `command` in a multi-process run.

    Raises:
      UserError: there are several processes.
    """
    if process := find():
        raise errors.UserError(
            f"{command} runs in a single process, but this is process {process.index} of {process.count}: start it on "
            "one host only, with JAX_NUM_PROCESSES=1"
        )


def part() -> tuple[int, int]:
    """Return (index, count) of this process, for work whose parts need no communication.

    On a host with one process per GPU, each process uses only its own GPU from here on.
    """
    process = find()
    if process is None:
        return 0, 1
    if process.local_devices is not None:
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, process.local_devices)))
    return process.index, process.count


@contextlib.contextmanager
def processes(process: roll_call.ProcessInfo | None, facts: agreement.Facts | None = None) -> Iterator[None]:
    """Run a block as one process of a multi-process run, whose processes start and end together.

    None, for a single process, changes nothing. Enter it before any device is used. An error in one process ends all of
    them with the same message.

    Args:
      process: this process.
      facts: what must be equal in all processes, besides the program itself.

    Raises:
      RestartError: some processes did not connect in time.
      UserError: the processes differ.
    """
    global _peers
    if process is None:
        yield
        return
    start_seconds = _number("JWORLD_START_SECONDS") or START_SECONDS
    hang_seconds = _number("JWORLD_HANG_SECONDS") or rendezvous.HANG_SECONDS
    if process.index == 0 and not roll_call.token():
        print(
            f"{roll_call.TOKEN} is not set: whoever reaches {process.coordinator} can take part in this run; the "
            "launchers set it",
            file=sys.stderr,
            flush=True,
        )
    _be_patient(int(start_seconds + hang_seconds))
    own = agreement.of_program() | {name.upper(): str(getattr(jax.config, name, None)) for name in OPTIONS}
    _peers = rendezvous.Peers.connect(process, start_seconds, facts={**own, **(facts or {})}, hang_seconds=hang_seconds)
    _peers.watch()
    try:
        _initialize(process, start_seconds, hang_seconds)
        yield
    except SystemExit:
        _leave()
        raise
    except (errors.UserError, errors.RestartError) as error:
        _peers.fail(str(error), errors.exit_code(error))
    except KeyboardInterrupt:
        _peers.fail("interrupted", interrupts.INTERRUPTED)
    except Exception as error:
        # If another process died or hangs, this error is a consequence.
        _peers.find_cause(error)
        traceback.print_exc()
        code = errors.RESTART if rendezvous.is_communication(error) else errors.exit_code(error)
        _peers.fail(f"{type(error).__name__}: {errors.one_line(error, limit=300)}", code)
    else:
        _leave()


def _initialize(process: roll_call.ProcessInfo, start_seconds: float, hang_seconds: float) -> None:
    """Start JAX's service, whose own limits are longer than ours: its errors end processes without naming any."""
    try:
        jax.distributed.initialize(
            process.coordinator,
            process.count,
            process.index,
            process.local_devices,
            initialization_timeout=int(start_seconds),
            heartbeat_timeout_seconds=int(hang_seconds) + 300,
        )
    except RuntimeError as error:
        raise errors.RestartError(
            f"JAX's service at {process.coordinator} did not start ({errors.one_line(error)}): run the same command "
            "again; if that repeats, choose another port"
        ) from error


def _be_patient(seconds: int) -> None:
    """Raise the limits of collectives on CPUs above those after which a missing or hung process is named."""
    if getattr(jax.config, "jax_platforms", None) == "cpu":
        given = os.environ.get("XLA_FLAGS", "")
        raised = [f"--{name}={seconds}" for name in CPU_COLLECTIVES if name not in given]
        os.environ["XLA_FLAGS"] = " ".join([given, *raised]).strip()


def _leave() -> None:
    global _peers
    assert _peers is not None
    jax.distributed.shutdown()
    _peers.leave()
    _peers = None


def once(action: Callable[[], None]) -> None:
    """Run `action` in process 0 while the others wait for it; they can then read the files it wrote."""
    if _peers is None:
        action()
    elif _peers.process.index == 0:
        action()
        _peers.announce_ready()
    else:
        _peers.wait_until_ready()


def compile_together(program: Any, *arguments: Any) -> None:
    """Compile a jitted function in all processes of a run before any of them calls it.

    Gloo waits 30 seconds for a process that still compiles, and has no setting for that.
    """
    if _peers is not None:
        program.lower(*arguments).compile()
        _peers.agree({})


def agree(facts: agreement.Facts) -> None:
    """Compare facts that become known after the start; all processes call this at the same point.

    Raises:
      UserError: they differ.
    """
    if _peers is not None:
        _peers.agree(facts)


def share(value: Any) -> list[Any]:
    """Return the JSON values of all processes in their order; all processes call this at the same point."""
    return [value] if _peers is None else _peers.share(value)


def address() -> str:
    """Return the address at which the other processes reach this one; "" in a single-process run."""
    return "" if _peers is None else _peers.address()


def name(index: int) -> str:
    """Return a process's name for messages."""
    return "this process" if _peers is None else _peers.process.name(index)
