"""Description of a file or folder of weights from its headers."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from conversion import adapter_files, engine, families, folders, messages, resolving, selecting, sources
from jworld.models.autoencoders.latents import Normalization


def inspect(path: pathlib.Path, *, step: int | None = None) -> dict[str, str]:
    """Describe `path`, a PyTorch checkpoint or weights of jworld; -> title of a row -> text.

    Raises:
      UserError: it is neither, or damaged.
    """
    folders.refuse_step(path, step)
    return _inspect_weights(path, step) if folders.is_ours(path) else _inspect_source(path)


def _inspect_source(path: pathlib.Path) -> dict[str, str]:
    with sources.open_source(path) as opened:
        if adapter_files.are_adapters(opened.tensors):
            return _adapters(path)
        family, layout = families.detect(opened.tensors, str(path))
        source = selecting.Selected(opened, layout, selecting.Selection())
        facts = layout.from_shapes({name: info.shape for name, info in source.tensors.items()})
        if source.config is not None:
            facts = layout.from_config(source.config, str(source.files[0].parent / "config.json")) | facts
        return {
            "kind": layout.title,
            **_network(family, layout.name, facts),
            **_tensors((info.shape, info.dtype) for info in source.tensors.values()),
            **({"EMA weights": "also in the file, for import --ema"} if source.has_ema else {}),
            **({"adapters": f"{source.adapters.describe()}, merged by import"} if source.adapters else {}),
            **_files(source.files),
        }


def _adapters(path: pathlib.Path) -> dict[str, str]:
    with sources.open_source(adapter_files.find(path), unwrap=False) as opened:
        contents = adapter_files.read(opened, {name: name for name in opened.tensors}, alpha=None)
        layers = list(contents.adapters)
        return {
            "kind": "adapters (LoRA), merged by fuse",
            "adapters": contents.describe(),
            "layers": messages.listed(layers),
            **({"whole tensors": messages.listed(list(contents.whole))} if contents.whole else {}),
            **_tensors((info.shape, info.dtype) for info in opened.tensors.values()),
            **_files(opened.files),
        }


def _inspect_weights(path: pathlib.Path, step: int | None) -> dict[str, str]:
    weights = folders.open_weights(path, step)
    family, model, record = weights.family, weights.target.model_config, weights.record
    kind = "jworld, an autoencoder" if family.autoencoder else "jworld, released weights"
    if record is not None:
        kind = f"jworld, imported from {record['source']}" + (f" ({record['variant']})" if record["variant"] else "")
    elif weights.step is not None:
        kind = f"jworld, step {weights.step} of a run"
    layout = record["layout"] if record else "jworld's own"
    shapes = {name: leaf.shape for name, leaf in weights.arrays.items()}
    places = engine.plan(shapes, family.layouts[record["layout"]].rules(model)) if record else {}
    hidden = ("dtype", "param_dtype") if family.autoencoder else resolving.FREE
    facts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.name not in hidden}
    return {
        "kind": kind,
        **_network(family, layout, facts),
        **_tensors((leaf.shape, leaf.dtype) for leaf in weights.arrays.values()),
        **({"tensors of the original": f"{len(places):,}"} if places else {}),
        **_files(weights.files),
    }


def _network(family: families.Family, layout: str, facts: Mapping[str, Any]) -> dict[str, str]:
    titles = {"num_layers": "layers", "num_heads": "heads"}
    rows = {titles.get(key, key): _text(value) for key, value in sorted(_flat(facts).items())}
    first = ("layers", "width", "heads")
    return {
        "family": family.name,
        "layout": layout,
        "variant": family.describe(facts),
        **{key: rows[key] for key in first if key in rows},
        **{key: rows[key] for key in rows if key not in first},
    }


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a config to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, Normalization):
            inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            prefix = "" if key == "gemma" else f"{key}."
            flat |= {prefix + name: each for name, each in inner.items() if name not in resolving.FREE}
        else:
            flat[key] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, Normalization):
        shift, scale = (
            f"{numbers[0]:g}" if len(numbers) == 1 else f"{len(numbers)} numbers"
            for numbers in (value.shift, value.scale)
        )
        return f"(latent - {shift}) * {scale}"
    if isinstance(value, tuple | list):
        return (", " if any(isinstance(part, bool) for part in value) else "x").join(map(str, value))
    return str(value)


def _tensors(described: Iterable[tuple[tuple[int, ...], Any]]) -> dict[str, str]:
    described = list(described)
    counts = collections.Counter(str(np.dtype(dtype)) for _, dtype in described)
    return {
        "parameters": f"{sum(math.prod(shape) for shape, _ in described):,}",
        "tensors": f"{len(described):,}",
        "dtypes": ", ".join(f"{name} ({count:,})" for name, count in counts.most_common()),
    }


def _files(files: Iterable[pathlib.Path]) -> dict[str, str]:
    files = list(files)
    shown = ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    return {"files": f"{len(files):,}: {shown}", "bytes": f"{sum(file.stat().st_size for file in files):,}"}
