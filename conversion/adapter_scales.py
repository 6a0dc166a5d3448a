"""The factor of every adapter (LoRA): alpha / rank or alpha / sqrt(rank), from all places that state it.

peft writes a file adapter_config.json, diffusers the same values into the header of its file, and kohya's programs a
tensor `.alpha` per layer. What a file does not state is an assumption, and messages say so.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from conversion import messages
from jworld.utils import errors

#: Entry of a safetensors header, written by diffusers.
HEADER = "lora_adapter_metadata"
#: Prefix of peft's names, which its patterns do not have.
PEFT_PREFIX = "base_model.model."

# Initializations after which the base weights are as before. All others of peft change them.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Settings of peft with another result than W + factor B A, which must be unset.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "adapters of single parameters",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained rows of an embedding",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Factor of one adapter: alpha / rank, or alpha / sqrt(rank) for rank-stabilized adapters (`root`)."""

    alpha: float
    rank: int
    root: bool = False

    @property
    def factor(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of peft's LoraConfig that decide the factor, from a file or a header.

    Attributes:
      where: the file, for messages.
      prefix: prefix of the names that the settings are for; other names have no factor here.
      rank, alpha: values for layers without a pattern.
      ranks, alphas: regular expression of the end of a layer's name -> its own value; the first that fits counts.
      root: use alpha / sqrt(rank).
    """

    where: str
    prefix: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    root: bool

    def scale(self, module: str) -> Scale | None:
        """Return the factor of a layer, named as in the file, or None if the settings are for other names."""
        if not module.startswith(self.prefix):
            return None
        name = module.removeprefix(self.prefix).removeprefix(PEFT_PREFIX)
        return Scale(_of(self.alphas, name, self.alpha), _of(self.ranks, name, self.rank), self.root)


def _of(patterns: Mapping[str, Any], name: str, usual: Any) -> Any:
    """Return the value of the first pattern that matches the end of a name, as peft chooses it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), usual)


def read_config(values: Mapping[str, Any], where: str, prefix: str = "") -> Config:
    """Check the settings of peft's LoraConfig.

    Raises:
      UserError: one message with every setting that is of another method, or has no valid value.
    """
    wrong = [f"{key} is set, which is {title}" for key, title in _OTHER_METHODS.items() if values.get(key)]
    wrong += [
        f"{key} is set, which is unknown here"
        for key, value in values.items()
        if key.startswith("use_") and value and key not in (*_OTHER_METHODS, "use_rslora")
    ]
    kind, initial = values.get("peft_type", "LORA"), values.get("init_lora_weights", True)
    if kind not in ("LORA", None):
        wrong.append(f"peft_type is {messages.shown(kind)}, expected 'LORA'")
    if not any(initial is each or (isinstance(initial, str) and initial == each) for each in _INITS):
        wrong.append(
            f"init_lora_weights is {messages.shown(initial)}, which changes the base weights: save the adapters with "
            "path_initial_model_for_weight_conversion of peft"
        )
    if wrong:
        raise errors.UserError(f"{where}: these adapters cannot be merged: {'; '.join(wrong)}; expected plain LoRA")
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
    ranks, alphas = values.get("rank_pattern") or {}, values.get("alpha_pattern") or {}
    for key, number, patterns in (("r", rank, ranks), ("lora_alpha", alpha, alphas)):
        name = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]
        if not isinstance(patterns, dict):
            raise errors.UserError(f"{where}: {name} is {messages.shown(patterns)}, expected names and numbers")
        for value in (number, *patterns.values()):
            if not _is_number(value) or (key == "r" and (type(value) is not int or value < 1)):
                raise errors.UserError(f"{where}: {key} is {messages.shown(value)}, expected a positive number")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise errors.UserError(
                    f"{where}: {name} has {messages.shown(pattern)}, which is not a regular expression ({error})"
                ) from error
    return Config(where, prefix, rank, float(alpha), ranks, alphas, bool(values.get("use_rslora", False)))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_header(metadata: Mapping[str, str], where: str, prefixes: Sequence[str]) -> list[Config]:
    """Return the settings in a file's header, for names with each of the prefixes; [] without the entry `HEADER`.

    Keys in the header begin with the name of a pipeline's part, such as "transformer.", or with nothing.
    """
    if HEADER not in metadata:
        return []
    where = f"{where} (its header, {HEADER})"
    try:
        values = json.loads(metadata[HEADER])
    except (ValueError, RecursionError) as error:
        raise errors.UserError(f"{where}: not valid JSON ({error}): save the adapters again") from error
    if not isinstance(values, dict):
        raise errors.UserError(f"{where}: holds a {type(values).__name__}, expected an object with keys")
    if "lora_alpha" in values or "r" in values:
        return [read_config(values, where)]
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)} for prefix in prefixes
    }
    return [read_config(part, where, prefix) for prefix, part in parts.items() if part]


class Scales:
    """Every statement about the factors of a file's adapters, which must agree.

    Attributes:
      origins: the statements that were used.
      mistakes: contradictions found so far.
    """

    def __init__(self, configs: Sequence[Config], alphas: Mapping[str, float], option: float | None) -> None:
        """Collect the statements.

        Args:
          configs: settings of adapter_config.json and of the header.
          alphas: layer -> its tensor `.alpha`.
          option: the user's alpha, which holds where nothing else is stated; None without one.
        """
        self._configs, self._alphas, self._option = configs, alphas, option
        self.origins: dict[str, None] = {}
        self.mistakes: list[str] = []

    def of(self, module: str, rank: int) -> Scale:
        """Return the factor of an adapter of this rank; 1 if nothing states it."""
        stated = [(config.where, scale) for config in self._configs if (scale := config.scale(module)) is not None]
        if module in self._alphas:
            stated.append(("its tensor .alpha", Scale(self._alphas[module], rank)))
        for where, scale in stated:
            if scale.rank != rank:
                self.mistakes.append(f"{module} has rank {rank}, but {scale.rank} by {where}")
            elif not math.isclose(scale.factor, stated[0][1].factor, rel_tol=1e-6):
                first, other = stated[0]
                self.mistakes.append(
                    f"{module} has the factor {other.factor:g} by {first}, but {scale.factor:g} by {where}"
                )
        if stated:
            where, scale = stated[0]
            if self._option is not None and not math.isclose(self._option, scale.alpha, rel_tol=1e-6):
                self.mistakes.append(
                    f"{module} has alpha {scale.alpha:g} by {where}, but {self._option:g} by --lora-alpha"
                )
        else:
            where = "" if self._option is None else "--lora-alpha"
            scale = Scale(float(rank) if self._option is None else self._option, rank)
        self.origins[where] = None
        return scale
