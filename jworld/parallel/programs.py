"""Described calls of jitted functions, which can be compiled before there are weights, or for other chips."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from jworld.parallel import axes


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A call of a jitted function on the mesh that is the current one when the program is described.

    Attributes:
      name: what the call does, in reports.
      function: result of `jax.jit`.
      arguments: positional arguments, arrays or descriptions of them with their sharding.
      options: keyword arguments.
      runs: calls per chunk, or per token of an answer; 0 for a program that runs once per video or answer.
      cache: the part of `arguments` that stays on the devices between calls, other than weights; None without.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs: int = 1
    cache: Any = None
    mesh: jax.sharding.Mesh = dataclasses.field(default_factory=axes.current_mesh)

    @functools.cached_property
    def lowered(self) -> Any:
        """The program before compilation."""
        with contextlib.nullcontext() if self.mesh.empty else jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments, **self.options)

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiled program; JAX finds it again when the same call is made with data."""
        return self.lowered.compile()

    def results(self) -> Any:
        """Compile, and describe the results in the layout that the program gives them."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.lowered.out_info,
            self.compiled.output_shardings,
        )

    def jaxpr(self) -> Any:
        """Trace the call on the mesh of `jax.set_mesh`, which may be another one, and return its jaxpr."""

        def anywhere(x: Any) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x

        return self.function.trace(*jax.tree.map(anywhere, self.arguments), **self.options).jaxpr
