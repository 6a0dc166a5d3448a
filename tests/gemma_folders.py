"""Small Gemma-3 folders, as downloaded: weights of transformers' own classes with the shipped tokenizer."""

import pathlib
import shutil
from typing import Any

import torch

from jworld.data.conversations import chat
from jworld.utils import pretrained, resources

TOKENIZER = resources.root() / "assets" / "tokenizer"
IMAGE_TOKENS = 4
#: Values of `Gemma3TextConfig`; the scale of queries differs from the size of a head.
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "max_position_embeddings": 1024,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}


def ids() -> dict[str, int]:
    """Return the special tokens of the tokenizer."""
    return dict(chat.load(TOKENIZER, image_tokens=IMAGE_TOKENS).ids)


def model(*, vision: bool = True, seed: int = 0) -> Any:
    """Return a model with random weights, with or without a vision tower."""
    special = ids()
    text = {
        **TEXT,
        "vocab_size": chat.load(TOKENIZER, image_tokens=IMAGE_TOKENS).vocab_size,
        "bos_token_id": special[chat.BOS],
        "eos_token_id": special[chat.EOS],
        "pad_token_id": special[chat.PAD],
    }
    with pretrained.quiet() as transformers, torch.random.fork_rng():
        torch.manual_seed(seed)
        if vision:
            config = transformers.Gemma3Config(
                text_config=text,
                vision_config=VISION,
                mm_tokens_per_image=IMAGE_TOKENS,
                image_token_index=special[chat.IMAGE],
                boi_token_index=special[chat.START_OF_IMAGE],
                eoi_token_index=special[chat.END_OF_IMAGE],
            )
            made = transformers.Gemma3ForConditionalGeneration(config)
        else:
            made = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**text))
        for value in made.parameters():
            value.data = 0.15 * torch.randn_like(value)
        made.tie_weights()
    return made.eval()


def write(folder: pathlib.Path, *, vision: bool = True, seed: int = 0) -> pathlib.Path:
    """Write a model with its tokenizer as transformers saves it."""
    model(vision=vision, seed=seed).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def load(folder: pathlib.Path, kind: str = "Gemma3ForConditionalGeneration") -> Any:
    """Load a folder with a class of transformers, which must find all its tensors there and no others."""
    with pretrained.quiet() as transformers:
        loaded, report = getattr(transformers, kind).from_pretrained(
            str(folder), attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return loaded.eval()


def inputs(*, image: bool) -> dict[str, Any]:
    """Return tokens, and an image of random pixels with its tokens in the middle of them."""
    special, generator = ids(), torch.Generator().manual_seed(3)
    words = torch.randint(20, 400, (1, 14), generator=generator)
    if not image:
        return {"input_ids": words}
    tokens = torch.cat([words[:, :3], torch.full((1, IMAGE_TOKENS), special[chat.IMAGE]), words[:, 3:]], dim=1)
    side = VISION["image_size"]
    return {
        "input_ids": tokens,
        "token_type_ids": (tokens == special[chat.IMAGE]).long(),
        "pixel_values": torch.randn(1, 3, side, side, generator=generator),
    }
