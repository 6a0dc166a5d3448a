"""PyTorch models of `transformers` as encoders: imported when one is asked for, loaded strictly."""

import dataclasses
import importlib
import pathlib
import pickle
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors

from jworld.utils import pretrained
from jworld.utils.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How an encoder runs; None leaves the dtype to the published system and the device to what the machine has."""

    dtype: str | None = None
    device: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"encoder dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.batch_size < 1:
            raise UserError(f"encoder batch size is {self.batch_size}, expected at least 1")


def require(name: str) -> Any:
    """A module of the extra "torch"."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'the published encoders need {name}, which is not installed: pip install "jworld[torch]"'
        ) from error


def resolve_device(options: Options) -> str:
    """The device of the options, or the GPU, or the CPU."""
    torch = require("torch")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"encoder device {device} cannot be used ({reason}): choose another, such as cpu") from error
    return device


def load_model(
    class_name: str,
    folder: pathlib.Path,
    *,
    dtype: str,
    device: str,
    unneeded: str = "",
    key_mapping: dict[str, str] | None = None,
) -> Any:
    """A model of `transformers` with every weight taken from `folder`, ready to encode.

    `unneeded`: pattern that the start of a weight's name must match to be left out; any other weight without a place,
    and any place without a weight, is an error (`transformers` itself would draw the missing ones at random).
    """
    torch = require("torch")
    try:
        # The report of weights that were left out is replaced by the check below.
        with pretrained.quiet() as transformers:
            model, report = getattr(transformers, class_name).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                key_mapping=key_mapping,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} cannot be loaded as {class_name} ({reason}): download the model again") from error
    unknown = [name for name in report["unexpected_keys"] if not (unneeded and re.match(unneeded, name))]
    check_names(folder, missing=report["missing_keys"], unknown=unknown)
    return model.requires_grad_(False).eval().to(device)


def check_names(where: pathlib.Path, *, missing: Sequence[str], unknown: Sequence[str]) -> None:
    """`UserError` that names one weight that is missing or has no place."""
    for names, what in ((missing, "lacks"), (unknown, "has no place for")):
        if names:
            raise UserError(
                f"{where} {what} weight {min(names)!r} ({len(names)} such): give the folder of the published model"
            )


def batches(items: Sequence[Any] | np.ndarray, size: int) -> Iterator[Any]:
    """`items` in slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def valid_rows(hidden: Any, lengths: Sequence[int], *, start: int = 0) -> list[np.ndarray]:
    """Tensor [B, S, D] -> per item the rows from `start` to its length, float32."""
    array = hidden.float().cpu().numpy()
    states = [rows[start:length].copy() for rows, length in zip(array, lengths, strict=True)]
    check_finite(states, hidden.dtype)
    return states


def check_finite(states: Sequence[np.ndarray], dtype: Any) -> None:
    """`UserError` where a number was too large for the dtype that the model ran in."""
    if not all(np.isfinite(rows).all() for rows in states):
        raise UserError(f"encoder states in {dtype} are not finite: choose another encoder dtype, such as float32")
