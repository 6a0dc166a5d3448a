"""Types of Flax NNX with their arguments, for annotations."""

from typing import Any, TypeAlias

from flax import nnx

#: Variables, or their shapes or shardings, by path.
State: TypeAlias = nnx.State[Any, Any]
#: Structure of any module.
GraphDef: TypeAlias = nnx.GraphDef[Any]
