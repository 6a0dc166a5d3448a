"""Answers of TheWorld to prompts about images, with few compiled programs."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from jworld.data.conversations import batches, chat
from jworld.models.gemma3 import decoding
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.model import TheWorld
from jworld.systems.theworld import world_steps
from jworld.utils import errors

#: A user's question, or the turns of a conversation whose next turn is the answer.
Prompt = str | Sequence[chat.Turn]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of answers (`config.sample.rollout`).

    Attributes:
      max_tokens: largest number of tokens of an answer.
      prompt_multiple: prompts are padded to a multiple of this many tokens, so that few programs are compiled.
    """

    max_tokens: int = 128
    prompt_multiple: int = 64

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.prompt_multiple) < 1:
            raise ValueError("max_tokens and prompt_multiple must be at least 1")


@functools.partial(jax.jit, static_argnames=("steps", "frames"))
def prefill(model: TheWorld, batch: dict[str, jax.Array], *, steps: int, frames: int) -> decoding.State:
    """Run the prefill of right-padded prompts; the arguments are those of `answer`."""
    latents = world_steps.world_latents(model, batch["world_pixels"], frames) if frames else None
    pixels = vision_values(batch["pixel_values"]) if "pixel_values" in batch else None
    fused = model.fuse(batch["tokens"], batch["mask"], pixels, latents, batch.get("has_world"))
    parts = (fused.mask,) if fused.images is None else (fused.mask, fused.images.tokens)
    embeds, mask, *tokens = decoding.align_right(fused.embeds, *parts)
    images = dataclasses.replace(fused.images, tokens=tokens[0]) if fused.images else None
    return decoding.prefill(model.language, embeds, mask, images, capacity=mask.shape[1] + steps)


@functools.partial(jax.jit, donate_argnums=2)
def step(model: TheWorld, tokens: jax.Array, state: decoding.State) -> decoding.State:
    """Run a decode step with the tokens [B]; `state` is donated."""
    return decoding.step(model.language, tokens, state)


@functools.partial(jax.jit, static_argnames=("steps", "ends", "frames"))
def answer(
    model: TheWorld, batch: dict[str, jax.Array], *, steps: int, ends: tuple[int, ...], frames: int
) -> jax.Array:
    """Decode answers greedily: [B, steps] int32, filled up with the end token.

    Args:
      model: the model; its world is not used if `frames` is 0.
      batch: tokens and mask [B, L] of open prompts; pixel_values [B, I, S, S, 3] and world_pixels [B, W, W, 3].
      steps: largest number of tokens.
      ends: tokens that end an answer.
      frames: latent frames of the world to use: 0 for none, 1 for the image alone, at most those of training.
    """
    state = prefill(model, batch, steps=steps, frames=frames)
    return decoding.greedy(model.language, state, steps=steps, ends=ends)


def as_turns(prompt: Prompt) -> Sequence[chat.Turn]:
    """Return a prompt as turns."""
    return [chat.Turn("user", prompt)] if isinstance(prompt, str) else prompt


def ends(tokenizer: chat.ChatTokenizer) -> tuple[int, ...]:
    """Return the tokens that end an answer."""
    return tokenizer.ids[chat.EOS], tokenizer.ids[chat.END_OF_TURN]


def all_frames(model: TheWorld) -> int:
    """Return the number of latent frames of the model's world; 0 without a world."""
    return 0 if model.config.world is None else model.config.world.frames


class Prompts:
    """Preprocessing of questions about images into a batch of model inputs.

    Attributes:
      tokenizer, clip: those of the model's data.
      multiple: prompts are padded to a multiple of this many tokens.
    """

    def __init__(self, tokenizer: chat.ChatTokenizer, *, clip: batches.ClipConfig, multiple: int):
        self.tokenizer, self.clip, self.multiple = tokenizer, clip, multiple

    def __call__(self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt]) -> dict[str, jax.Array]:
        """Return tokens and mask [B, L], and with images also pixel_values and world_pixels; see `answer`.

        Raises:
          ValueError: a prompt is invalid, or has more images than the model was trained with.
        """
        if max(map(len, images)) > self.clip.images:
            raise ValueError(f"{max(map(len, images))} images, expected at most {self.clip.images}")
        encoded = [
            self.tokenizer.encode(as_turns(prompt), images=len(own), is_open=True)
            for own, prompt in zip(images, prompts, strict=True)
        ]
        length = math.ceil(max(len(one.tokens) for one in encoded) / self.multiple) * self.multiple
        batch = chat.pad(encoded, length, pad_id=self.tokenizer.ids[chat.PAD])
        del batch["labels"]
        if any(images):
            rows = [batches.model_pixels(own, self.clip) for own in images]
            batch |= {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: jnp.asarray(value) for name, value in batch.items()}


class Answers:
    """Greedy answers to batches of prompts about images: an `evaluation.benchmarks.Answer`."""

    def __init__(self, model: TheWorld, prompts: Prompts, *, frames: int | None = None):
        """Set up answers with `frames` latent frames of the world: None for all, 1 for the image alone, 0 for none."""
        self.model, self.prompts = model, prompts
        self._frames = all_frames(model) if frames is None else frames

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt], *, max_tokens: int
    ) -> list[str]:
        """Answer each prompt about its images, in at most `max_tokens` tokens."""
        tokenizer, batch = self.prompts.tokenizer, self.prompts(images, prompts)
        frames = self._frames if "world_pixels" in batch else 0
        tokens = answer(self.model, batch, steps=max_tokens, ends=ends(tokenizer), frames=frames)
        return [tokenizer.decode(row) for row in jax.device_get(tokens).tolist()]


class Session:
    """A `TextSession`: each step decodes a token, with a KV cache of fixed shape."""

    def __init__(self, model: TheWorld, prompts: Prompts, *, max_tokens: int):
        self.model, self.prompts, self.max_tokens = model, prompts, max_tokens
        self._ends = ends(prompts.tokenizer)

    def reset(self, images: Sequence[np.ndarray], prompt: str) -> None:
        """Start from images uint8 [H, W, 3] of any size, the first of which is that of the world, and a question.

        Raises:
          UserError: there are more images than the model was trained with, or the prompt is invalid.
        """
        try:
            batch = self.prompts([[PIL.Image.fromarray(image) for image in images]], [prompt])
        except ValueError as error:
            raise errors.UserError(f"--prompt is not valid for this model: {error}") from error
        frames = all_frames(self.model) if images else 0
        self._state = prefill(self.model, batch, steps=self.max_tokens, frames=frames)
        self._count, self._over = 0, False

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.prompts.tokenizer.decode(list(tokens))

    def step(self) -> int | None:
        """Return the next token of the answer; None at its end."""
        if self._over or self._count == self.max_tokens:
            return None
        token = int(jnp.argmax(self._state.logits[0]))
        self._count, self._over = self._count + 1, token in self._ends
        if self._over:
            return None
        self._state = step(self.model, jnp.array([token], jnp.int32), self._state)
        return token
