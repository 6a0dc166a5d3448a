"""Agreement of the processes of a run: facts that must be equal in all of them, and their differences in a sentence."""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Name of a fact -> its value as text.
Facts = Mapping[str, str]

#: Packages that determine what a step computes or how it is saved.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
#: Keys of a config that may differ between processes: they affect one process only.
MAY_DIFFER = ("data.threads", "data.prefetch", "log.watchdog_minutes", "checkpoint.emergency.folder")
_PROCESSES, _FACTS, _CHARACTERS = 4, 4, 60


def of_program() -> dict[str, str]:
    """Return the facts of the installed program: the hash of its code and the versions of packages."""
    facts = {"the code of jworld (hash)": code_hash()}
    for name in PACKAGES:
        try:
            facts[f"the version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[f"the version of {name}"] = "none"
    return facts


def of_config(config: Mapping[str, Any], *, may_differ: Sequence[str] = MAY_DIFFER) -> dict[str, str]:
    """Return the facts of a resolved config: each key with its value, but for those below one of `may_differ`."""
    facts: dict[str, str] = {}

    def add(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, below in value.items():
                add(below, f"{key}{name}.")
        elif not key.startswith(tuple(may_differ)):
            facts[f"config.{key[:-1]}"] = json.dumps(value, default=str)

    add(config, "")
    return facts


@functools.cache
def code_hash() -> str:
    """Return a hash of all Python files of the package."""
    package = pathlib.Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def differences(facts: Sequence[Facts], name: Callable[[int], str]) -> str:
    """Describe how the facts of processes 1, 2, ... differ from those of process 0; "" if they are equal.

    Args:
      facts: those of each process, in order.
      name: returns the name of a process.
    """
    described = []
    for index, own in enumerate(facts):
        differing = [key for key in sorted({*facts[0], *own}) if own.get(key) != facts[0].get(key)]
        if differing:
            listed = ", ".join(
                f"{key} {_shown(own.get(key))} (process 0: {_shown(facts[0].get(key))})" for key in differing[:_FACTS]
            )
            described.append(f"{name(index)} has {listed}" + _more(len(differing) - _FACTS))
    if not described:
        return ""
    return (
        f"the processes of this run differ: {'; '.join(described[:_PROCESSES])}{_more(len(described) - _PROCESSES)}: "
        "start all with the same code, packages, arguments and data"
    )


def _shown(value: str | None) -> str:
    text = "none" if value is None else " ".join(value.split())
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
