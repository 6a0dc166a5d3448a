"""ByT5 with the Glyph-SDXL-v2 weights, an encoder of the quoted texts of a prompt that the video should show.

Its folder is the originals' `text_encoder`, with byt5-small/config.json and Glyph-SDXL-v2/{assets, checkpoints}.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jworld.encoders import base, sources, torch_models
from jworld.utils import pickles, pretrained
from jworld.utils.errors import UserError

FAMILY = "byt5-glyph"
TOKENS = 256
CONFIG = "byt5-small/config.json"
COLORS = "Glyph-SDXL-v2/assets/color_idx.json"
FONTS = "Glyph-SDXL-v2/assets/multilingual_10-lang_idx.json"
WEIGHTS = "Glyph-SDXL-v2/checkpoints/byt5_model.pt"
WEIGHTS_PREFIX = "module.text_tower.encoder."
_FIX = (
    "put google/byt5-small into byt5-small/ and Glyph-SDXL-v2 (modelscope.cn, AI-ModelScope/Glyph-SDXL-v2) into "
    "Glyph-SDXL-v2/ of the folder of byt5-glyph"
)
# As in inference; WorldPlay's preprocessor finds only straight quotes.
_QUOTED = re.compile('"(.*?)"|“(.*?)”')


def quoted_texts(prompt: str) -> list[str]:
    """Return the distinct parts of a prompt in straight or curly double quotes on one line, in order."""
    return list(dict.fromkeys(straight or curly for straight, curly in _QUOTED.findall(prompt)))


def format_texts(texts: Sequence[str]) -> str:
    """Format texts as input of ByT5, without colors and fonts as in the published systems."""
    return "".join(f'Text "{text}". ' for text in texts)


def special_tokens(colors: dict[str, int], fonts: dict[str, int]) -> list[str]:
    """Return the added tokens in the order of their embeddings: colors by number, then fonts by language."""
    return [
        *(f"<color-{index}>" for index in range(len(colors))),
        *(f"<{name[:2]}-font-{index}>" for name, index in fonts.items()),
    ]


class Glyph(base.TextEncoder):
    """Encoder of byT5-small; a prompt without quotes has no rows."""

    def __init__(self, source: str, options: torch_models.Options) -> None:
        self._batch_size = options.batch_size
        dtype, self._device = options.dtype or "float32", torch_models.resolve_device(options)
        folder = _local_folder(source)
        sources.check_model_type(folder / "byt5-small", expected=("t5",), kind=FAMILY)
        self._tokenizer = pretrained.library().ByT5Tokenizer()
        colors, fonts = _read_index(folder / COLORS), _read_index(folder / FONTS)
        self._tokenizer.add_tokens(special_tokens(colors, fonts), special_tokens=True)
        self._model = _load_encoder(folder, rows=len(self._tokenizer), dtype=dtype).to(self._device)
        self.entry = base.Entry(
            kind=FAMILY,
            family=FAMILY,
            source=source,
            hash=sources.hash_files(folder, (CONFIG, COLORS, FONTS, WEIGHTS)),
            dtype=dtype,
            tokens=TOKENS,
            dim=self._model.config.d_model,
        )

    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        torch = torch_models.require("torch")
        states = [np.zeros((0, self.dim), np.float32) for _ in prompts]
        texts = [(i, format_texts(quoted)) for i, prompt in enumerate(prompts) if (quoted := quoted_texts(prompt))]
        for batch in torch_models.batches(texts, self._batch_size):
            tokens = self._tokenizer(
                [formatted for _, formatted in batch],
                padding="longest",
                max_length=TOKENS,
                truncation=True,
                return_tensors="pt",
            ).to(self._device)
            mask = tokens["attention_mask"]
            with torch.inference_mode():
                hidden = self._model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            for (i, _), rows in zip(batch, torch_models.valid_rows(hidden, mask.sum(1).tolist()), strict=True):
                states[i] = rows
        return states


def _local_folder(source: str) -> pathlib.Path:
    """Find the local folder; there is no hub id, since Glyph-SDXL-v2 and byT5-small have separate repositories."""
    folder = sources.part(pathlib.Path(source).expanduser(), "text_encoder")
    for name in (CONFIG, COLORS, FONTS, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is absent: {_FIX}")
    return folder


def _read_index(path: pathlib.Path) -> dict[str, int]:
    """Read a JSON object {name: number}."""
    index = sources.read_json(path, fix=_FIX)
    for name, number in index.items():
        if type(number) is not int:
            raise UserError(f"{path}: '{name}' is {json.dumps(number)}, expected a whole number: {_FIX}")
    return index


def _load_encoder(folder: pathlib.Path, *, rows: int, dtype: str) -> Any:
    """Build the encoder of byt5-small's config with `rows` embeddings, and load every weight from the checkpoint."""
    torch, transformers = torch_models.require("torch"), pretrained.library()
    state = _read_checkpoint(folder / WEIGHTS)
    config = transformers.T5Config.from_pretrained(folder / "byt5-small", vocab_size=rows)
    encoder = transformers.T5EncoderModel(config).get_encoder()
    expected = encoder.state_dict()
    torch_models.check_names(
        folder / WEIGHTS,
        missing=[name for name in expected if name not in state],
        unknown=[name for name in state if name not in expected],
    )
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"{folder / WEIGHTS}: {name} is {list(state[name].shape)}, expected {list(value.shape)} from {CONFIG} "
                f"and {rows} tokens: {_FIX}"
            )
    encoder.load_state_dict(state)
    return encoder.requires_grad_(False).eval().to(getattr(torch, dtype))


def _read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """Read the encoder's weights, by name within the encoder."""
    checkpoint = pickles.load_torch(path, fix=_FIX)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, expected a dict of weights: {_FIX}")
    if "state_dict" not in checkpoint:
        return checkpoint
    return {
        name.removeprefix(WEIGHTS_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(WEIGHTS_PREFIX)
    }
