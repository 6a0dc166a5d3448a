"""Detection of quantized weights, whose numbers only count together with scales in other tensors."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from conversion import messages, sources
from jworld.utils import errors

#: Method -> tensors that its files have, as the usual programs name them; the first that matches counts.
_METHODS = {
    "bitsandbytes, 4 bits": re.compile(r"\.quant_state\.bitsandbytes__\w+$"),
    "bitsandbytes, 8 bits": re.compile(r"\.SCB$"),
    "GPTQ": re.compile(r"\.g_idx$"),
    "AWQ": re.compile(r"\.qweight$"),
    "compressed-tensors": re.compile(r"\.weight_packed$"),
    "HQQ": re.compile(r"\.W_q$"),
    "Quanto": re.compile(r"\.weight\._(data|scale)$"),
    "MLX": re.compile(r"\.scales$"),
}
#: Names of methods in config.json, where they differ from the title.
_TITLES = {"gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "quanto": "Quanto", "fp8": "float8", "fbgemm_fp8": "float8"}
_SCALE = re.compile(r"(^|\.)(scaled_fp8|scale_(weight|input)|(weight|input)_scale(_inv)?)$")
_FLOAT8 = "float8"


def refuse(source: sources.Source) -> None:
    """Raise a `UserError` that names the method if a file's weights are quantized.

    float8 without scales has plain values and is accepted.
    """
    found = _found(source.tensors, source.config)
    if found is not None:
        kind, names = found
        raise errors.UserError(
            f"{source.path}: its weights are {kind} ({messages.listed(names)}), expected plain weights: give the "
            "published bfloat16 files"
        )


def _found(tensors: Mapping[str, sources.TensorInfo], config: Mapping[str, Any] | None) -> tuple[str, list[str]] | None:
    """Return a description of the quantization and names of its tensors, or None."""
    for title, pattern in _METHODS.items():
        if names := [name for name in tensors if pattern.search(name)]:
            return f"quantized with {title}{_bits(title, config)}", names
    scales = [name for name in tensors if _SCALE.search(name)]
    if scales and any(str(info.dtype).startswith(_FLOAT8) for info in tensors.values()):
        return "float8 with scales", scales
    whole = [
        name for name, info in tensors.items() if name.endswith(".weight") and np.issubdtype(info.dtype, np.integer)
    ]
    return (f"quantized{_method(config)}", whole) if whole else None


def _section(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    values = (config or {}).get("quantization_config") or (config or {}).get("quantization")
    return values if isinstance(values, Mapping) else {}


def _bits(title: str, config: Mapping[str, Any] | None) -> str:
    bits = _section(config).get("bits", _section(config).get("w_bit"))
    return f", {bits} bits" if isinstance(bits, int) and "bits" not in title else ""


def _method(config: Mapping[str, Any] | None) -> str:
    method = _section(config).get("quant_method")
    return f" with {_TITLES.get(method, method)}" if isinstance(method, str) else ""
