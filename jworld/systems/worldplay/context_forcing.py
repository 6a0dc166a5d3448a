"""Context forcing: the student learns on its own rollouts with memory, from the scores of a teacher and a critic.

Source: WorldPlay, arXiv 2512.14614, Algorithm 1, of which no trainer is published; distribution matching on rollouts as
in Self Forcing, arXiv 2506.08009. The rollout runs in a scan without gradients, with the KV cache and the context of
sampling. Then one parallel pass repeats the last denoising step of every chunk after its finished context, which gives
the gradient. Positions of context frames are their ranks within the memory of a chunk, so the chunks cannot share one
sequence: they are rows of a batch.
"""

import dataclasses
import functools
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.diffusion import distribution_matching, flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import Cache, FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import latents, objective
from jworld.systems.worldplay.distillation import Clip, frame_inputs, take, velocity
from jworld.training import parts
from jworld.utils import ranges

_Level = Annotated[float, ranges.Range(0, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextForcingConfig:
    """Settings of context forcing (`config.loss`); the student's denoising steps are those of `sample.rollout`.

    Attributes:
      kind: "context_forcing".
      chunks: chunks of a rollout, which continues a recorded prefix of random length (`data.clip.curriculum`).
      teacher: folder of the weights from which teacher and critic start; "" for those of init_from.
      score: attention of teacher and critic. "bidirectional" weights see all chunks of a rollout at once;
        "autoregressive" ones see chunks before them, and of the memory only what their training window has room for.
      teacher_guidance: scale of the teacher's classifier-free guidance on the text; 1 disables it.
      score_levels: range of the uniform noise levels (0 to 1, before the shift) at which scores are compared.
      shift: shift of these levels.
      sigma_floor: as for the training of the teacher, for the loss of the critic.
      teacher_dtype: dtype of the teacher's frozen weights.
    """

    kind: Literal["context_forcing"] = "context_forcing"
    chunks: ranges.Steps = 4
    teacher: str = ""
    score: Literal["bidirectional", "autoregressive"] = "bidirectional"
    teacher_guidance: ranges.Guidance = 3.0
    score_levels: tuple[_Level, _Level] = (0.02, 0.98)
    shift: ranges.Shift = 5.0
    sigma_floor: ranges.Share = 0.0
    teacher_dtype: Literal["bfloat16", "float32"] = "float32"

    def __post_init__(self) -> None:
        ranges.check(self)
        if not 0 < self.score_levels[0] < self.score_levels[1]:
            raise ValueError(f"score_levels {self.score_levels} must be an increasing pair between 0 and 1")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      noise: standard normal, in the shape of the rollout's frames [B, n * f, H, W, C].
      last_step: denoising step, int32, after which every chunk of the rollout ends: its prediction of clean latents.
      level: noise levels [B] of the scores.
      score_noise: standard normal in the shape of `noise`.
    """

    noise: jax.Array
    last_step: jax.Array
    level: jax.Array
    score_noise: jax.Array


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


def draw(key: jax.Array, shape: tuple[int, ...], steps: int, cfg: ContextForcingConfig) -> Draws:
    """Draw the random numbers of a loss for rollouts of `shape` [B, n * f, H, W, C] with so many denoising steps."""
    noise_key, step_key, level_key, score_key = jax.random.split(key, 4)
    low, high = cfg.score_levels
    return Draws(
        noise=jax.random.normal(noise_key, shape),
        last_step=jax.random.randint(step_key, (), 0, steps),
        level=flow_matching.shifted(jax.random.uniform(level_key, shape[:1], minval=low, maxval=high), cfg.shift),
        score_noise=jax.random.normal(score_key, shape),
    )


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
    graphdef, weights = nnx.split(model)
    # Nothing in the loops is prepared for a backward pass.
    model = nnx.merge(graphdef, jax.lax.stop_gradient(weights))
    text, image = objective.text_inputs(batch), batch["image_cond"]
    levels = flow_matching.sampling_sigmas(sample.num_steps, sample.shift)
    text_cache = model.text_cache(text, jnp.zeros(len(image)))
    recorded = batch["latent"].shape[1]

    def inputs(part: Clip, time: jax.Array | float, known: Clip | None = None) -> FrameInputs:
        times = jnp.broadcast_to(jnp.asarray(time, jnp.float32), part.position.shape)
        return frame_inputs(part, image, times, known=known if model.cfg.references else None)

    def chunk_of(frames: Clip, number: jax.Array) -> tuple[Clip, tuple[jax.Array, jax.Array]]:
        context, chunk = context_and_chunk(frames, batch, number, size)
        _, own = model.with_cache(inputs(context, sample.context_time), text_cache)
        cache = _extended(text_cache, own)

        def predict(x: jax.Array, step: jax.Array) -> jax.Array:
            time = levels[step] * flow_matching.NUM_TIMESTEPS
            return model.with_cache(inputs(chunk._replace(latents=x), time, context), cache)[0]

        def denoise(step: jax.Array, x: jax.Array) -> jax.Array:
            return flow_matching.euler_step(x, predict(x, step), levels[step], levels[step + 1])

        noise = jax.lax.dynamic_slice_in_dim(draws.noise, number * size, size, axis=1)
        noisy = jax.lax.fori_loop(0, draws.last_step, denoise, noise)
        clean = flow_matching.euler_step(noisy, predict(noisy, draws.last_step), levels[draws.last_step], jnp.zeros(()))
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
    predicted = velocity(
        model,
        text,
        image,
        context,
        chunk._replace(latents=noisy),
        time=jnp.full(rows * count, level * flow_matching.NUM_TIMESTEPS),
        context_time=jnp.full(rows * count, sample.context_time),
    )
    clean = flow_matching.euler_step(noisy, predicted, level, jnp.zeros(()))
    return clean.reshape(rows, -1, *clean.shape[2:])


def score(
    model: HunyuanTransformer,
    batch: objective.Batch,
    made: jax.Array,
    draws: Draws,
    cfg: ContextForcingConfig,
    *,
    guidance: float,
    context_time: float,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """Predict velocity and clean latents [B, n * f, H, W, C] of noisy rollouts, by a teacher or a critic.

    The network attends to the recorded frames that the teacher may see, and to no generated one but the noisy frames
    themselves.
    """
    sigma = draws.level[:, None, None, None, None]
    noisy = flow_matching.add_noise(made, draws.score_noise, sigma)
    taught = batch["taught"]
    own = jnp.ones(made.shape[:2], bool)
    valid = jnp.concatenate([taught, own], axis=1)
    frames = pool(batch, noisy)._replace(position=jnp.cumsum(valid, axis=1) - 1, valid=valid)
    time = draws.level * flow_matching.NUM_TIMESTEPS
    recorded = taught.shape[1]
    times = jnp.where(jnp.arange(valid.shape[1]) < recorded, context_time, time[:, None])
    known = Clip(*(x[:, :recorded] for x in frames)) if model.cfg.references else None

    def predict(text: TextInputs) -> jax.Array:
        inputs = frame_inputs(frames, batch["image_cond"], times, known=known, given=recorded)
        is_causal = cfg.score == "autoregressive"
        # The text of the autoregressive model always has time 0, that of the bidirectional one the time of the frames.
        text_time = jnp.zeros_like(time) if is_causal else time
        found = model(inputs, text, text_time, chunk_frames=size if is_causal else None)
        return found[:, recorded:]

    with_text = predict(objective.text_inputs(batch))
    if guidance != 1:
        without = predict(objective.negative_inputs(batch))
        with_text = without + guidance * (with_text - without)
    return with_text, noisy - sigma * with_text


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
    rollout = roll_out(model, batch, draws, sample=sample, size=size)
    scores = functools.partial(
        score, batch=batch, made=rollout.made, draws=draws, cfg=cfg, context_time=sample.context_time, size=size
    )
    _, real = scores(parts.of(model, parts.TEACHER), guidance=cfg.teacher_guidance)
    _, fake = scores(parts.of(model, parts.CRITIC), guidance=1.0)
    slope = jax.lax.stop_gradient(distribution_matching.gradient(rollout.made, real, fake))
    clean = repeat(model, batch, rollout, draws, sample=sample, size=size)
    return distribution_matching.loss(clean, slope), {"score_distance": jnp.mean(jnp.abs(slope))}


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
    made = roll_out(model, batch, draws, sample=sample, size=size).made
    critic, time = parts.of(model, parts.CRITIC), sample.context_time
    predicted, _ = score(critic, batch, made, draws, cfg, guidance=1.0, context_time=time, size=size)
    error = jnp.mean(jnp.square(predicted - (draws.score_noise - made)), axis=(1, 2, 3, 4))
    if cfg.sigma_floor:
        error *= jnp.square(jnp.minimum(draws.level / cfg.sigma_floor, 1.0))
    return jnp.mean(error), {}
