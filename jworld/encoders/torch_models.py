"""PyTorch models of `transformers` as encoders: imported on first use, loaded strictly."""

import dataclasses
import importlib
import pathlib
import pickle
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import safetensors

from jworld.utils import arguments, notes, pickles, placeholders, pretrained, tensor_files
from jworld.utils.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")
#: Names of devices that can run an encoder, with a number after a colon if there are several.
_DEVICE = re.compile(r"(cpu|cuda|hpu|mps|xpu)(:\d{1,3})?")
DEVICES = "cpu, cuda, hpu, mps or xpu, or one of several such as cuda:1"
_PICKLED = (".bin", ".pt", ".pth")
_WEIGHTS = (".safetensors", *_PICKLED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings for running an encoder.

    Attributes:
      dtype: dtype of weights and activations; None for that of the published system.
      device: torch device; None for the GPU if available, else the CPU.
      batch_size: prompts or images per batch.
    """

    dtype: str | None = None
    device: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"encoder dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.device is not None and not is_device(self.device):
            raise UserError(f"encoder device is {self.device!r}, expected {DEVICES}: correct it")
        if self.batch_size < 1:
            raise UserError(f"encoder batch size is {self.batch_size}, expected at least 1")


def is_device(text: str) -> bool:
    """Return whether a text is the name of a device, which this machine need not have."""
    return _DEVICE.fullmatch(text) is not None


def _device(text: str) -> str:
    if not is_device(text):
        raise ValueError(text)
    return text


def add_arguments(group: Any, what: str, *, dtype: str) -> None:
    """Add --encoder-device and --encoder-dtype for `what`; `dtype` describes the default of the latter."""
    group.add_argument(
        "--encoder-device",
        type=arguments.checked("DEVICE", DEVICES, _device),
        help=f"device of {what} (default: cuda if there is one)",
    )
    group.add_argument("--encoder-dtype", choices=DTYPES, help=f"dtype of {what} (default: {dtype})")


def require(name: str) -> Any:
    """Import a module of the extra "torch"; a `UserError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'the published encoders need {name}, which is not installed: pip install "jworld[torch]"'
        ) from error


def resolve_device(options: Options) -> str:
    """Return the device of the options; by default the GPU if available, else the CPU."""
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
    """Load a model of `transformers` for inference, with every weight from `folder`.

    Weights whose names start with a match of the pattern `unneeded` are left out. Any other unknown weight, and any
    missing one, is an error; `transformers` itself would initialize missing weights at random.
    """
    torch = require("torch")
    placeholders.refuse_in(folder, (".json", *_WEIGHTS))
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLED:
            pickles.check_torch(path, fix="download the model again")
    if _float8(folder):
        notes.note(
            f"{folder} has float8 weights, so its states differ from those of the published weights: download those, "
            "or use this folder for training and for generation alike"
        )
    try:
        # The report of unused weights is replaced by the check below.
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


def _float8(folder: pathlib.Path) -> bool:
    """Return True if the safetensors files of a folder have a tensor of a float8 dtype."""
    for path in sorted(folder.glob("*.safetensors")):
        with tensor_files.opened(path, fix="download the model again") as file:
            if any(file.get_slice(name).get_dtype().startswith("F8") for name in file.keys()):  # noqa: SIM118
                return True
    return False


def check_names(where: pathlib.Path, *, missing: Sequence[str], unknown: Sequence[str]) -> None:
    """Raise a `UserError` that names one missing or unknown weight, if there is one."""
    for names, what in ((missing, "lacks"), (unknown, "has no place for")):
        if names:
            raise UserError(
                f"{where} {what} weight {min(names)!r} ({len(names)} such): give the folder of the published model"
            )


def batches(items: Sequence[Any] | np.ndarray, size: int) -> Iterator[Any]:
    """Yield slices of `items` of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def valid_rows(hidden: Any, lengths: Sequence[int], *, start: int = 0) -> list[np.ndarray]:
    """Convert a tensor [B, S, D] to float32 arrays with the rows from `start` to the length of each item."""
    array = hidden.float().cpu().numpy()
    states = [rows[start:length].copy() for rows, length in zip(array, lengths, strict=True)]
    check_finite(states, hidden.dtype)
    return states


def check_finite(states: Sequence[np.ndarray], dtype: Any) -> None:
    """Raise a `UserError` if a value overflowed in the dtype of the model."""
    if not all(np.isfinite(rows).all() for rows in states):
        raise UserError(f"encoder states in {dtype} are not finite: choose another encoder dtype, such as float32")
