"""Export of a run's adapters (LoRA) alone, to a folder of peft or to one file as diffusers and others read it."""

import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import rich.console

from conversion import adapter_files, adapter_scales, engine, exporting, families, folders, outputs, torch_files
from conversion.engine import Rule, TensorPlacement
from jworld.utils import errors

_DOWN, _UP = "/lora/a", "/lora/b"


def export_adapters(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    layout: str | None = None,
    dtype: str | None = None,
    step: int | None = None,
    overwrite: bool = False,
    console: rich.console.Console | None = None,
) -> exporting.Summary:
    """Write only what a run with adapters trained; arguments as in `exporting.export_weights`.

    A folder, or a file with peft's name, has peft's layout with adapter_config.json. Any other file has alpha / rank
    multiplied into the second matrix, and the same settings in its header: programs that read no alpha are right, too.
    Other parameters that the run trained, such as a projection, are whole tensors (peft's `modules_to_save`).

    Raises:
      UserError: the run has no adapters, the other program has no linear layer for one of them, or they are damaged or
        not finite; `output` exists or cannot be written. No partial output remains.
    """
    alone = output.suffix in outputs.FILES
    if output.suffix in torch_files.SUFFIXES:
        raise errors.UserError(f"--output {output}: adapters are written as .safetensors: choose another name")
    in_peft = not alone or output.name == adapter_files.NAMES[0]
    weights = folders.Adapters(path, step, folded=not in_peft)
    keys = exporting.choose_layout(weights, output, layout)
    keys = weights.family.layouts[keys.adapter_layout or keys.name]
    prefix = adapter_scales.PEFT_PREFIX if in_peft else keys.adapter_prefix
    modules, tensors = _tensors(weights, keys, prefix, dtype)
    whole = _whole(weights, keys, prefix, dtype)
    rank = min(leaf.shape[-1] for name, leaf in weights.arrays.items() if name.endswith(_DOWN))
    settings = _settings(rank, weights.config.model.lora.alpha if in_peft else rank, modules)
    if whole:
        settings["modules_to_save"] = sorted({_layer(tensor.name.removeprefix(prefix)) for tensor in whole})
    tensors += whole
    names = [adapter_files.NAMES[0] if not alone else output.name, *([adapter_files.CONFIG_NAME] if in_peft else [])]
    with outputs.destination(output, names, exporting.is_export, overwrite=overwrite) as (folder, files):
        metadata = {"format": "pt"}
        if in_peft:
            (folder / names[1]).write_text(json.dumps(settings, indent=2) + "\n")
        else:
            header = {f"{prefix}{key}": value for key, value in settings.items()}
            metadata[adapter_scales.HEADER] = json.dumps(header, sort_keys=True)
        exporting.write(weights, {folder / names[0]: tensors}, console, metadata)
    sizes = [math.prod(tensor.place.source_shape) for tensor in tensors]
    return exporting.Summary(files, keys, len(tensors), sum(sizes), sum(tensor.size for tensor in tensors), [])


def _settings(rank: int, alpha: float, modules: list[str]) -> dict[str, Any]:
    """Return the settings of peft's LoraConfig."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": "|".join(modules),
    }


def _tensors(
    weights: folders.Adapters, keys: families.KeyLayout, prefix: str, dtype: str | None
) -> tuple[list[str], list[exporting.Tensor]]:
    """Return regular expressions of the layers' names, and the tensors to write."""
    layers = {name.removesuffix(_DOWN): leaf for name, leaf in weights.arrays.items() if name.endswith(_DOWN)}
    rules = keys.rules(weights.target.model_config)
    # The names of the layers in the other program's class, without the prefix of its files.
    beginning = keys.prefixes[0] if keys.prefixes else ""
    modules, tensors, wrong = [], [], []
    for path in layers:
        kernels = [rule for rule in rules if _numbers(rule, f"{path}/kernel") is not None]
        if not kernels or any(not _is_linear(rule) for rule in kernels):
            sources = ", ".join(rule.source for rule in kernels) or "no tensor"
            wrong.append(f"{path} ({sources})")
            continue
        for rule in kernels:
            template = rule.source.removeprefix(beginning).removesuffix(".weight")
            modules.append(_pattern(template, rule, f"{path}/kernel"))
            for name, place in _places(rule, path, weights, template):
                chosen = np.dtype(dtype or weights.arrays[place.path].dtype)
                tensors.append(exporting.Tensor(prefix + name, place, chosen))
    if wrong:
        raise errors.UserError(
            f"{weights.path}: adapters of {'; '.join(wrong)} have no linear layer in {keys.title}: leave --adapters "
            "out to export merged weights"
        )
    return sorted(set(modules)), sorted(tensors, key=lambda tensor: exporting.natural(tensor.name))


def _whole(
    weights: folders.Adapters, keys: families.KeyLayout, prefix: str, dtype: str | None
) -> list[exporting.Tensor]:
    """Return the tensors of all parameters that are not parts of adapters."""
    shapes = {path: leaf.shape for path, leaf in weights.arrays.items() if not path.endswith((_DOWN, _UP))}
    places = engine.plan(shapes, keys.rules(weights.target.model_config))
    listed = engine.problems({name: place.source_shape for name, place in places.items()}, shapes, places)
    engine.check(listed, str(weights.path), "leave --adapters out to export merged weights, or choose another --layout")
    return [
        exporting.Tensor(prefix + name, place, np.dtype(dtype or weights.arrays[place.path].dtype))
        for name, place in sorted(places.items(), key=lambda item: exporting.natural(item[0]))
    ]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _numbers(rule: Rule, path: str) -> dict[str, str] | None:
    """Return the numbers in the path of a rule's parameter; None for the path of another parameter."""
    target = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(rule.target))
    match = re.fullmatch(target, path)
    return None if match is None else match.groupdict()


def _pattern(template: str, rule: Rule, path: str) -> str:
    """Return a regular expression of exactly the layers that an adapter of a parameter, maybe a stack, changes."""
    numbers = _numbers(rule, path) or {}
    return re.sub(r"\\\{(\w+)\\\}", lambda match: numbers.get(match[1], r"\d+"), re.escape(template))


def _is_linear(rule: Rule) -> bool:
    return rule.layout.axes == engine.TRANSPOSED.axes and rule.source.endswith(".weight")


def _places(rule: Rule, path: str, weights: folders.Adapters, template: str) -> list[tuple[str, TensorPlacement]]:
    """Return the names and placements of A [rank, in] and B [out, rank] of a layer, or of each layer of a stack."""
    # A is the same for all parts of a joined matrix; B has a part for each.
    down = Rule(f"{template}.lora_A.weight", _target(rule, _DOWN), engine.TRANSPOSED)
    up = Rule(f"{template}.lora_B.weight", _target(rule, _UP), rule.layout, rule.part)
    shapes = {f"{path}{ending}": weights.arrays[f"{path}{ending}"].shape for ending in (_DOWN, _UP)}
    return list(engine.plan(shapes, [down, up]).items())


def _target(rule: Rule, ending: str) -> str:
    return rule.target.removesuffix("/kernel") + ending
