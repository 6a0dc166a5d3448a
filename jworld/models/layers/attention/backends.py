"""The registry of attention backends, and the choice of one for each call."""

import functools
import logging
import math
from typing import NamedTuple

from jworld.models.layers.attention import cudnn, splash, xla
from jworld.models.layers.attention.base import Backend, Request, target_platform

#: Backends by name. "auto" takes the first kernel of the platform that accepts the request, else the reference.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (xla.BACKEND, cudnn.BACKEND, splash.BACKEND)}
#: Serves every request on every platform.
REFERENCE = xla.BACKEND
#: What a config may set besides the name of a backend; None means the same.
AUTO = "auto"

#: A kernel saves nothing if there are fewer queries or keys than this.
MIN_LENGTH = 256

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A backend, and the reason for it as a clause that follows "because"."""

    backend: Backend
    reason: str


def check_implementation(implementation: str | None) -> None:
    """Raise a ValueError unless a config may set `attention` to this value."""
    if implementation is not None and implementation not in (AUTO, *BACKENDS):
        raise ValueError(f"attention is {implementation!r}, expected one of {', '.join((AUTO, *BACKENDS))}")


def choose(implementation: str | None, request: Request, *, platform: str | None = None) -> Choice:
    """Return the backend for one call; falling back to the reference is logged once per reason.

    Args:
      implementation: as the config sets it: the name of a backend, "auto" or None.
      request: the call.
      platform: "cpu", "gpu" or "tpu" (default: the platform of the current mesh).

    Raises:
      ValueError: no backend has this name.
    """
    check_implementation(implementation)
    platform = target_platform() if platform is None else platform
    named = None if implementation in (None, AUTO) else implementation
    if named == REFERENCE.name:
        return Choice(REFERENCE, "the config asks for it")
    kernels = [x for x in BACKENDS.values() if x is not REFERENCE and platform in x.platforms]
    if named:
        kernels = [kernel for kernel in kernels if kernel.name == named]
        if not kernels:
            return _fall_back(f"{named} does not run on the platform {platform!r}")
    elif not kernels:
        return Choice(REFERENCE, f"there is no kernel for the platform {platform!r}")
    elif min(request.lengths) < MIN_LENGTH:
        return Choice(REFERENCE, f"{min(request.lengths)} tokens are too few for a kernel to help")
    refusals = []
    for kernel in kernels:
        refusal = kernel.refusal(request)
        if refusal is None:
            return Choice(
                kernel, "the config asks for it" if named else f"it is the kernel for the platform {platform!r}"
            )
        refusals.append(refusal)
    return _fall_back("; ".join(refusals))


def saved_primitives() -> frozenset[str]:
    """Return the primitives of all backends whose outputs remat policies save although they have no name."""
    return frozenset(name for backend in BACKENDS.values() for name in backend.saved_primitives)


def ring_message(heads: int, devices: int) -> str:
    """Return what happens to heads that do not divide over the devices that share a sample."""
    groups = math.gcd(heads, devices)
    split = f"heads are split {groups} ways, and keys" if groups > 1 else "keys"
    return f"{heads} heads do not divide over {devices} devices: {split} move around rings of {devices // groups}"


@functools.cache
def announce_rings(heads: int, devices: int) -> None:
    """Log once that these heads use ring attention."""
    _log.warning("attention: %s, computed by XLA", ring_message(heads, devices))


def _fall_back(reason: str) -> Choice:
    _announce_fall_back(reason)
    return Choice(REFERENCE, reason)


@functools.cache
def _announce_fall_back(reason: str) -> None:
    _log.warning("attention: %s; XLA computes it instead, which is slower on accelerators", reason)
