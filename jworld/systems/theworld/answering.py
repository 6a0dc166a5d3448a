"""Answers of TheWorld to prompts about images, with few compiled programs."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from jworld.data.conversations import batches, chat
from jworld.models.gemma3 import decoding, sampling
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.model import TheWorld
from jworld.parallel.programs import Program
from jworld.systems import asking
from jworld.systems.theworld import objective, world_steps
from jworld.utils import errors, ranges

#: A user's question, or the turns of a conversation whose next turn is the answer.
Prompt = str | Sequence[chat.Turn]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of answers (`config.sample.rollout`).

    Attributes:
      max_tokens, temperature, top_k, top_p, stop: see `asking.Sampling`.
      prompt_multiple: prompts are padded to a multiple of this many tokens, so that few programs are compiled.
    """

    max_tokens: ranges.Size = 128
    temperature: Annotated[float, ranges.Range(0, 100)] = 0.0
    top_k: ranges.CountOrZero = 0
    top_p: ranges.ShareAboveZero = 1.0
    stop: tuple[str, ...] = ()
    prompt_multiple: Annotated[int, ranges.Range(1, 65536)] = 64

    def __post_init__(self) -> None:
        ranges.check(self)
        self.sampling()

    def sampling(self, seed: int = 0) -> asking.Sampling:
        """Return how answers are drawn with a seed."""
        names = [field.name for field in dataclasses.fields(asking.Sampling) if field.name != "seed"]
        return asking.Sampling(seed=seed, **{name: getattr(self, name) for name in names})


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
    model: TheWorld,
    batch: dict[str, jax.Array],
    sampler: sampling.Sampler | None = None,
    *,
    steps: int,
    ends: tuple[int, ...],
    frames: int,
) -> jax.Array:
    """Decode answers: [B, steps] int32, filled up with the end token.

    Args:
      model: the model; its world is not used if `frames` is 0.
      batch: tokens and mask [B, L] of open prompts; pixel_values [B, I, S, S, 3] and world_pixels [B, W, W, 3].
      sampler: how tokens are drawn; None for the most likely ones.
      steps: largest number of tokens.
      ends: tokens that end an answer.
      frames: latent frames of the world to use: 0 for none, 1 for the image alone, at most those of training.
    """
    state = prefill(model, batch, steps=steps, frames=frames)
    return decoding.generate(model.language, state, steps=steps, ends=ends, sampler=sampler)


@jax.jit
def choose(logits: jax.Array, sampler: sampling.Sampler | None, number: jax.Array) -> jax.Array:
    """Choose the token `number` of answers, see `sampling.choose`."""
    return sampling.choose(logits, sampler, number)


def make_sampler(chosen: Sequence[asking.Sampling]) -> sampling.Sampler | None:
    """Return the sampler of a batch; None if all rows take the most likely token."""
    if not any(one.temperature for one in chosen):
        return None
    return sampling.Sampler(
        temperature=jnp.array([one.temperature for one in chosen], jnp.float32),
        top_k=jnp.array([one.top_k for one in chosen], jnp.int32),
        top_p=jnp.array([one.top_p for one in chosen], jnp.float32),
        keys=jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(
            jnp.array([one.seed % 2**32 for one in chosen], jnp.uint32)
        ),
    )


def as_turns(prompt: Prompt) -> Sequence[chat.Turn]:
    """Return a prompt as turns."""
    return [chat.Turn("user", prompt)] if isinstance(prompt, str) else prompt


@functools.partial(jax.jit, static_argnames="frames")
def likelihoods(model: TheWorld, batch: dict[str, jax.Array], *, frames: int) -> jax.Array:
    """Return the logarithm of the probability of the tokens with labels, [B] float32; `batch` as in `answer`."""
    latents = world_steps.world_latents(model, batch["world_pixels"], frames) if frames else None
    pixels = vision_values(batch["pixel_values"]) if "pixel_values" in batch else None
    return objective.log_likelihoods(model, batch, pixels, latents)


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

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt], *, most_images: int = 0
    ) -> dict[str, jax.Array]:
        """Return tokens and mask [B, L], and with images also pixel_values and world_pixels; see `answer`.

        There may be more images than in training. Batches with the same `most_images` above 0, which is at least the
        number of images of any row, have images of the same shapes.

        Raises:
          ValueError: a prompt is invalid.
        """
        encoded = [self.encode(prompt, own) for own, prompt in zip(images, prompts, strict=True)]
        batch = chat.pad(encoded, self.bucket(encoded), pad_id=self.tokenizer.ids[chat.PAD])
        del batch["labels"]
        return self._on_device(batch, images, most_images)

    def blank(self, rows: int, length: int, *, images: int) -> dict[str, jax.Array]:
        """Return a batch as `__call__` does, without content."""
        text = {"tokens": np.zeros((rows, length), np.int32), "mask": np.zeros((rows, length), bool)}
        return self._on_device(text, [[]] * rows, images)

    def _on_device(
        self, text: Mapping[str, np.ndarray], images: Sequence[Sequence[PIL.Image.Image]], most_images: int = 0
    ) -> dict[str, jax.Array]:
        """Return the arrays of texts with those of their images."""
        batch = dict(text)
        if most := max(most_images, *map(len, images)):
            clip = dataclasses.replace(self.clip, images=most)
            rows = [batches.model_pixels(own, clip) for own in images]
            batch |= {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: jnp.asarray(value) for name, value in batch.items()}

    def completed(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt], options: Sequence[str]
    ) -> dict[str, jax.Array]:
        """Return the batch of prompts with an answer each, which has the only labels; see `__call__`."""
        encoded = [
            self.tokenizer.encode(
                [*as_turns(prompt), chat.Turn("model", option)], images=len(own), crops=self.clip.count_crops(own)
            )
            for own, prompt, option in zip(images, prompts, options, strict=True)
        ]
        for one, prompt, own in zip(encoded, prompts, images, strict=True):
            # Earlier answers of the conversation have no labels.
            one.labels[: len(self.encode(prompt, own).tokens)] = chat.IGNORED
        return self._on_device(chat.pad(encoded, self.bucket(encoded), pad_id=self.tokenizer.ids[chat.PAD]), images)

    def encode(self, prompt: Prompt, images: Sequence[PIL.Image.Image]) -> chat.Encoded:
        """Tokenize a prompt; a `ValueError` if it is invalid."""
        crops = self.clip.count_crops(images)
        return self.tokenizer.encode(as_turns(prompt), images=len(images), crops=crops, is_open=True)

    def length(self, question: asking.Question) -> int:
        """Return the length to which a question is padded; its images are read only if they may have crops."""
        turns = as_turns(question.turns)
        if self.clip.pan is None:
            return self.bucket([self.tokenizer.encode(turns, images=question.images, is_open=True)])
        return self.bucket([self.encode(turns, [PIL.Image.fromarray(image) for image in question.load()])])

    def bucket(self, encoded: Sequence[chat.Encoded]) -> int:
        """Return the length to which prompts are padded."""
        return math.ceil(max(len(one.tokens) for one in encoded) / self.multiple) * self.multiple


class _Call(NamedTuple):
    """Options of `answer`, images of a row at most, and whether all rows take the most likely tokens."""

    options: dict[str, Any]
    most_images: int
    is_greedy: bool


class Answers:
    """Answers to batches of prompts about images: a `sessions.BatchAnswers` and an `evaluation.benchmarks.Answer`."""

    def __init__(self, model: TheWorld, prompts: Prompts, *, frames: int | None = None):
        """Set up answers with `frames` latent frames of the world: None for all, 1 for the image alone, 0 for none."""
        self.model, self.prompts = model, prompts
        self._frames = all_frames(model) if frames is None else frames

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt], *, max_tokens: int
    ) -> list[str]:
        """Answer each prompt greedily about its images, in at most `max_tokens` tokens."""
        tokenizer, batch = self.prompts.tokenizer, self.prompts(images, prompts)
        frames = self._frames if "world_pixels" in batch else 0
        tokens = answer(self.model, batch, steps=max_tokens, ends=ends(tokenizer), frames=frames)
        return [tokenizer.decode(row) for row in jax.device_get(tokens).tolist()]

    def likelihoods(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[float]:
        """Return the logarithm of the probability of one answer per prompt, its end included."""
        batch = self.prompts.completed(images, prompts, options)
        frames = self._frames if "world_pixels" in batch else 0
        values: list[float] = jax.device_get(likelihoods(self.model, batch, frames=frames)).tolist()
        return values

    def many(self, questions: Sequence[asking.Question], *, batch: int) -> Iterator[tuple[int, asking.Answer]]:
        """Yield (number of the question, answer) in batches of questions of similar length.

        All batches of a length run the same program. The last one of a length is filled up.

        Raises:
          ValueError: a question is invalid, or an image cannot be read.
        """
        prompts, call = self.prompts, self._call(questions)
        lengths = [prompts.length(question) for question in questions]
        for length in sorted(set(lengths)):
            numbers = [number for number, own in enumerate(lengths) if own == length]
            for start in range(0, len(numbers), batch):
                own = numbers[start : start + batch]
                filled = [questions[number] for number in (*own, *[own[-1]] * (batch - len(own)))]
                images = [[PIL.Image.fromarray(image) for image in question.load()] for question in filled]
                sampler = None if call.is_greedy else make_sampler([question.sampling for question in filled])
                arrays = prompts(images, [question.turns for question in filled], most_images=call.most_images)
                rows = answer(self.model, arrays, sampler, **call.options)
                for number, tokens in zip(own, jax.device_get(rows).tolist(), strict=False):
                    yield number, self._finished(tokens, questions[number].sampling)

    def programs(self, questions: Sequence[asking.Question], *, batch: int) -> Iterator[Program]:
        """Yield the programs of `many`, one for each length of questions.

        Raises:
          ValueError: a question is invalid, or an image cannot be read.
        """
        call = self._call(questions)
        sampler = None if call.is_greedy else make_sampler([questions[0].sampling] * batch)
        for length in sorted({self.prompts.length(question) for question in questions}):
            arrays = self.prompts.blank(batch, length, images=call.most_images)
            yield Program(f"answers to {length} tokens", answer, (self.model, arrays, sampler), call.options)

    def _call(self, questions: Sequence[asking.Question]) -> "_Call":
        """Return what all batches of these questions share."""
        most = max(question.images for question in questions)
        options = {
            "steps": max(question.sampling.max_tokens for question in questions),
            "ends": ends(self.prompts.tokenizer),
            "frames": self._frames if most and self.prompts.clip.world_size else 0,
        }
        return _Call(options, most, not any(question.sampling.temperature for question in questions))

    def _finished(self, tokens: list[int], chosen: asking.Sampling) -> asking.Answer:
        """Return an answer without its end, in at most as many tokens as it may have."""
        tokenizer = self.prompts.tokenizer
        tokens = tokens[: chosen.max_tokens]
        count = next((i for i, token in enumerate(tokens) if token in ends(tokenizer)), len(tokens))
        return asking.Answer(chosen.cut(tokenizer.decode(tokens[:count])).rstrip(), count)


class Session:
    """A `TextSession`: each step decodes a token, with a KV cache of fixed shape."""

    def __init__(self, model: TheWorld, prompts: Prompts, *, chosen: asking.Sampling):
        """Set up a session whose answers are drawn as `chosen`, if `reset` is given nothing else."""
        self.model, self.prompts, self.sampling = model, prompts, chosen
        self._default, self._ends = chosen, ends(prompts.tokenizer)

    def reset(self, images: Sequence[np.ndarray], prompt: Prompt, *, sampling: asking.Sampling | None = None) -> None:
        """Start from images uint8 [H, W, 3] of any size, the first of which is that of the world, and a question.

        Raises:
          UserError: the prompt is invalid.
        """
        self.sampling = sampling or self._default
        batch, frames = self._inputs(images, prompt)
        self._state = prefill(self.model, batch, steps=self.sampling.max_tokens, frames=frames)
        self._sampler = make_sampler([self.sampling])
        self._tokens: list[int] = []
        self._over = False

    def programs(
        self, images: Sequence[np.ndarray], prompt: Prompt, *, sampling: asking.Sampling | None = None
    ) -> Iterator[Program]:
        """Yield the programs of an answer, as `reset` and `step` will call them; see `TextSession`."""
        batch, frames = self._inputs(images, prompt)
        return answer_programs(self.model, batch, frames=frames, sampling=sampling or self._default)

    def _inputs(self, images: Sequence[np.ndarray], prompt: Prompt) -> tuple[dict[str, jax.Array], int]:
        """Return the batch of one question, and the latent frames of its world."""
        if images and not self.model.config.gemma.vision_layers:
            raise errors.UserError("the model answers questions about text alone, but an image is given: leave it out")
        try:
            batch = self.prompts([[PIL.Image.fromarray(image) for image in images]], [prompt])
        except ValueError as error:
            raise errors.UserError(f"the question is not valid for this model: {error}") from error
        return batch, all_frames(self.model) if images else 0

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without a stop text and what follows."""
        return self.sampling.cut(self.prompts.tokenizer.decode(list(tokens)))

    def step(self) -> int | None:
        """Return the next token of the answer; None at its end."""
        count = len(self._tokens)
        if self._over or count == self.sampling.max_tokens:
            return None
        chosen = choose(self._state.logits, self._sampler, jnp.int32(count))
        # The next step is started before this token is read.
        self._state = step(self.model, chosen, self._state)
        token = int(chosen[0])
        self._over = token in self._ends
        if self._over:
            return None
        self._tokens.append(token)
        self._over = self.sampling.is_stopped(self.prompts.tokenizer.decode(self._tokens))
        return token


def answer_programs(
    model: TheWorld, batch: Mapping[str, Any], *, frames: int, sampling: asking.Sampling
) -> Iterator[Program]:
    """Yield the programs of an answer, token by token, to a batch as in `answer`, or to descriptions of one."""
    first = Program("prefill", prefill, (model, dict(batch)), {"steps": sampling.max_tokens, "frames": frames}, runs=0)
    yield first
    state = first.results()
    chosen = Program("choice of a token", choose, (state.logits, make_sampler([sampling]), jnp.int32(0)))
    yield chosen
    yield Program("decode step", step, (model, chosen.results(), state), cache=state)
