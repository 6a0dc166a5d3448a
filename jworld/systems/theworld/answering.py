"""Answers of TheWorld: prompts and images in, tokens out, in compiled programs of few shapes."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How answers are made (`config.sample.rollout`).

    Attributes:
      max_tokens: tokens of an answer, at most.
      prompt_multiple: prompts are padded to a multiple of this many tokens, so that few programs are compiled.
    """

    max_tokens: int = 128
    prompt_multiple: int = 64

    def __post_init__(self) -> None:
        if min(self.max_tokens, self.prompt_multiple) < 1:
            raise ValueError("max_tokens and prompt_multiple must be at least 1")


@functools.partial(jax.jit, static_argnames=("steps", "frames"))
def prefill(model: TheWorld, batch: dict[str, jax.Array], *, steps: int, frames: int) -> decoding.State:
    """Read prompts that are padded behind; see `answer`."""
    latents = world_steps.world_latents(model, batch["world_pixels"], frames) if frames else None
    pixels = vision_values(batch["pixel_values"]) if "pixel_values" in batch else None
    fused = model.fuse(batch["tokens"], batch["mask"], pixels, latents)
    parts = (fused.mask,) if fused.images is None else (fused.mask, fused.images.tokens)
    embeds, mask, *tokens = decoding.align_right(fused.embeds, *parts)
    images = dataclasses.replace(fused.images, tokens=tokens[0]) if fused.images else None
    return decoding.prefill(model.language, embeds, mask, images, capacity=mask.shape[1] + steps)


@functools.partial(jax.jit, donate_argnums=2)
def step(model: TheWorld, tokens: jax.Array, state: decoding.State) -> decoding.State:
    """The state after the tokens [B]; the given one is consumed."""
    return decoding.step(model.language, tokens, state)


@functools.partial(jax.jit, static_argnames=("steps", "ends", "frames"))
def answer(
    model: TheWorld, batch: dict[str, jax.Array], *, steps: int, ends: tuple[int, ...], frames: int
) -> jax.Array:
    """The likeliest answers, [B, steps] int32; behind an end token there are more of it.

    Args:
      model: its world may be left unused.
      batch: tokens and mask [B, L] of open prompts; pixel_values [B, I, S, S, 3] and world_pixels [B, W, W, 3].
      steps: tokens, at most.
      ends: tokens that end an answer.
      frames: of the world that the model reads: 0 for none, 1 for the image alone, or all that it was trained with.
    """
    state = prefill(model, batch, steps=steps, frames=frames)
    return decoding.greedy(model.language, state, steps=steps, ends=ends)


def ends(tokenizer: chat.ChatTokenizer) -> tuple[int, ...]:
    """The tokens that end an answer."""
    return tokenizer.ids[chat.EOS], tokenizer.ids[chat.END_OF_TURN]


def all_frames(model: TheWorld) -> int:
    """Latent frames of the model's world; 0 without a world."""
    return 0 if model.config.world is None else model.config.world.frames


class Prompts:
    """Questions about images as a batch that the model reads.

    Attributes:
      tokenizer, clip: of the model's data.
      multiple: prompts are padded to a multiple of this many tokens.
    """

    def __init__(self, tokenizer: chat.ChatTokenizer, *, clip: batches.ClipConfig, multiple: int):
        self.tokenizer, self.clip, self.multiple = tokenizer, clip, multiple

    def __call__(self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[str]) -> dict[str, jax.Array]:
        """tokens and mask [B, L], and where there are images pixel_values and world_pixels, see `answer`.

        Raises:
          ValueError: a prompt cannot be asked, or has more images than the model was trained with.
        """
        if max(map(len, images)) > self.clip.images:
            raise ValueError(f"{max(map(len, images))} pictures are given, expected {self.clip.images} at most")
        encoded = [
            self.tokenizer.encode([chat.Turn("user", prompt)], images=len(seen), is_open=True)
            for seen, prompt in zip(images, prompts, strict=True)
        ]
        length = math.ceil(max(len(one.tokens) for one in encoded) / self.multiple) * self.multiple
        batch = chat.pad(encoded, length, pad_id=self.tokenizer.ids[chat.PAD])
        del batch["labels"]
        if any(images):
            rows = [batches.model_pixels(seen, self.clip) for seen in images]
            batch |= {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: jnp.asarray(value) for name, value in batch.items()}


class Answers:
    """Answers prompts about images, a batch at a time, greedily: an `evaluation.benchmarks.Answer`."""

    def __init__(self, model: TheWorld, prompts: Prompts, *, frames: int | None = None):
        """`frames` of the world: all, or 1 for the image alone, or 0 to leave it out, as if the model had none."""
        self.model, self.prompts = model, prompts
        self._frames = all_frames(model) if frames is None else frames

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[str], *, max_tokens: int
    ) -> list[str]:
        """One text of at most `max_tokens` tokens for each of the prompts and its images."""
        tokenizer, batch = self.prompts.tokenizer, self.prompts(images, prompts)
        frames = self._frames if "world_pixels" in batch else 0
        tokens = answer(self.model, batch, steps=max_tokens, ends=ends(tokenizer), frames=frames)
        return [tokenizer.decode(row) for row in jax.device_get(tokens).tolist()]


class Session:
    """One conversation: images and a prompt in, then a token per step, until the answer ends.

    Every token costs the same: keys and values of all tokens before it are kept, in arrays of fixed shapes.
    """

    def __init__(self, model: TheWorld, prompts: Prompts, *, max_tokens: int):
        self.model, self.prompts, self.max_tokens = model, prompts, max_tokens
        self._ends = ends(prompts.tokenizer)

    def reset(self, images: Sequence[np.ndarray], prompt: str) -> None:
        """Start from pictures uint8 [H, W, 3] of any size, the first of which is the world's, and a question.

        Raises:
          UserError: there are more pictures than the model was trained with, or the prompt cannot be asked.
        """
        try:
            batch = self.prompts([[PIL.Image.fromarray(image) for image in images]], [prompt])
        except ValueError as error:
            raise errors.UserError(f"--prompt cannot be asked: {error}") from error
        frames = all_frames(self.model) if images else 0
        self._state = prefill(self.model, batch, steps=self.max_tokens, frames=frames)
        self._count, self._over = 0, False

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.prompts.tokenizer.decode(list(tokens))

    def step(self) -> int | None:
        """The next token of the answer; None when it is over."""
        if self._over or self._count == self.max_tokens:
            return None
        token = int(jnp.argmax(self._state.logits[0]))
        self._count, self._over = self._count + 1, token in self._ends
        if self._over:
            return None
        self._state = step(self.model, jnp.array([token], jnp.int32), self._state)
        return token
