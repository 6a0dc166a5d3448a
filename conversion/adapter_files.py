"""Adapters (LoRA) in files of other programs: pairs of low-rank matrices by layer, in any of their naming styles.

| program | folder or file | names after the layer |
| --- | --- | --- |
| peft | `adapter_model.safetensors` and `adapter_config.json` | `lora_A.weight`, `lora_B.weight` |
| diffusers | `pytorch_lora_weights.safetensors`, settings in the header | the same; `transformer.` before the layer |
| kohya | one file | `lora_down.weight`, `lora_up.weight`, `alpha`; the layer's name may have `_` for `.` |
| a model with its adapters | a checkpoint | `base_layer.weight`, `lora_A.default.weight`, `lora_B.default.weight` |

Other methods (DoRA, convolutions and more) are refused by name, all at once.
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from conversion import adapter_scales, messages, sources
from jworld.utils import errors

CONFIG_NAME = "adapter_config.json"
#: Names of peft, of which the first that exists is read.
NAMES = ("adapter_model.safetensors", "adapter_model.bin")
#: Parts of a pipeline that a header may have settings for.
_PARTS = ("transformer.", "transformer_2.", "text_encoder.", "text_encoder_2.", "unet.")

# An adapter's own name, such as "default", may follow the matrix.
_NAMED = r"(?:\.(?!weight$|bias$)(?P<name>[^.]+))?"
_ENDINGS = {
    "down": re.compile(rf"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down){_NAMED}(?:\.weight)?$"),
    "up": re.compile(rf"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up){_NAMED}(?:\.weight)?$"),
    "bias": re.compile(rf"\.(?:lora_B|lora_up){_NAMED}\.bias$"),
    "rows": re.compile(rf"\.lora_embedding_A{_NAMED}(?:\.weight)?$"),
    "columns": re.compile(rf"\.lora_embedding_B{_NAMED}(?:\.weight)?$"),
    "alpha": re.compile(r"\.alpha$"),
}
_OTHERS = {
    "DoRA": re.compile(r"\.(?:lora_magnitude_vector|dora_scale)(?:\.|$)"),
    "a convolution's adapter": re.compile(r"\.lora_mid(?:\.|$)"),
    "LoHa": re.compile(r"\.hada_\w+(?:\.|$)"),
    "LoKr": re.compile(r"\.lokr_\w+(?:\.|$)"),
    "OFT": re.compile(r"\.b?oft_\w+(?:\.|$)"),
    "IA3": re.compile(r"\.(?:ia3_l|on_input)(?:\.|$)"),
    "AdaLoRA": re.compile(r"\.(?:lora_E|ranknum)(?:\.|$)"),
    "VeRA": re.compile(r"\.vera_\w+(?:\.|$)"),
    "a difference of whole tensors": re.compile(r"\.(?:diff|diff_b|set_weight|w_norm|b_norm)$"),
}
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.[^.]+)?)(?=\.(?:weight|bias)$)")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank change of one layer: factor * up @ down [rows, columns], added to its matrix.

    Attributes:
      module: name of the layer as in the file.
      source: the file.
      down, up: names of the tensors [rank, columns] and [rows, rank]; of an embedding [rank, rows] and [columns, rank].
      bias: name of the tensor [rows] that is added to the layer's bias, times the factor; None without one.
      factor: factor of the change.
      embedding: True for an embedding.
    """

    module: str
    source: sources.Source
    down: str
    up: str
    bias: str | None
    factor: float
    embedding: bool

    @property
    def rank(self) -> int:
        return self.source.tensors[self.down].shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the layer's matrix [rows, columns] in the file's layout."""
        down, up = self.source.tensors[self.down].shape, self.source.tensors[self.up].shape
        return (down[1], up[0]) if self.embedding else (up[0], down[1])

    def misfit(self, name: str, shape: Sequence[int]) -> str:
        """Describe an adapter that does not fit the tensor `name` of `shape`."""
        down, up = (list(self.source.tensors[each].shape) for each in (self.down, self.up))
        text = f"the adapters of {name} {list(shape)} have shapes {down} and {up}"
        return f"{text}, expected [rank, columns] and [rows, rank]"

    def addition(self, rows: np.ndarray | slice, columns: slice) -> np.ndarray:
        """Return part of the change, float32; row -1 is zero."""
        if self.embedding:
            up, down = (self._read(self.down).T, self._read(self.up).T)
            up, down = up[rows], down[:, columns]
        else:
            down = self._read(self.down, (slice(None), columns))
            up = self._read(self.up, (rows,)) if isinstance(rows, slice) else self._read(self.up)[rows]
        if not isinstance(rows, slice):
            up = np.where(rows[:, None] < 0, np.float32(0), up)
        change: np.ndarray = np.float32(self.factor) * (up @ down)
        return change

    def bias_addition(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return part of the change of the bias, float32; row -1 is zero."""
        assert self.bias is not None
        value: np.ndarray = np.float32(self.factor) * self._read(self.bias)[rows]
        return value if isinstance(rows, slice) else np.where(rows < 0, np.float32(0), value)

    def _read(self, name: str, index: sources.Index | None = None) -> np.ndarray:
        return self.source.read(name, index).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Contents:
    """Adapters of a file.

    Attributes:
      where: the file, for messages.
      adapters: adapters by layer, named as in the file.
      whole: name of a whole tensor that replaces one of the model, without the names of wrappers -> name in the file.
      origins: what the factors follow from; "" for the assumption that alpha is the rank.
    """

    where: str
    adapters: Mapping[str, Adapter]
    whole: Mapping[str, str]
    origins: tuple[str, ...]

    @property
    def ranks(self) -> list[int]:
        return sorted({adapter.rank for adapter in self.adapters.values()})

    def describe(self) -> str:
        """Return ranks, factors and their origin as text."""
        factors = sorted({round(adapter.factor, 9) for adapter in self.adapters.values()})
        shown = f"{factors[0]:g}" if len(factors) == 1 else f"{factors[0]:g} to {factors[-1]:g}"
        origins = [
            origin or "assumed, because nothing states alpha: alpha = rank, see --lora-alpha" for origin in self.origins
        ]
        ranks = " and ".join(map(str, self.ranks))
        return f"rank {ranks} on {len(self.adapters)} layers with the factor {shown} ({'; '.join(origins)})"


def find(path: pathlib.Path) -> pathlib.Path:
    """Return the file of adapters at `path` or in the folder `path`.

    Raises:
      UserError: there is none; the message names sub-folders with adapters.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in NAMES if (path / name).is_file()), None)
    if found is not None:
        return found
    inner = sorted(child.name for child in path.iterdir() if (child / CONFIG_NAME).is_file())
    if inner:
        raise errors.UserError(f"{path}: has adapters in its sub-folders {messages.listed(inner, 8)}: give one of them")
    if (path / CONFIG_NAME).is_file():
        raise errors.UserError(f"{path}: has {CONFIG_NAME}, but neither {' nor '.join(NAMES)}: download it, too")
    return path


def is_part(name: str) -> bool:
    """Return True for the name of a tensor of an adapter."""
    return _parse(name)[0] is not None or _other(name) is not None


def are_adapters(names: Collection[str]) -> bool:
    """Return True for the names of a file with adapters alone, in which most tensors are parts of them."""
    return 2 * sum(map(is_part, names)) > len(names)


def read(source: sources.Source, names: Mapping[str, str], *, alpha: float | None) -> Contents:
    """Collect the adapters of a file.

    Args:
      source: the file.
      names: name of a tensor to show and to parse -> name in `source`; only these tensors are read.
      alpha: alpha of adapters whose file does not state it; None for their rank.

    Raises:
      UserError: one message with everything that is not LoRA of linear layers, with incomplete pairs, and with
        contradictory factors.
    """
    file = source.files[0]
    pairs: dict[str, dict[str, str]] = {}
    own: dict[str, None] = {}
    refused: dict[str, list[str]] = {}
    whole: dict[str, str] = {}
    for name, inside in names.items():
        kind, module, adapter = _parse(name)
        if (method := _other(name)) is not None:
            refused.setdefault(method, []).append(name)
        elif kind is None:
            whole[_WRAPPED.sub("", name)] = inside
        else:
            pairs.setdefault(module, {})[kind] = inside
            if kind != "alpha":
                own[adapter or ""] = None
            if kind in ("down", "up") and len(source.tensors[inside].shape) > 2:
                refused.setdefault("a convolution's adapter", []).append(name)
    if refused:
        listed = "; ".join(f"{method} ({', '.join(found)})" for method, found in refused.items())
        raise errors.UserError(f"{file}: cannot be merged: {listed}; expected LoRA pairs of linear layers")
    if len(own) > 1:
        raise errors.UserError(f"{file}: has several adapters, {', '.join(map(repr, own))}: save one of them alone")
    if not pairs:
        raise errors.UserError(
            f"{file}: has no adapters: expected pairs of matrices of any layer, such as to_q.lora_A.weight and "
            f"to_q.lora_B.weight, found {messages.listed(list(names))}"
        )
    alphas = {module: _number(source, found["alpha"], file) for module, found in pairs.items() if "alpha" in found}
    scales = adapter_scales.Scales(_configs(source, file), alphas, alpha)
    adapters, incomplete = {}, []
    for module, found in pairs.items():
        for down, up in (("down", "up"), ("rows", "columns")):
            if down in found and up in found:
                shapes = [source.tensors[found[key]].shape for key in (down, up)]
                if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
                    incomplete.append(f"{module} has matrices of shapes {list(shapes[0])} and {list(shapes[1])}")
                    continue
                factor = scales.of(module, shapes[0][0]).factor
                adapters[module] = Adapter(
                    module, source, found[down], found[up], found.get("bias"), factor, embedding=down == "rows"
                )
                break
        else:
            incomplete.append(f"{module} has {' and '.join(sorted(found))} without a complete pair")
    if incomplete or scales.mistakes:
        raise errors.UserError(
            f"{file}: {'; '.join([*incomplete, *scales.mistakes])}: expected matrices [rank, columns] and [rows, rank] "
            "of one rank, and one statement about alpha: correct the file, or leave --lora-alpha out"
        )
    return Contents(str(source.path), adapters, whole, tuple(scales.origins))


def _configs(source: sources.Source, file: pathlib.Path) -> list[adapter_scales.Config]:
    configs = adapter_scales.read_header(source.metadata, str(file), _PARTS)
    path = file.parent / CONFIG_NAME
    if path.is_file():
        configs.insert(0, adapter_scales.read_config(sources.read_json(path), str(path)))
    return configs


def _parse(name: str) -> tuple[str | None, str, str | None]:
    """Split a tensor's name; -> (kind, layer, the adapter's own name), or (None, name, None) for other tensors."""
    for kind, ending in _ENDINGS.items():
        if match := ending.search(name):
            return kind, name[: match.start()], match.groupdict().get("name")
    return None, name, None


def _other(name: str) -> str | None:
    """Return the method of a tensor that is not LoRA of a linear layer, or None."""
    return next((method for method, ending in _OTHERS.items() if ending.search(name)), None)


def _number(source: sources.Source, name: str, file: pathlib.Path) -> float:
    value = source.read(name) if source.tensors[name].shape in ((), (1,)) else np.zeros(0)
    if value.size != 1 or not np.isfinite(value.astype(np.float64)).all():
        shape = list(source.tensors[name].shape)
        raise errors.UserError(f"{file}: {name} is not one finite number (shape {shape}): correct the file")
    return float(value.astype(np.float64).reshape(()))
