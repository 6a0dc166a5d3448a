"""Distillation of the autoregressive model into one that needs few denoising steps.

Teacher and student run exactly as in a rollout: a chunk of one noise level after its context frames, which are those
that a rollout selects. HY-WorldPlay publishes distilled weights, but not how they were trained. The stage here is
consistency distillation with clean history, which makes a good start for adversarial and self-rollout training (Causal
Forcing++). Source of consistency models: arXiv 2303.01469.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jworld.diffusion import consistency, flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import objective, references
from jworld.training import parts
from jworld.utils import ranges

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Noise of the context frames that training gives to a chunk.

    Attributes:
      noisy_context: share of examples whose context has noise, at a level that the model receives. A rollout continues
        from its own frames, which are worse than recorded ones.
      memory_times: inclusive range of the times (t of 1000) of such context frames.
    """

    noisy_context: ranges.Share = 0.5
    memory_times: tuple[objective.Time, objective.Time] = (16, 500)

    def __post_init__(self) -> None:
        ranges.check(self)
        objective.check_memory_times(self.memory_times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(ContextConfig):
    """Settings of consistency distillation (`config.loss`).

    Two neighboring points of a trajectory of the teacher must have the same end: the student's prediction from the
    noisier point is compared with that of its EMA from the other one.

    Attributes:
      kind: "consistency".
      shift: shift of the teacher's sampling times, and of the student's.
      solver_steps: steps of the teacher from pure noise to clean latents.
      teacher_guidance: scale of the teacher's classifier-free guidance on the text; 1 disables it. The student learns
        the guided result and is sampled without guidance.
      distance: distance of the two predictions of clean latents, "l2" or "huber" (pseudo-Huber).
      huber_c: constant c of the pseudo-Huber distance.
      teacher_dtype: dtype of the teacher's frozen weights.
    """

    kind: Literal["consistency"] = "consistency"
    shift: ranges.Shift = 5.0
    solver_steps: Annotated[int, ranges.Range(2, flow_matching.NUM_TIMESTEPS)] = 48
    teacher_guidance: ranges.Guidance = 6.0
    distance: Literal["l2", "huber"] = "l2"
    huber_c: ranges.Positive = 1e-3
    teacher_dtype: Literal["bfloat16", "float32"] = "float32"


class ContextDraws(NamedTuple):
    """Random numbers of context frames.

    Attributes:
      time: time [B] that the model receives for them, float32.
      sigma: their noise level [B], 0 to 1; a rollout's context has a time, but no noise.
      noise: standard normal, in their shape [B, M, H, W, C].
    """

    time: jax.Array
    sigma: jax.Array
    noise: jax.Array

    def noisy(self, latents: jax.Array) -> jax.Array:
        """Return context frames [B, M, H, W, C] with their noise, float32."""
        level = self.sigma[:, None, None, None, None]
        return flow_matching.add_noise(latents.astype(jnp.float32), self.noise, level)


class WindowDraws(NamedTuple):
    """Random numbers of a window of which one chunk is denoised.

    Attributes:
      chunk: chunk [B] of the window that is denoised after those before it; memory samples always have the last one.
      noise: standard normal, in the shape of a chunk [B, f, H, W, C].
      context: of the frames before it.
    """

    chunk: jax.Array
    noise: jax.Array
    context: ContextDraws


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      step: step of the teacher [B], 0 from pure noise.
      window: of the chunk and its context.
    """

    step: jax.Array
    window: WindowDraws


class Clip(NamedTuple):
    """Latent frames and their conditioning, [B, F, ...] each; the fields are those of `FrameInputs`.

    `is_first` marks the first frame of a rollout, which the first image conditions.
    """

    latents: jax.Array
    is_first: jax.Array
    position: jax.Array
    valid: jax.Array
    action: jax.Array
    w2c: jax.Array
    intrinsics: jax.Array


def draw_context(key: jax.Array, shape: tuple[int, ...], cfg: ContextConfig, *, context_time: float) -> ContextDraws:
    """Draw the random numbers of context frames of `shape` [B, M, H, W, C].

    Context without noise has the time `context_time` of a rollout.
    """
    share_key, time_key, noise_key = jax.random.split(key, 3)
    low, high = cfg.memory_times
    time = jax.random.randint(time_key, shape[:1], low, high + 1).astype(jnp.float32)
    is_noisy = jax.random.bernoulli(share_key, cfg.noisy_context, shape[:1])
    return ContextDraws(
        time=jnp.where(is_noisy, time, context_time),
        sigma=jnp.where(is_noisy, time / flow_matching.NUM_TIMESTEPS, 0),
        noise=jax.random.normal(noise_key, shape),
    )


def draw_window(
    key: jax.Array, shape: tuple[int, ...], chunk_frames: int, cfg: ContextConfig, *, context_time: float
) -> WindowDraws:
    """Draw the random numbers of windows of `shape` [B, F, H, W, C]; see `draw_context`."""
    chunk_key, noise_key, context_key = jax.random.split(key, 3)
    batch, frames, *latent = shape
    return WindowDraws(
        chunk=jax.random.randint(chunk_key, (batch,), 0, frames // chunk_frames),
        noise=jax.random.normal(noise_key, (batch, chunk_frames, *latent)),
        context=draw_context(context_key, (batch, frames - chunk_frames, *latent), cfg, context_time=context_time),
    )


def draw(
    key: jax.Array, shape: tuple[int, ...], chunk_frames: int, cfg: ConsistencyConfig, *, context_time: float
) -> Draws:
    """Draw the random numbers of a loss; see `draw_window`."""
    step_key, window_key = jax.random.split(key)
    return Draws(
        step=jax.random.randint(step_key, shape[:1], 0, cfg.solver_steps),
        window=draw_window(window_key, shape, chunk_frames, cfg, context_time=context_time),
    )


def nearest_step(level: jax.Array, cfg: ConsistencyConfig) -> jax.Array:
    """Return the step of the teacher that starts nearest to a noise level."""
    sigmas = flow_matching.sampling_sigmas(cfg.solver_steps, cfg.shift)
    return jnp.argmin(jnp.abs(sigmas[:-1] - level))


def divided(batch: objective.Batch, chunk: jax.Array, chunk_frames: int) -> tuple[Clip, Clip]:
    """Divide windows into context frames and a chunk: those that a rollout has when it denoises chunk `chunk` [B].

    Context frames that the chunk does not follow are masked.
    """
    clean = batch["latent"].astype(jnp.float32)
    rows, frames = clean.shape[:2]
    number = jnp.broadcast_to(jnp.arange(frames), (rows, frames))
    start = chunk_frames * jnp.where(batch["is_memory"], frames // chunk_frames - 1, chunk)[:, None]
    everything = Clip(clean, number == 0, number, number < start, batch["action"], batch["w2c"], batch["intrinsics"])
    taken = start + jnp.arange(chunk_frames)
    context = Clip(*(x[:, : frames - chunk_frames] for x in everything))
    return context, take(everything, taken)._replace(valid=jnp.ones_like(taken, bool))


def drawn_window(batch: objective.Batch, draws: WindowDraws, chunk_frames: int) -> tuple[Clip, Clip]:
    """Return the context frames with their noise, and the chunk without; see `divided`."""
    context, chunk = divided(batch, draws.chunk, chunk_frames)
    return context._replace(latents=draws.context.noisy(context.latents)), chunk


def take(frames: Clip, index: jax.Array) -> Clip:
    """Return some frames of every row: index [B, k]."""

    def part(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)

    return Clip(*map(part, frames))


def frame_inputs(
    frames: Clip,
    image: jax.Array,
    times: jax.Array,
    *,
    known: Clip | None = None,
    given: int = 0,
    step_size: jax.Array | None = None,
) -> FrameInputs:
    """Return the inputs of the network.

    Args:
      frames: noisy frames, and the clean ones of their context.
      image: latents of the first image [B, 1, H, W, C].
      times: [B, F].
      known: frames among which references are found, see `HunyuanConfig.references`; None for no references.
      given: number of first frames that have no references, as they are clean.
      step_size: see `FrameInputs`.
    """
    condition = objective.condition_video(image, frames.is_first)
    if known is not None:
        earlier = references.Known(known.latents, known.w2c, known.valid)
        found = references.find(frames.w2c[:, given:], earlier, image)
        condition = jnp.concatenate([condition[:, :given], found], axis=1)
    return FrameInputs(
        jnp.concatenate([frames.latents, condition], axis=-1),
        times,
        frames.action,
        frames.w2c,
        frames.intrinsics,
        position=frames.position,
        mask=frames.valid,
        step_size=step_size,
    )


def velocity(
    model: HunyuanTransformer,
    text: TextInputs,
    image: jax.Array,
    context: Clip,
    chunk: Clip,
    *,
    time: jax.Array,
    context_time: jax.Array,
    step_size: jax.Array | None = None,
) -> jax.Array:
    """Predict the velocity of chunks after their context, [B, f, H, W, C] float32.

    Args:
      model: the network.
      text: text inputs.
      image: latents of the first frame [B, 1, H, W, C].
      context: context frames.
      chunk: the chunk, with noisy latents.
      time: times [B] of the chunks.
      context_time: times [B] of the context frames.
      step_size: sizes [B] of the steps of the chunks; None for 0, which that of the context always is.
    """
    both = Clip(*(jnp.concatenate(pair, axis=1) for pair in zip(context, chunk, strict=True)))
    before = context.latents.shape[1]

    def per_frame(given: jax.Array, own: jax.Array) -> jax.Array:
        parts = [jnp.broadcast_to(x[:, None], y.position.shape) for x, y in ((given, context), (own, chunk))]
        return jnp.concatenate(parts, axis=1)

    frames = frame_inputs(
        both,
        image,
        per_frame(context_time, time),
        known=context if model.cfg.references else None,
        given=before,
        step_size=None if step_size is None else per_frame(jnp.zeros_like(step_size), step_size),
    )
    predicted = model(frames, text, jnp.zeros(len(image)), chunk_frames=None, context_frames=before)
    return predicted[:, before:]


def guided_velocity(
    model: HunyuanTransformer,
    batch: objective.Batch,
    context: Clip,
    chunk: Clip,
    *,
    time: jax.Array,
    context_time: jax.Array,
    guidance: float,
) -> jax.Array:
    """Predict the velocity with classifier-free guidance on the text, see `velocity`.

    With guidance the batch has the negative text, too.
    """
    text, image = objective.text_inputs(batch), batch["image_cond"]
    if guidance == 1:
        return velocity(model, text, image, context, chunk, time=time, context_time=context_time)
    both = velocity(
        model,
        _joined(objective.negative_inputs(batch), text),
        _joined(image, image),
        _joined(context, context),
        _joined(chunk, chunk),
        time=_joined(time, time),
        context_time=_joined(context_time, context_time),
    )
    without, with_text = jnp.split(both, 2)
    return without + guidance * (with_text - without)


def _joined(first: Tree, second: Tree) -> Tree:
    """Concatenate the rows of two batches."""
    joined: Tree = jax.tree.map(lambda *pair: jnp.concatenate(pair), first, second)
    return joined


def loss(
    model: HunyuanTransformer,
    target: HunyuanTransformer,
    batch: objective.Batch,
    draws: Draws,
    cfg: ConsistencyConfig,
    *,
    chunk_frames: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss, a float32 scalar, and the student's mean squared error against the data as `data_error`.

    A student that follows every trajectory of the teacher to its end exactly has loss zero.

    Args:
      model: the student with its teacher, see `parts`.
      target: the model that predicts the end of a trajectory from its less noisy point: the student's EMA.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      cfg: the settings.
      chunk_frames: latent frames per chunk.
    """
    sigmas = flow_matching.sampling_sigmas(cfg.solver_steps, cfg.shift)
    sigma, earlier = (sigmas[draws.step + i][:, None, None, None, None] for i in (0, 1))
    context, chunk = drawn_window(batch, draws.window, chunk_frames)
    clean, context_time = chunk.latents, draws.window.context.time
    text, image = objective.text_inputs(batch), batch["image_cond"]

    def end(network: HunyuanTransformer, x: jax.Array, level: jax.Array) -> jax.Array:
        """Predict the clean latents from a point of a trajectory."""
        times = {"time": flow_matching.NUM_TIMESTEPS * level[:, 0, 0, 0, 0], "context_time": context_time}
        predicted = velocity(network, text, image, context, chunk._replace(latents=x), **times)
        return flow_matching.euler_step(x, predicted, level, jnp.zeros_like(level))

    noisy = flow_matching.add_noise(clean, draws.window.noise, sigma)
    predicted = guided_velocity(
        parts.of(model, parts.TEACHER),
        batch,
        context,
        chunk._replace(latents=noisy),
        guidance=cfg.teacher_guidance,
        time=flow_matching.NUM_TIMESTEPS * sigma[:, 0, 0, 0, 0],
        context_time=context_time,
    )
    reached = jax.lax.stop_gradient(flow_matching.euler_step(noisy, predicted, sigma, earlier))
    online = end(model, noisy, sigma)
    # After the teacher's last step the point is the end itself.
    expected = jax.lax.stop_gradient(jnp.where(earlier > 0, end(target, reached, earlier), reached))
    value = consistency.distance(online, expected, cfg.distance, cfg.huber_c)
    return value, {"data_error": jnp.mean(jnp.square(online - clean))}
