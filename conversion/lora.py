"""Keys of LoRA adapters in peft's format, within a model's checkpoint or in a separate file."""

import re
from collections.abc import Iterable, Iterator, Sequence

from conversion.engine import TRANSPOSED, Rule

#: Default name of an adapter in peft.
DEFAULT = "default"


def rules(table: Sequence[Rule], paths: Iterable[str], *, adapter: str = DEFAULT) -> tuple[Rule, ...]:
    """Return a model's key table with its adapters; the base tensors of an adapted layer are below `base_layer`.

    Args:
      table: key table of the model without adapters.
      paths: paths of the adapted model's parameters.
      adapter: name of the adapter in the keys; empty if the keys have none.
    """
    table, adapted = list(table), _adapted(table, paths)
    return (*(_wrapped(rule) if rule in adapted else rule for rule in table), *_pairs(adapted, adapter))


def adapter_rules(
    table: Sequence[Rule], paths: Iterable[str], *, prefix: str = "", adapter: str = ""
) -> tuple[Rule, ...]:
    """Return the key table of a separate adapter file; its names are those of `rules` after `prefix`."""
    pairs = _pairs(_adapted(table, paths), adapter)
    return tuple(Rule(prefix + rule.source, rule.target, rule.layout) for rule in pairs)


def _adapted(table: Iterable[Rule], paths: Iterable[str]) -> list[Rule]:
    """Select the rules of kernels and biases of layers with an adapter."""
    layers = {path.removesuffix("/lora/a") for path in paths if path.endswith("/lora/a")}

    def has_adapter(rule: Rule) -> bool:
        layer, _, kind = rule.target.rpartition("/")
        template = re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(layer))
        return kind in ("kernel", "bias") and any(re.fullmatch(template, path) for path in layers)

    return [rule for rule in table if has_adapter(rule)]


def _wrapped(rule: Rule) -> Rule:
    layer, _, kind = rule.source.rpartition(".")
    return Rule(f"{layer}.base_layer.{kind}", rule.target, rule.layout, rule.part)


def _pairs(adapted: Iterable[Rule], adapter: str) -> Iterator[Rule]:
    """Yield the rules of A [rank, in] and B [out, rank] of each layer."""
    name = f".{adapter}" if adapter else ""
    for rule in adapted:
        if rule.target.endswith("/kernel"):
            source, target = rule.source.rpartition(".")[0], rule.target.removesuffix("kernel") + "lora"
            yield Rule(f"{source}.lora_A{name}.weight", f"{target}/a", TRANSPOSED)
            yield Rule(f"{source}.lora_B{name}.weight", f"{target}/b", TRANSPOSED)
