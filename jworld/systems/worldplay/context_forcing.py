"""Context forcing: the student learns on its own rollouts with memory, from the scores of a teacher and a critic.

Source: WorldPlay, arXiv 2512.14614, Algorithm 1, of which no trainer is published; distribution matching on rollouts as
in Self Forcing, arXiv 2506.08009. The rollout runs in a scan without gradients, with the KV cache and the context of
sampling. Then one parallel pass repeats the last denoising step of every chunk after its finished context, which gives
the gradient. Positions of context frames are their ranks within the memory of a chunk, so the chunks cannot share one
sequence: they are rows of a batch.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import distribution_matching, flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import Cache, FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import latents, objective
from jworld.systems.worldplay.distillation import Clip, frame_inputs, take, velocity
from jworld.training import score_losses
from jworld.utils import ranges

Draws = distribution_matching.Draws
draw = distribution_matching.draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextForcingConfig(distribution_matching.ScoreConfig):
    """Settings of context forcing (`config.loss`); the student's denoising steps are those of `sample.rollout`.

    Attributes:
      kind: "context_forcing".
      chunks: chunks of a rollout, which continues a recorded prefix of random length (`data.clip.curriculum`).
      teacher: folder of the weights from which teacher and critic start; "" for those of init_from.
      score: attention of teacher and critic. "bidirectional" weights see all chunks of a rollout at once;
        "autoregressive" ones see chunks before them, and of the memory only what their training window has room for.
      teacher_guidance: scale of the teacher's classifier-free guidance on the text; 1 disables it.
      sigma_floor: as for the training of the teacher, for the loss of the critic.
    """

    kind: Literal["context_forcing"] = "context_forcing"
    chunks: ranges.Steps = 4
    teacher: str = ""
    score: Literal["bidirectional", "autoregressive"] = "bidirectional"
    teacher_guidance: ranges.Guidance = 3.0
    sigma_floor: ranges.Share = 0.0


class Rollout(NamedTuple):
    """Result of a rollout.

    Attributes:
      frames: recorded frames and those of the rollout, with their conditioning, see `pool`.
      noisy: input of the last denoising step of every chunk, [B, n, f, H, W, C].
      made: generated latents [B, n * f, H, W, C].
    """

    frames: Clip
    noisy: jax.Array
    made: jax.Array


def pool(batch: objective.Batch, made: jax.Array) -> Clip:
    """Return the recorded frames of an example and those of its rollout; positions and validity depend on the use."""
    frames = jnp.concatenate([batch["latent"].astype(jnp.float32), made], axis=1)
    unset = jnp.zeros(frames.shape[:2], jnp.int32)
    conditioning = batch["action"], batch["w2c"], batch["intrinsics"]
    return Clip(frames, batch["is_first"], unset, unset.astype(bool), *conditioning)


def context_and_chunk(frames: Clip, batch: objective.Batch, chunk: jax.Array | int, size: int) -> tuple[Clip, Clip]:
    """Return the context frames of one chunk of a rollout, and its own frames; both as in a rollout of sampling."""
    index, valid = batch["context"][:, chunk], batch["context_valid"][:, chunk]
    order = jnp.broadcast_to(jnp.arange(index.shape[1]), index.shape)
    context = take(frames, index)._replace(position=order, valid=valid)
    own = batch["latent"].shape[1] + size * chunk + jnp.broadcast_to(jnp.arange(size), (len(index), size))
    position = jnp.sum(valid, axis=1, keepdims=True) + jnp.arange(size)
    return context, take(frames, own)._replace(position=position, valid=jnp.ones_like(own, bool))


def roll_out(
    model: HunyuanTransformer, batch: objective.Batch, draws: Draws, *, sample: latents.SampleConfig, size: int
) -> Rollout:
    """Generate all chunks without gradients, as sampling does; chunks have `size` frames.

    Every chunk ends after the step `draws.last_step`, with the prediction of its clean latents.
    """
    model = score_losses.without_gradients(model)
    text, image = objective.text_inputs(batch), batch["image_cond"]
    levels = flow_matching.sampling_sigmas(sample.num_steps, sample.shift)
    text_cache = model.text_cache(text, jnp.zeros(len(image)))
    recorded = batch["latent"].shape[1]

    def inputs(
        part: Clip, time: jax.Array | float, step_size: jax.Array | float = 0.0, known: Clip | None = None
    ) -> FrameInputs:
        times, sizes = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), part.position.shape) for x in (time, step_size))
        return frame_inputs(part, image, times, known=known if model.cfg.references else None, step_size=sizes)

    def chunk_of(frames: Clip, number: jax.Array) -> tuple[Clip, tuple[jax.Array, jax.Array]]:
        context, chunk = context_and_chunk(frames, batch, number, size)
        _, own = model.with_cache(inputs(context, sample.context_time), text_cache)
        cache = _extended(text_cache, own)

        def move(x: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
            time, size = (value * flow_matching.NUM_TIMESTEPS for value in (before, before - after))
            predicted, _ = model.with_cache(inputs(chunk._replace(latents=x), time, size, context), cache)
            return flow_matching.euler_step(x, predicted, before, after)

        def denoise(step: jax.Array, x: jax.Array) -> jax.Array:
            return move(x, levels[step], levels[step + 1])

        noise = jax.lax.dynamic_slice_in_dim(draws.noise, number * size, size, axis=1)
        noisy = jax.lax.fori_loop(0, draws.last_step, denoise, noise)
        clean = move(noisy, levels[draws.last_step], jnp.zeros(()))
        start = recorded + number * size
        updated = jax.lax.dynamic_update_slice_in_dim(frames.latents, clean, start, axis=1)
        return frames._replace(latents=updated), (noisy, clean)

    start = pool(batch, jnp.zeros_like(draws.noise))
    count = batch["context"].shape[1]
    frames, (noisy, made) = jax.lax.scan(chunk_of, start, jnp.arange(count))
    rollout = Rollout(frames, jnp.moveaxis(noisy, 0, 1), jnp.concatenate(list(made), axis=1))
    return jax.lax.stop_gradient(rollout)


def _extended(text: Cache, own: Cache) -> Cache:
    """Return a KV cache of text and context frames; both branches of the image stream attend to the text."""
    copies = own.layers.keys.shape[3] // text.layers.keys.shape[3]
    layers = jax.tree.map(
        lambda x, y: jnp.concatenate([jnp.tile(x, (1, 1, 1, copies, 1)), y], axis=2), text.layers, own.layers
    )
    return Cache(layers, jnp.concatenate([text.mask, own.mask], axis=1))


def repeat(
    model: HunyuanTransformer,
    batch: objective.Batch,
    rollout: Rollout,
    draws: Draws,
    *,
    sample: latents.SampleConfig,
    size: int,
) -> jax.Array:
    """Repeat the last denoising step of all chunks in one parallel pass: the latents of the rollout, with gradients.

    The chunks are rows of the batch, each after its finished context.
    """
    count, rows = batch["context"].shape[1], len(batch["latent"])
    pairs = [context_and_chunk(rollout.frames, batch, number, size) for number in range(count)]

    def as_rows(*x: jax.Array) -> jax.Array:
        return jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:])

    context, chunk = (jax.tree.map(as_rows, *chunks) for chunks in zip(*pairs, strict=True))
    noisy = rollout.noisy.reshape(-1, *rollout.noisy.shape[2:])
    text, image = jax.tree.map(
        lambda x: jnp.repeat(x, count, axis=0), (objective.text_inputs(batch), batch["image_cond"])
    )
    level = flow_matching.sampling_sigmas(sample.num_steps, sample.shift)[draws.last_step]
    time = jnp.full(rows * count, level * flow_matching.NUM_TIMESTEPS)
    predicted = velocity(
        model,
        text,
        image,
        context,
        chunk._replace(latents=noisy),
        time=time,
        context_time=jnp.full(rows * count, sample.context_time),
        step_size=time,
    )
    clean = flow_matching.euler_step(noisy, predicted, level, jnp.zeros(()))
    return clean.reshape(rows, -1, *clean.shape[2:])


def score(
    model: HunyuanTransformer,
    batch: objective.Batch,
    made: jax.Array,
    level: jax.Array,
    noise: jax.Array,
    *,
    chunk_frames: int | None,
    guidance: float,
    context_time: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Predict velocity and clean latents [B, n * f, H, W, C] of noisy rollouts, by a teacher or a critic.

    The network attends to the recorded frames that the teacher may see, and to no generated one but the noisy frames
    themselves.

    Args:
      model: the network.
      batch: arrays of `WorldPlay.batch_spec`.
      made: latents of the rollouts.
      level: their noise levels [B].
      noise: standard normal, in their shape.
      chunk_frames: latent frames per chunk of an autoregressive network; None for a bidirectional one.
      guidance: scale of classifier-free guidance.
      context_time: time of the recorded frames, of all examples or [B, 1].
    """
    sigma = level[:, None, None, None, None]
    noisy = flow_matching.add_noise(made, noise, sigma)
    taught = batch["taught"]
    own = jnp.ones(made.shape[:2], bool)
    valid = jnp.concatenate([taught, own], axis=1)
    frames = pool(batch, noisy)._replace(position=jnp.cumsum(valid, axis=1) - 1, valid=valid)
    time = level * flow_matching.NUM_TIMESTEPS
    recorded = taught.shape[1]
    times = jnp.where(jnp.arange(valid.shape[1]) < recorded, context_time, time[:, None])
    known = Clip(*(x[:, :recorded] for x in frames)) if model.cfg.references else None

    def predict(text: TextInputs) -> jax.Array:
        inputs = frame_inputs(frames, batch["image_cond"], times, known=known, given=recorded)
        # The text of the autoregressive model always has time 0, that of the bidirectional one the time of the frames.
        text_time = time if chunk_frames is None else jnp.zeros_like(time)
        found = model(inputs, text, text_time, chunk_frames=chunk_frames)
        return found[:, recorded:]

    with_text = predict(objective.text_inputs(batch))
    if guidance != 1:
        without = predict(objective.negative_inputs(batch))
        with_text = without + guidance * (with_text - without)
    return with_text, noisy - sigma * with_text


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """A `score_losses.Matching` of rollouts; the fields are the arguments of `loss`."""

    batch: objective.Batch
    draws: Draws
    cfg: ContextForcingConfig
    sample: latents.SampleConfig
    size: int

    def roll_out(self, model: HunyuanTransformer) -> Rollout:
        """See `Matching`."""
        return roll_out(model, self.batch, self.draws, sample=self.sample, size=self.size)

    def made(self, rollout: Rollout) -> jax.Array:
        """See `Matching`: they are the context of later chunks."""
        return rollout.made

    def repeat(self, model: HunyuanTransformer, rollout: Rollout) -> jax.Array:
        """See `Matching`."""
        return repeat(model, self.batch, rollout, self.draws, sample=self.sample, size=self.size)

    def score(self, network: HunyuanTransformer, made: jax.Array, *, is_teacher: bool) -> score_losses.Scores:
        """See `Matching`."""
        predicted, clean = score(
            network,
            self.batch,
            made,
            self.draws.level,
            self.draws.score_noise,
            chunk_frames=self.size if self.cfg.score == "autoregressive" else None,
            guidance=self.cfg.teacher_guidance if is_teacher else 1.0,
            context_time=self.sample.context_time,
        )
        return score_losses.Scores(clean, predicted, self.draws.score_noise - made)


def loss(
    model: HunyuanTransformer,
    batch: objective.Batch,
    draws: Draws,
    cfg: ContextForcingConfig,
    *,
    sample: latents.SampleConfig,
    size: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the student's loss, a float32 scalar, and the mean distance of the two scores as `score_distance`.

    Args:
      model: the student with teacher and critic, see `parts`.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      cfg: the settings.
      sample: the denoising steps of the student.
      size: latent frames per chunk.
    """
    return score_losses.student_loss(model, Rollouts(batch, draws, cfg, sample, size))


def critic_loss(
    model: HunyuanTransformer,
    batch: objective.Batch,
    draws: Draws,
    cfg: ContextForcingConfig,
    *,
    sample: latents.SampleConfig,
    size: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of the critic on fresh rollouts of the student: the mean squared error of the velocity."""
    weight = flow_matching.error_weights(draws.level, cfg.sigma_floor) if cfg.sigma_floor else None
    return score_losses.critic_loss(model, Rollouts(batch, draws, cfg, sample, size), weight)
