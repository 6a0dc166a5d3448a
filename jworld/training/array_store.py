"""Arrays of an Orbax checkpoint on disk, opened with TensorStore and read in parts, without the rest of the tree.

Imported weights have a CRC-32C with every chunk, which TensorStore compares whenever it reads the chunk.
"""

import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

#: Bytes of the index of a checkpoint that are kept.
_INDEX = {"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}}

Index = tuple[slice, ...]


class StoredArrays:
    """Arrays of a checkpoint by path; each is opened when it is first read, by any thread.

    Attributes:
      directory: the checkpoint.
      arrays: path -> shape and dtype.
      chunk_rows: path -> rows of the first axis that are stored together.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Read the description of the arrays; Orbax raises several types if it is missing or damaged."""
        self.directory = directory.absolute()
        # The handler is used directly: items of a run's checkpoints lack metadata that the checkpointer needs.
        metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.directory))
        self._uses_zarr3 = bool(metadata.use_zarr3)
        self._context = tensorstore.Context(_INDEX)
        self._stores: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self.arrays: dict[str, jax.ShapeDtypeStruct] = {}
        self.chunk_rows: dict[str, int] = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(metadata.tree):
            names = [str(key.key) for key in keys]
            # A variable of a model is stored as a node with one leaf, "value".
            path = "/".join(names).removesuffix("/value")
            self._names[path] = ".".join(names)
            self.arrays[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            self.chunk_rows[path] = leaf.storage.chunk_shape[0] if leaf.shape else 1

    def fill(self, path: str, index: Index, out: np.ndarray) -> Any:
        """Start to read the part `index` of an array into `out`, cast to its dtype; returns a future of TensorStore.

        TensorStore would allocate the result in small pages, which takes several times as long.
        """
        store = self._open(path)
        source = store[index] if index else store
        if store.dtype.numpy_dtype != out.dtype:
            source = tensorstore.cast(source, out.dtype)
        return tensorstore.array(out, copy=False, write=True).write(source)

    def read(self, path: str, index: Index = ()) -> np.ndarray:
        """Read an array, or the part of slices of its first axes with numbers for start and stop."""
        array = self.arrays[path]
        sizes = [part.stop - part.start for part in index]
        out = np.empty((*sizes, *array.shape[len(sizes) :]), array.dtype)
        self.fill(path, index, out).result()
        return out

    def _open(self, path: str) -> Any:
        if path not in self._stores:
            info = ocp.type_handlers.ParamInfo(
                name=self._names[path],
                parent_dir=epath.Path(self.directory),
                is_ocdbt_checkpoint=True,
                use_zarr3=self._uses_zarr3,
                ts_context=self._context,
            )
            spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
            opened = tensorstore.open(tensorstore.Spec(spec), open=True, read=True, context=self._context)
            self._stores[path] = opened.result()
        return self._stores[path]


def size(array: Any) -> int:
    """Return the bytes of an array or of its description."""
    return int(array.size * np.dtype(array.dtype).itemsize)
