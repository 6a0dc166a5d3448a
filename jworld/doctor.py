"""python -m jworld.doctor
python -m jworld.doctor --config=configs/ar_mem.py:8b

Checks this machine before a run: devices, versions of libraries, frequent problems, and for a recipe its mesh and its
attention backends with the reasons. Nothing is written and nothing is trained. The exit code is 1 if there is a
problem.
"""

import importlib.metadata
import importlib.util
import pathlib
import platform
import shutil
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import rich.console

from jworld import systems
from jworld.models.layers.attention import Request, backends
from jworld.parallel import mesh
from jworld.systems import recipes
from jworld.systems.base import AnySystem, AttentionCall
from jworld.utils import arguments, errors, hardware

DESCRIPTION = """Check this machine before a run: devices, versions of libraries, and frequent problems.

With a recipe, also check its mesh on these devices, and show its attention backends with the reasons. Nothing is
written and nothing is trained. The exit code is 1 if there is a problem."""


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
#: Plugins that bring an accelerator's compiler; each is present only with its extra.
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
DRIVER = pathlib.Path("/proc/driver/nvidia/version")
TPU_DEVICES = (pathlib.Path("/dev/accel0"), pathlib.Path("/dev/vfio/0"))


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the checks, print the results, and exit with 1 if there is a problem."""
    parser = arguments.Parser("python -m jworld.doctor", DESCRIPTION)
    arguments.add_recipe(parser, required=False)
    options = parser.parse(argv)
    config = None
    if options.config is not None or options.changes or options.list_keys:
        config = recipes.from_options(options)
    console = rich.console.Console(highlight=False, soft_wrap=True)
    _print(console, "versions", versions())
    _print(console, "devices", devices())
    problems = find_problems()
    if config is not None:
        rows, found = examine(config)
        _print(console, "recipe", rows)
        problems += found
    for problem in problems:
        console.print(f"[bold red]problem:[/] {problem}")
    if problems:
        sys.exit(1)
    hint = "" if config is not None else "; --config=<recipe> also checks a recipe against this machine"
    console.print(f"nothing wrong was found{hint}")


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the packages that a run uses."""
    rows = [("python", platform.python_version())]
    for name in (*PACKAGES, *PLUGINS):
        version = _version(name)
        if version or name in PACKAGES:
            rows.append((name, version or "missing"))
    return rows


def devices() -> list[tuple[str, str]]:
    """Return platform, devices and number of processes of JAX."""
    found = jax.devices()
    chip = hardware.of_device(found[0])
    peak = f", {chip.flops / 1e12:,.0f} TFLOP/s and {chip.memory_bytes / 2**30:,.0f} GiB each" if chip else ""
    return [
        ("platform", found[0].platform),
        ("devices", f"{len(found)} x {found[0].device_kind}{peak}"),
        ("processes", str(jax.process_count())),
    ]


def find_problems() -> list[str]:
    """Return frequent problems of this machine, each with its fix."""
    problems = []
    backend = jax.default_backend()
    jax_version, jaxlib_version = _version("jax"), _version("jaxlib")
    if jax_version and jaxlib_version and jax_version.split(".")[:2] != jaxlib_version.split(".")[:2]:
        problems.append(f"jax {jax_version} is not compatible with jaxlib {jaxlib_version}: pip install -U jax jaxlib")
    if backend == "cpu" and (DRIVER.exists() or shutil.which("nvidia-smi")):
        problems.append(
            "there is an NVIDIA driver, but JAX runs on the CPU: install the GPU packages with "
            '`pip install -e ".[cuda]"`, and unset JAX_PLATFORMS if it is cpu'
        )
    if backend == "cpu" and any(path.exists() for path in TPU_DEVICES):
        problems.append(
            "there is a TPU, but JAX runs on the CPU: install the TPU package with "
            '`pip install -e ".[tpu]"`, and stop other processes that use the TPU'
        )
    if importlib.util.find_spec("jax_cuda12_plugin") and importlib.util.find_spec("jax_cuda13_plugin"):
        problems.append("the JAX plugins of CUDA 12 and CUDA 13 are both installed: pip uninstall one of them")
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        problems.append("JAX_ENABLE_X64 is on, which makes every step slow: unset it")
    return problems


def examine(config: ml_collections.ConfigDict) -> tuple[list[tuple[str, str]], list[str]]:
    """Return facts about a recipe on this machine, and its problems."""
    rows, problems = [], []
    try:
        sizes = mesh.make_mesh(**config.mesh.to_dict())
        rows.append(("mesh", ", ".join(f"{name}={size}" for name, size in sizes.shape.items())))
        sequence = sizes.shape["sequence"]
    except errors.UserError as error:
        problems.append(str(error))
        sequence = max(config.mesh.sequence, 1)
    rows += attention(systems.create(config), sequence)
    return rows, problems


def attention(system: AnySystem, sequence: int) -> list[tuple[str, str]]:
    """Return the backend of every attention of a training step on these devices, and the reason."""
    calls = system.attention_calls()
    if not calls:
        return [("attention", "no backend is chosen: the network has no attention over tokens")]
    return [(f"attention, {call.name}", describe(call, sequence)) for call in calls]


def describe(call: AttentionCall, sequence: int) -> str:
    """Return the backend of one attention, the reason, and how its heads are split."""
    if call.heads % sequence:
        return f"xla, because {backends.ring_message(call.heads, sequence)}"
    request = Request(
        mask=call.mask,
        key_mask=call.key_mask,
        lengths=call.lengths,
        heads=call.heads,
        head_dim=call.head_dim,
        dtype=jnp.dtype(call.dtype),
    )
    chosen = backends.choose(call.implementation, request)
    split = f"; {call.heads} heads are split over {sequence} devices" if sequence > 1 else ""
    return f"{chosen.backend.name}, because {chosen.reason}{split}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(console: rich.console.Console, title: str, rows: list[tuple[str, str]]) -> None:
    console.print(title, style="italic")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"  {name:<{width}}  {value}", markup=False)


if __name__ == "__main__":
    main()
