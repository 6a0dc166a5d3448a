"""Qwen2.5-VL text encoder of HunyuanVideo-1.5 and WorldPlay.

The prompt is put into a chat template; the states are those of an inner layer, without the rows before the prompt. Only
the language model is loaded, from a folder of the whole model or of the language model.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jworld.encoders import base, sources, torch_models
from jworld.utils import pretrained
from jworld.utils.errors import UserError

FAMILY = "qwen2.5-vl"
TOKENS = 1000
# Index of the layer: the last state (-1) is after the final norm; this one is two layers earlier, without a norm.
HIDDEN_STATE = -3

# The published system prompt for videos (`hyvideo/models/text_encoders`). Its source has indented continuation lines,
# and the model was trained with that indentation.
_GAP = " " * 9
SYSTEM_PROMPT = _GAP.join(
    (
        "You are a helpful assistant. Describe the video by detailing the following aspects:",
        "1. The main content and theme of the video.",
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
        "4. background environment, light, style and atmosphere.",
        "5. camera angles, movements, and transitions used in the video.",
    )
)
CHAT_START = "<|im_start|>"
USER_MARKER = f"{CHAT_START}user\n"


def chat(prompt: str) -> str:
    """Format a prompt in the model's chat format; the empty prompt becomes one space."""
    return (
        f"{CHAT_START}system\n{SYSTEM_PROMPT}<|im_end|>\n"
        f"{USER_MARKER}{prompt or ' '}<|im_end|>\n"
        f"{CHAT_START}assistant\n"
    )


class Qwen(base.TextEncoder):
    """Language model of Qwen2.5-VL-7B-Instruct."""

    def __init__(self, source: str, options: torch_models.Options) -> None:
        self._batch_size = options.batch_size
        dtype, self._device = options.dtype or "float16", torch_models.resolve_device(options)
        folder = sources.open_folder(source)
        sources.check_model_type(folder, expected=("qwen2_5_vl", "qwen2_5_vl_text"), kind=FAMILY)
        self._tokenizer = pretrained.load_tokenizer(folder)
        self._model = torch_models.load_model(
            "Qwen2_5_VLTextModel",
            folder,
            dtype=dtype,
            device=self._device,
            unneeded=r"(model\.)?visual\.|lm_head\.",
            # Names in newer files; the class itself handles "model.", the prefix of the published files.
            key_mapping={r"^(model\.)?language_model\.": ""},
        )
        self._start = _find_start(self._tokenizer, folder)
        self.entry = base.Entry(
            kind=FAMILY,
            family=FAMILY,
            source=source,
            hash=sources.fingerprint(folder),
            dtype=dtype,
            tokens=TOKENS,
            dim=self._model.config.hidden_size,
        )

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Encode prompts; rows start at the prompt and include the tokens that end the chat, if they fit."""
        torch = torch_models.require("torch")
        states: list[np.ndarray] = []
        for batch in torch_models.batches(prompts, self._batch_size):
            tokens = self._tokenizer(
                [chat(prompt) for prompt in batch],
                # A causal model's states do not depend on padding at the end, so the longest prompt sets the length.
                padding="longest",
                max_length=self._start + TOKENS,
                truncation=True,
                add_special_tokens=False,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                output = self._model(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    output_hidden_states=True,
                    use_cache=False,
                )
            lengths = tokens["attention_mask"].sum(1).tolist()
            states += torch_models.valid_rows(output.hidden_states[HIDDEN_STATE], lengths, start=self._start)
        return states


def _find_start(tokenizer: Any, folder: pathlib.Path) -> int:
    """Return the index of the first token of the prompt in a chat."""
    ids, marker, start = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (chat(""), USER_MARKER, CHAT_START)
    )
    ends = [end for end in range(len(marker), len(ids)) if ids[end - len(marker) : end] == marker]
    if len(start) != 1 or not ends:
        raise UserError(
            f"tokenizer in {folder} makes {len(start)} tokens of {CHAT_START}, expected 1 that also occurs in a chat: "
            "give the folder of Qwen2.5-VL"
        )
    return ends[0]
