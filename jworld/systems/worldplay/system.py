"""The WorldPlay system: model, batch, loss and session from one config."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from jworld.cameras import lengths, memory, pose_strings, trajectories
from jworld.data import records
from jworld.data.records import text_store as text_stores
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.evaluation.held_out import Controls
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Autoencoder
from jworld.models.hunyuan import flops
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.models.layers.attention import ChunkCausal
from jworld.models.layers.flops import Flops, Sizes, trained_share, training
from jworld.systems import adapters, base, frame_sizes, latent_video, live, losses
from jworld.systems.worldplay import (
    bidirectional_objective,
    context_forcing,
    data,
    distillation,
    evaluation,
    matching_recipe,
    objective,
    rollout,
    rollout_data,
    shortcut,
    stages,
)
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.systems.worldplay.bidirectional import BidirectionalSession
from jworld.systems.worldplay.bidirectional_objective import BidirectionalConfig
from jworld.systems.worldplay.context_forcing import ContextForcingConfig
from jworld.systems.worldplay.distillation import ConsistencyConfig
from jworld.systems.worldplay.latents import LatentSession, MemoryConfig, SampleConfig
from jworld.systems.worldplay.session import Session
from jworld.systems.worldplay.shortcut import ShortcutConfig
from jworld.training import optimizers, parts
from jworld.utils import config as run_config
from jworld.utils import errors, hub_folders

#: Seed of the Monte-Carlo points of memory selection, which are a constant of the method and not of a run.
POINTS_SEED = 0

#: Pixels of a token of the published models, and tokens of their sets of sizes. Source: HunyuanVideo-1.5
#: `pipelines/hunyuan_video_pipeline.py`, whose sets have the areas of squares of 640 and 960 pixels.
TOKEN, TIERS = (16, 16), {"480p": 1600, "720p": 3600}

SESSIONS: dict[str, type[LatentSession]] = {
    "autoregressive": AutoregressiveSession,
    "bidirectional": BidirectionalSession,
}


class WorldPlay(latent_video.LatentVideoSystem[HunyuanTransformer, data.ClipConfig]):
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    fps: ClassVar[float] = 24.0
    tiers: ClassVar[Mapping[str, Mapping[tuple[int, int], tuple[int, int]]]] = {
        name: {size: size for size in frame_sizes.buckets(tokens, TOKEN)} for name, tokens in TIERS.items()
    }
    autoencoder: ClassVar[str] = Hunyuan15Autoencoder.family
    sample_name: ClassVar[str] = "rollout"
    steering: ClassVar[str] = "--pose"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.model_config = self.read(HunyuanConfig, "model", adapters.network(config))
        self.objective = self.read(losses.chosen(config, stages.LOSSES), "loss")
        self.clip = self.read(data.ClipConfig, "data.clip")
        self.sample = self.read(SampleConfig, "sample.rollout")
        self.units = self.read(pose_strings.Units, "sample.motion")
        self.patch = self.model_config.patch_size[1:]
        self.memory = MemoryConfig(
            chunk_frames=self.clip.chunk_frames,
            memory_frames=self.clip.memory_frames,
            temporal_context=self.clip.temporal_context,
            view=self.clip.view,
        )
        rollout.parse_script(config.sample.actions, chunk_frames=self.chunk_frames)
        self._check_fit(config.mesh.sequence)
        stages.check(config, self.objective, self.sample)
        self.rollouts = stages.rollouts(self.objective, self.clip, config.mesh.sequence)
        shortest = max(self.clip.window_frames, self.rollouts.rollout_frames if self.rollouts else 0)
        self.open_records(min_frames=shortest, fps=self.sample.fps)

    @staticmethod
    def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
        """See `SystemType`: records with cameras, actions, a first image and captions."""
        return matching_recipe.train_command(manifest, directory)

    @property
    def evaluation_flags(self) -> frozenset[str]:
        """See `System`."""
        return frozenset({"--episodes", "--revisits", "--angles", "--motion"})

    @property
    def has_negative_prompt(self) -> bool:
        """See `VideoSystem`."""
        return self.sample.guidance != 1

    @property
    def chunk_frames(self) -> int:
        """Latent frames that a rollout denoises together."""
        return SESSIONS[self.sample.mode].training_chunks * self.clip.chunk_frames

    def _check_fit(self, sequence: int) -> None:
        model, clip = self.model_config, self.clip
        if (clip.glyph_tokens > 0) != (model.glyph_dim is not None):
            raise errors.UserError(
                f"config.data.clip.glyph_tokens is {clip.glyph_tokens} but config.model.glyph_dim is "
                f"{model.glyph_dim}: set both, or 0 and None"
            )
        self.check_patches()
        self.check_frames(sequence)

    @property
    def copies(self) -> tuple[str, ...]:
        """See `System`: teacher and critic are the initial student, unless they come from another folder."""
        is_other = isinstance(self.objective, ContextForcingConfig) and self.objective.teacher
        return () if is_other else (parts.TEACHER, parts.CRITIC)

    @property
    def parts(self) -> Mapping[str, pathlib.Path]:
        """See `System`."""
        if not isinstance(self.objective, ContextForcingConfig) or not self.objective.teacher:
            return {}
        folder = hub_folders.find(self.objective.teacher)
        stages.check_teacher(self.objective, folder)
        return dict.fromkeys((parts.TEACHER, parts.CRITIC), folder)

    @property
    def loss_takes_ema(self) -> bool:
        """See `System`: the EMA is the target of consistency distillation."""
        return isinstance(self.objective, ConsistencyConfig)

    def network(self, rngs: nnx.Rngs) -> HunyuanTransformer:
        """See `LatentVideoSystem`."""
        return HunyuanTransformer(self.model_config, rngs=rngs)

    def init_training(self, rngs: nnx.Rngs) -> HunyuanTransformer:
        """See `System`: with the teacher of a distillation."""
        if not isinstance(self.objective, stages.Taught):
            return self.init(rngs)
        own = dataclasses.replace(self.model_config, param_dtype=jnp.dtype(self.objective.teacher_dtype))
        model = parts.attach(self.init(rngs), teacher=HunyuanTransformer(own, rngs=rngs))
        if isinstance(self.objective, ContextForcingConfig):
            parts.attach(model, critic=self.network(rngs))
        return model

    def init_evaluation(self, rngs: nnx.Rngs) -> HunyuanTransformer:
        """See `System`: a student of consistency is compared with its teacher; a critic is not evaluated."""
        return self.init_training(rngs) if isinstance(self.objective, ConsistencyConfig) else self.init(rngs)

    @property
    def trained_frames(self) -> int:
        """Latent frames of a training example that pass through the network together."""
        if not isinstance(self.objective, BidirectionalConfig):
            return self.clip.window_frames
        assert self.rollouts is not None
        return self.rollouts.frames

    def step_tokens(self, global_batch: int) -> int:
        """See `System`; text and image conditioning do not count."""
        return global_batch * self.trained_frames * self.tokens_per_frame

    def attention_calls(self) -> list[base.AttentionCall]:
        """See `System`: the video tokens of a window follow those of its text."""
        clip, model = self.clip, self.model_config
        chunk, prefix = (
            clip.chunk_frames * self.tokens_per_frame,
            clip.text_tokens + clip.glyph_tokens + clip.vision_tokens,
        )
        tokens = self.trained_frames * self.tokens_per_frame
        is_causal = not isinstance(self.objective, BidirectionalConfig)
        return [
            base.AttentionCall(
                name="video",
                implementation=model.attention,
                mask=ChunkCausal(chunk, prefix) if is_causal else None,
                key_mask=True,
                lengths=(tokens, prefix + tokens),
                heads=model.num_heads,
                head_dim=model.head_dim,
                dtype=model.dtype,
            )
        ]

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""
        clip, model = self.clip, self.model_config
        F, size = clip.window_frames, (*clip.latent_size, model.channels)

        def spec(dtype: Any, *shape: int, frames: bool = False) -> records.ArraySpec:
            axes = ("batch", *(("frames",) if frames else ()), *([None] * (len(shape) - int(frames))))
            return records.ArraySpec((global_batch, *shape), dtype, axes)

        frames = {
            "latent": spec(jnp.bfloat16, F, *size, frames=True),
            "w2c": spec(np.float32, F, 4, 4, frames=True),
            "intrinsics": spec(np.float32, F, 3, 3, frames=True),
            "action": spec(np.int32, F, frames=True),
            "is_memory": spec(np.bool_),
        }
        specs = {
            "image_cond": spec(jnp.bfloat16, 1, *size),
            "text_states": spec(jnp.bfloat16, clip.text_tokens, model.text_dim),
            "text_mask": spec(np.bool_, clip.text_tokens),
            "vision_states": spec(jnp.bfloat16, clip.vision_tokens, model.vision_dim),
        }
        if model.glyph_dim is not None:
            specs["glyph_states"] = spec(jnp.bfloat16, clip.glyph_tokens, model.glyph_dim)
            specs["glyph_mask"] = spec(np.bool_, clip.glyph_tokens)
        if self._has_negative_text:
            specs["negative_states"], specs["negative_mask"] = specs["text_states"], specs["text_mask"]
        if self.rollouts is not None:
            return stages.rollout_spec(self.rollouts, model.channels, spec, specs)
        return frames | specs

    @property
    def _has_negative_text(self) -> bool:
        return isinstance(self.objective, stages.Taught) and self.objective.teacher_guidance != 1

    def manifest_expectations(self) -> dict[str, Any]:
        """See `LatentVideoSystem`."""
        clip, model = self.clip, self.model_config
        return {
            "arrays": ("latent", "image_cond", "w2c", "intrinsics", "action", "vision_states", "prompt"),
            "latent_shape": [*clip.latent_size, model.channels],
            "text_encoder.dim": model.text_dim,
            "vision_encoder.tokens": clip.vision_tokens,
            "vision_encoder.dim": model.vision_dim,
            **({} if model.glyph_dim is None else {"glyph_encoder.dim": model.glyph_dim}),
        }

    def transform(self, store: text_stores.TextStore, global_batch: int) -> grain.transforms.RandomMap:
        """See `LatentVideoSystem`."""
        shared: dict[str, Any] = {"points": self.points(), "text_store": store, "global_batch": global_batch}
        shared["with_negative"] = self._has_negative_text
        if self.rollouts is not None:
            return rollout_data.SampleRollout(self.rollouts, **shared)
        return data.SampleWindow(self.clip, **shared)

    def loss(
        self, model: nnx.Module, batch: objective.Batch, key: jax.Array, ema_model: nnx.Module | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; `ema_model` is the model with EMA weights if `loss_takes_ema`."""
        assert isinstance(model, HunyuanTransformer)
        chunk, cfg = self.clip.chunk_frames, self.objective
        if isinstance(cfg, ConsistencyConfig):
            # In an evaluation the weights are the EMA.
            target = model if ema_model is None else ema_model
            assert isinstance(target, HunyuanTransformer)
            return self._distillation_loss(model, target, batch, self._draws(batch, key, cfg), cfg)
        if isinstance(cfg, ContextForcingConfig):
            draws = self._rollout_draws(batch, key, cfg)
            return context_forcing.loss(model, batch, draws, cfg, sample=self.sample, size=chunk)
        if isinstance(cfg, ShortcutConfig):
            return shortcut.loss(model, batch, self._shortcut_draws(batch, key, cfg), cfg, chunk_frames=chunk)
        if isinstance(cfg, BidirectionalConfig):
            return bidirectional_objective.loss(model, batch, self._bidirectional_draws(batch, key, cfg), cfg)
        drawn = objective.draw(key, batch["latent"].shape, chunk, cfg)
        return objective.loss(model, batch, drawn, chunk_frames=chunk, shift=cfg.shift, sigma_floor=cfg.sigma_floor)

    def held_out_loss(
        self, model: nnx.Module, batch: objective.Batch, key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; all chunks but the context of memory samples have the time `level`.

        In a consistency distillation it is the nearest time of the teacher, and the student is its own target. In
        context forcing it is the noise level of the scores. Shortcut training is measured by flow matching alone.
        """
        assert isinstance(model, HunyuanTransformer)
        chunk, cfg = self.clip.chunk_frames, self.objective
        if isinstance(cfg, ConsistencyConfig):
            drawn = self._draws(batch, key, cfg)
            drawn = drawn._replace(step=jnp.full_like(drawn.step, distillation.nearest_step(level, cfg)))
            return self._distillation_loss(model, model, batch, drawn, cfg)
        if isinstance(cfg, ContextForcingConfig):
            scored = self._rollout_draws(batch, key, cfg, level)
            return context_forcing.loss(model, batch, scored, cfg, sample=self.sample, size=chunk)
        if isinstance(cfg, BidirectionalConfig):
            windows = self._bidirectional_draws(batch, key, cfg)
            windows = windows._replace(level=jnp.full_like(windows.level, level))
            return bidirectional_objective.loss(model, batch, windows, dataclasses.replace(cfg, sigma_floor=0.0))
        if isinstance(cfg, ShortcutConfig):
            steps = self._shortcut_draws(batch, key, cfg)
            return shortcut.flow_loss(model, batch, steps.window, jnp.full_like(steps.u, level), chunk)
        shift = cfg.shift
        draws = objective.draw(key, batch["latent"].shape, chunk, cfg)
        draws = draws._replace(u=jnp.full_like(draws.u, objective.unit_time(level, shift)), context=None, own=None)
        loss, clean = objective.predict(model, batch, draws, chunk_frames=chunk, shift=shift)
        return loss, {base.PREDICTION: clean}

    def _draws(self, batch: objective.Batch, key: jax.Array, cfg: ConsistencyConfig) -> distillation.Draws:
        shape = batch["latent"].shape
        return distillation.draw(key, shape, self.clip.chunk_frames, cfg, context_time=self.sample.context_time)

    def _shortcut_draws(self, batch: objective.Batch, key: jax.Array, cfg: ShortcutConfig) -> shortcut.Draws:
        shape = batch["latent"].shape
        return shortcut.draw(key, shape, self.clip.chunk_frames, cfg, context_time=self.sample.context_time)

    def _bidirectional_draws(
        self, batch: objective.Batch, key: jax.Array, cfg: BidirectionalConfig
    ) -> bidirectional_objective.Draws:
        return bidirectional_objective.draw(key, batch, cfg, context_time=self.sample.context_time)

    @property
    def critic_loss(self) -> base.CriticLoss | None:
        """See `System`."""
        cfg = self.objective
        if not isinstance(cfg, ContextForcingConfig):
            return None
        options: dict[str, Any] = {"sample": self.sample, "size": self.clip.chunk_frames}
        return lambda model, batch, key: context_forcing.critic_loss(
            model, batch, self._rollout_draws(batch, key, cfg), cfg, **options
        )

    def _rollout_draws(
        self, batch: objective.Batch, key: jax.Array, cfg: ContextForcingConfig, level: jax.Array | None = None
    ) -> context_forcing.Draws:
        assert self.rollouts is not None
        rows, _, *latent = batch["latent"].shape
        shape = (rows, self.rollouts.rollout_frames, *latent)
        return context_forcing.draw(key, shape, self.sample.num_steps, cfg, level)

    def _distillation_loss(
        self,
        model: HunyuanTransformer,
        target: HunyuanTransformer,
        batch: objective.Batch,
        draws: distillation.Draws,
        cfg: ConsistencyConfig,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return distillation.loss(model, target, batch, draws, cfg, chunk_frames=self.clip.chunk_frames)

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """See `System`; the formula is in `models/hunyuan/flops.py`.

        Forward and backward pass count, with the padding of the text; recomputation and the optimizer do not. A
        distillation adds passes without a gradient: of the EMA, and of the teacher, twice with guidance. Own errors
        are one such pass, and shortcuts two for some examples. Context forcing has rollouts, scores, and the updates of
        the critic.
        """
        clip = self.clip

        def forward(frames: int, chunk_frames: int | None) -> Flops:
            return flops.forward_flops(
                self.model_config,
                frames=frames,
                tokens_per_frame=self.tokens_per_frame,
                text_tokens=clip.text_tokens,
                glyph_tokens=clip.glyph_tokens,
                vision_tokens=clip.vision_tokens,
                chunk_frames=chunk_frames,
            )

        own = {name: count for name, count in (sizes or {}).items() if name not in (parts.TEACHER, parts.CRITIC)}
        trained = trained_share(own or None)
        cfg = self.objective
        # The chunk of a distillation follows its context, all of whose frames attend to each other.
        causal = clip.chunk_frames if isinstance(cfg, objective.ObjectiveConfig) else clip.memory_frames
        window = forward(self.trained_frames, None if isinstance(cfg, BidirectionalConfig) else causal)
        step = training(window, trained)
        if isinstance(cfg, objective.ObjectiveConfig) and cfg.own_errors:
            step += window.total
        if isinstance(cfg, ShortcutConfig):
            step += 2 * window.total / cfg.consistent
        if isinstance(cfg, ConsistencyConfig):
            step += (2 if cfg.teacher_guidance == 1 else 3) * window.total
        if isinstance(cfg, ContextForcingConfig) and self.rollouts is not None:
            updates = run_config.value_at(self.config, "critic.updates", optimizers.CriticConfig.updates)
            scored = forward(self.rollouts.frames, clip.chunk_frames if cfg.score == "autoregressive" else None)
            # A rollout counts as a pass of the window for each chunk: its context once, and its denoising steps.
            step = cfg.chunks * (step + (1 + updates) * window.total)
            step += (2 if cfg.teacher_guidance == 1 else 3) * scored.total + updates * training(scored, 1.0)
        return global_batch * step

    def controls(self, pose: str | None, windows: int | None, length: str | None = None) -> list[results.Action]:
        """Return one action per chunk for `Session.step`, from a pose string or the name of a JSON file of poses.

        Raises:
          UserError: the string or the file is invalid, or its latents do not fill whole chunks and `length` is None.
        """
        if pose is None or windows is not None:
            raise errors.UserError("the model needs a camera path: give --pose 'w-3, right-4', and no --windows")
        is_file = trajectories.is_file(pose)
        path = trajectories.read(pathlib.Path(pose)) if is_file else pose_strings.path(pose, self.units)
        size, unit = self.chunk_frames, "latents (the first frame is one)"
        latents = lengths.whole(len(path.action), size, length, where=f"--pose {pose}", unit=unit, chunk="chunk")
        path = pose_strings.resized(path, latents)
        chunks = rollout.split(Controls(path.action, path.w2c, path.intrinsics), size)
        return [
            results.Action(control=chunk, name=rollout.action_names(chunk.action[int(i == 0) :]))
            for i, chunk in enumerate(chunks)
        ]

    @property
    def decodes_apart(self) -> bool:
        """See `LiveSystem`: a chunk is conditioned on latents."""
        return True

    def live_keys(self) -> Sequence[live.Key]:
        """See `LiveSystem`."""
        return live.CAMERA_KEYS

    def held(self, keys: Sequence[str]) -> results.Action:
        """See `LiveSystem`."""
        name = live.joined(keys)
        return results.Action(control=name, name=name)

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """See `System`: the mesh must split the frames of a chunk into equal parts."""
        sequence = mesh.shape["sequence"]
        if self.chunk_frames % sequence:
            raise errors.UserError(
                f"the mesh has sequence={sequence}, which does not divide the {self.chunk_frames} latent frames of a "
                "chunk: choose a divisor of it"
            )

    def session(self, model: HunyuanTransformer, encoders: Encoders, *, retrieve: bool = True) -> Session:
        """See `VideoSystem`; `retrieve=False` disables memory retrieval."""
        latents = SESSIONS[self.sample.mode](
            model, sample=self.sample, memory_config=self.memory, points=self.points(), retrieve=retrieve
        )
        ratio, (rows, columns) = encoders.autoencoder.spatial_ratio, self.patch
        sizes = frame_sizes.FrameSizes(
            current=encoders.image_size, unit=(columns * ratio, rows * ratio), ratio=ratio, tiers=self.tiers
        )
        return Session(latents, encoders, clip=self.clip, units=self.units, sizes=sizes)

    def make_sample(
        self, model: HunyuanTransformer, encoders: Encoders, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """See `System`: the rollout of `config.sample`."""
        return rollout.sample(self.session(model, encoders), config)

    def sample_prompt(
        self,
        model: HunyuanTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        prompt: results.Prompt,
    ) -> results.Comparison:
        """See `System`: the path of `make_sample` with another caption, and another first image if there is one."""
        return rollout.sample(self.session(model, encoders), config, prompt)

    def evaluate(
        self,
        model: HunyuanTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """See `System`: PSNR of rollouts along held-out episodes, and of revisits."""
        latest_only = self.session(model, encoders, retrieve=False)
        return evaluation.evaluate(self.session(model, encoders), latest_only, config, options, console)

    def points(self) -> np.ndarray:
        """Return the Monte-Carlo points of memory selection."""
        return memory.monte_carlo_points(self.clip.memory_points, POINTS_SEED, self.clip.memory_radius)
