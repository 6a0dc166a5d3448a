"""Comparison of a network with its PyTorch counterpart: random weights, and a process for PyTorch.

The process has its own interpreter with torch and diffusers; JAX is not needed there. It reads one JSON object of
settings and then one method name per line. It writes one JSON object per line; see `torch_worker.py`.
"""

import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

INSTALL = "install both there (pip install torch diffusers), or name another interpreter with --torch-python"


def random_weights(abstract: Any) -> Any:
    """Draw uniform weights that preserve the variance of activations, for a tree of abstract arrays."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        scale = 2 * (3 / np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray((rng.random(leaf.shape, np.float32) - 0.5) * np.float32(scale))

    return jax.tree.map(draw, abstract)


class TorchProcess:
    """Network that `torch_worker.py` builds from `settings`.

    Attributes:
      versions: versions of diffusers and torch, as text.
      parameters: number of parameters of the network.

    Raises:
      ImportError: the interpreter lacks torch or diffusers.
      OSError: the interpreter does not exist.
    """

    def __init__(self, python: str, settings: dict[str, Any]):
        path = pathlib.Path(__file__).with_name("torch_worker.py")
        self._process = subprocess.Popen([python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        found = self.run(json.dumps(settings))
        if "missing" in found:
            self.close()
            raise ImportError(found["missing"])
        self.versions, self.parameters = found["versions"], found["parameters"]

    def run(self, line: str) -> dict[str, Any]:
        """Send one line and return the JSON object of the reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._process.stdout.readline()
        if not reply:
            raise SystemExit(f"error: the PyTorch process ended with code {self._process.wait()}; its message is above")
        return json.loads(reply)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(
    ours: Any,
    settings: dict[str, Any],
    methods: Sequence[str],
    *,
    python: str,
    repeats: int,
    console: rich.console.Console,
) -> tuple[str | None, dict[str, dict[str, list[dict[str, float]]]]]:
    """Run the methods of both sides alternately; the first call of each is not counted.

    Args:
      ours: our network, with `parameters` and `run(method) -> {"seconds", "cpu_seconds"}`.
      settings: settings for the PyTorch process.
      python: interpreter of the PyTorch process; without torch in it, only our network runs.

    Returns:
      Versions of diffusers and torch (None without them), and the results by method, then by "ours" and "theirs".
    """
    sides = {"ours": ours}
    try:
        sides["theirs"] = TorchProcess(python, settings)
    except (ImportError, OSError) as error:
        console.print(f"no comparison: {python} cannot import torch and diffusers ({error}); {INSTALL}")
    if len({side.parameters for side in sides.values()}) > 1:
        counts = ", ".join(f"{name} {side.parameters:,}" for name, side in sides.items())
        raise SystemExit(f"error: the networks differ in their number of parameters: {counts}")
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for method in methods:
        runs[method] = {name: [] for name in sides}
        for i in range(repeats + 1):
            for name, side in sides.items():
                runs[method][name] += [side.run(method)] * (i > 0)
    if "theirs" not in sides:
        return None, runs
    sides["theirs"].close()
    return sides["theirs"].versions, runs
