"""T5 text encoders with the two padding rules of the published systems.

The Matrix pads every prompt without an attention mask, so padding is attended to and part of the states.
Cosmos-Predict2 masks padding. Both use the last hidden state.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jworld.encoders import base, sources, torch_models
from jworld.utils import pretrained

FAMILY = "t5"
_PARTS = ("text_encoder", "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Padding rule of a system.

    Attributes:
      kind: name of the encoder.
      tokens: maximum number of tokens of a prompt, including the final one.
      keeps_padding: whether padding is attended to and part of the states.
    """

    kind: str
    tokens: int
    keeps_padding: bool


# T5-v1.1-XXL of CogVideoX-2B.
MATRIX = Rule(kind="t5-matrix", tokens=226, keeps_padding=True)
# google-t5/t5-11b.
COSMOS = Rule(kind="t5-cosmos", tokens=512, keeps_padding=False)


class T5(base.TextEncoder):
    """Encoder of a T5 model, from a flat folder or from a pipeline with text_encoder/ and tokenizer/."""

    def __init__(self, source: str, rule: Rule, options: torch_models.Options) -> None:
        self._rule = rule
        self._batch_size = options.batch_size
        dtype, self._device = options.dtype or "bfloat16", torch_models.resolve_device(options)
        folder = sources.open_folder(source, parts=_PARTS)
        weights = sources.part(folder, "text_encoder")
        sources.check_model_type(weights, expected=("t5",), kind=rule.kind)
        self._tokenizer = pretrained.load_tokenizer(sources.part(folder, "tokenizer"))
        self._model = torch_models.load_model(
            "T5EncoderModel", weights, dtype=dtype, device=self._device, unneeded=r"decoder\.|lm_head\."
        )
        self.entry = base.Entry(
            kind=rule.kind,
            family=FAMILY,
            source=source,
            hash=sources.fingerprint(folder, parts=_PARTS),
            dtype=dtype,
            tokens=rule.tokens,
            dim=self._model.config.d_model,
        )

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        torch = torch_models.require("torch")
        states: list[np.ndarray] = []
        for batch in torch_models.batches(prompts, self._batch_size):
            tokens = self._tokenizer(
                list(batch),
                # Masked padding has no effect, so the longest prompt of the batch sets the length.
                padding="max_length" if self._rule.keeps_padding else "longest",
                max_length=self._rule.tokens,
                truncation=True,
                return_tensors="pt",
            ).to(self._device)
            mask = None if self._rule.keeps_padding else tokens["attention_mask"]
            with torch.inference_mode():
                hidden = self._model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            lengths = [self._rule.tokens] * len(batch) if mask is None else mask.sum(1).tolist()
            states += torch_models.valid_rows(hidden, lengths)
        return states
