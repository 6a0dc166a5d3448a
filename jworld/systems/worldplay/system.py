"""The WorldPlay system: model, batch, loss and session from one config."""

import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from jworld.cameras import memory, pose_strings, trajectories
from jworld.data import records
from jworld.data.records import text_store as text_stores
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan import flops
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.precompute import latent_records
from jworld.systems import adapters, checks
from jworld.systems.worldplay import data, evaluation, objective, rollout
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.systems.worldplay.bidirectional import BidirectionalSession
from jworld.systems.worldplay.latents import LatentSession, MemoryConfig, SampleConfig
from jworld.systems.worldplay.session import Session
from jworld.utils import config as run_config
from jworld.utils import errors

# Seed of the Monte-Carlo points of memory selection; the points are a constant of the method, not of a run.
POINTS_SEED = 0

SESSIONS: dict[str, type[LatentSession]] = {
    "autoregressive": AutoregressiveSession,
    "bidirectional": BidirectionalSession,
}


class WorldPlay:
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    sample_name: ClassVar[str] = "rollout"
    #: It shows videos.
    makes_text: ClassVar[bool] = False
    #: The option of `python -m jworld.generate` that steers the model.
    steering: ClassVar[str] = "--pose"
    #: Options of `python -m jworld.evaluate` that mean nothing here.
    unused_options: ClassVar[tuple[str, ...]] = results.QUESTION_OPTIONS
    #: Videos continue a picture.
    needs_image: ClassVar[bool] = True

    def __init__(self, config: ml_collections.ConfigDict):
        self.model_config = run_config.section(HunyuanConfig, adapters.network(config), "model")
        self.objective = run_config.section(objective.ObjectiveConfig, config.loss, "loss")
        self.clip = run_config.section(data.ClipConfig, config.data.clip, "data.clip")
        self.sample = run_config.section(SampleConfig, config.sample.rollout, "sample.rollout")
        self.units = run_config.section(pose_strings.Units, config.sample.get("motion", {}), "sample.motion")
        self.lora = adapters.section(config)
        self.memory = MemoryConfig(
            chunk_frames=self.clip.chunk_frames,
            memory_frames=self.clip.memory_frames,
            temporal_context=self.clip.temporal_context,
        )
        rollout.parse_script(config.sample.actions, chunk_frames=self.chunk_frames)
        self._check_fit(config.mesh.sequence)
        self.data = latent_records.LatentRecords(
            config,
            expected=self.manifest_expectations(),
            spec=self.batch_spec(config.global_batch),
            transform=self.transform,
            min_frames=self.clip.window_frames,
        )

    def sections(self) -> dict[str, Any]:
        """The parts of the config that this system reads, by name, with every default filled in."""
        return {
            "model": self.model_config,
            "loss": self.objective,
            "data.clip": self.clip,
            "sample.rollout": self.sample,
            "sample.motion": self.units,
            **({} if self.lora is None else {"model.lora": self.lora}),
        }

    @property
    def chunk_frames(self) -> int:
        """Latent frames that a rollout makes together."""
        return SESSIONS[self.sample.mode].training_chunks * self.clip.chunk_frames

    def _check_fit(self, sequence: int) -> None:
        model, clip = self.model_config, self.clip
        if (clip.glyph_tokens > 0) != (model.glyph_dim is not None):
            raise errors.UserError(
                f"config.data.clip.glyph_tokens is {clip.glyph_tokens} but config.model.glyph_dim is "
                f"{model.glyph_dim}: set both, or 0 and None"
            )
        checks.latents_fit_patches(clip.latent_size, model.patch_size[1:])
        checks.frames_fit_mesh(clip.window_frames, sequence)

    def init(self, rngs: nnx.Rngs) -> HunyuanTransformer:
        return adapters.adapted(HunyuanTransformer(self.model_config, rngs=rngs), self.lora, rngs=rngs)

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """What one training batch holds: name -> shape, dtype, logical axes."""
        clip, model = self.clip, self.model_config
        F, size = clip.window_frames, (*clip.latent_size, model.channels)

        def spec(dtype: Any, *shape: int, frames: bool = False) -> records.ArraySpec:
            axes = ("batch", *(("frames",) if frames else ()), *([None] * (len(shape) - int(frames))))
            return records.ArraySpec((global_batch, *shape), dtype, axes)

        specs = {
            "latent": spec(jnp.bfloat16, F, *size, frames=True),
            "image_cond": spec(jnp.bfloat16, 1, *size),
            "w2c": spec(np.float32, F, 4, 4, frames=True),
            "intrinsics": spec(np.float32, F, 3, 3, frames=True),
            "action": spec(np.int32, F, frames=True),
            "is_memory": spec(np.bool_),
            "text_states": spec(jnp.bfloat16, clip.text_tokens, model.text_dim),
            "text_mask": spec(np.bool_, clip.text_tokens),
            "vision_states": spec(jnp.bfloat16, clip.vision_tokens, model.vision_dim),
        }
        if model.glyph_dim is not None:
            specs["glyph_states"] = spec(jnp.bfloat16, clip.glyph_tokens, model.glyph_dim)
            specs["glyph_mask"] = spec(np.bool_, clip.glyph_tokens)
        return specs

    def manifest_expectations(self) -> dict[str, Any]:
        """What the manifest of a data set must say for this model: dotted key -> value."""
        clip, model = self.clip, self.model_config
        return {
            "arrays": ("latent", "image_cond", "w2c", "intrinsics", "action", "vision_states", "prompt"),
            "latent_shape": [*clip.latent_size, model.channels],
            "text_encoder.dim": model.text_dim,
            "vision_encoder.tokens": clip.vision_tokens,
            "vision_encoder.dim": model.vision_dim,
            **({} if model.glyph_dim is None else {"glyph_encoder.dim": model.glyph_dim}),
        }

    def transform(self, text_store: text_stores.TextStore, global_batch: int) -> data.SampleWindow:
        """Record -> training example."""
        return data.SampleWindow(self.clip, points=self.points(), text_store=text_store, global_batch=global_batch)

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss and further metrics; everything random comes from `key`."""
        assert isinstance(model, HunyuanTransformer)
        chunk = self.clip.chunk_frames
        draws = objective.draw(key, batch["latent"].shape, chunk, self.objective)
        return objective.loss(model, batch, draws, chunk_frames=chunk, shift=self.objective.shift)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        height, width = self.clip.latent_size
        return height * width // (self.model_config.patch_size[1] * self.model_config.patch_size[2])

    def step_tokens(self, global_batch: int) -> int:
        """Video tokens of one training step; those of text and image conditioning are not counted."""
        return global_batch * self.clip.window_frames * self.tokens_per_frame

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """Useful floating-point operations of one training step, by the formula of `models/hunyuan/flops.py`.

        Forward and backward pass, padding of the text included; recomputation and the optimizer are left out. Without
        `sizes` all weights count as trained.
        """
        clip = self.clip
        sample = flops.forward_flops(
            self.model_config,
            frames=clip.window_frames,
            tokens_per_frame=self.tokens_per_frame,
            text_tokens=clip.text_tokens,
            glyph_tokens=clip.glyph_tokens,
            vision_tokens=clip.vision_tokens,
            chunk_frames=clip.chunk_frames,
        )
        return global_batch * training(sample, trained_share(sizes))

    def controls(self, pose: str | None, windows: int | None) -> list[results.Action]:
        """A pose string, or the name of a JSON file of poses -> what `Session.step` is told, chunk by chunk.

        Raises:
          UserError: the string or the file is not understood, or its latents are no whole chunks.
        """
        if pose is None or windows is not None:
            raise errors.UserError("the model is steered: give --pose, such as --pose 'w-3, right-4', and no --windows")
        is_file = pose.endswith(".json")
        path = trajectories.read(pathlib.Path(pose)) if is_file else pose_strings.path(pose, self.units)
        latents, size = len(path.action), self.chunk_frames
        if latents % size:
            raise errors.UserError(
                f"--pose {pose} has {latents} latents (the first frame is one), and {size} are made together: "
                f"add {-latents % size} latents"
            )
        chunks = rollout.split(Controls(path.action, path.w2c, path.intrinsics), size)
        return [
            results.Action(control=chunk, name=rollout.action_names(chunk.action[int(i == 0) :]))
            for i, chunk in enumerate(chunks)
        ]

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """A UserError where a mesh does not split the frames of a chunk into equal parts."""
        sequence = mesh.shape["sequence"]
        if self.chunk_frames % sequence:
            raise errors.UserError(
                f"the mesh has sequence={sequence}, which does not divide the {self.chunk_frames} latent frames that "
                f"are made together: choose a divisor of {self.chunk_frames}"
            )

    def session(self, model: HunyuanTransformer, encoders: Encoders, *, retrieve: bool = True) -> Session:
        """A rollout, chunk by chunk; `retrieve=False` turns memory retrieval off."""
        latents = SESSIONS[self.sample.mode](
            model, sample=self.sample, memory_config=self.memory, points=self.points(), retrieve=retrieve
        )
        return Session(latents, encoders, clip=self.clip, units=self.units)

    def sample_rollout(
        self, model: HunyuanTransformer, encoders: Encoders, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """The rollout of `config.sample` beside its truth."""
        return rollout.sample(self.session(model, encoders), config)

    def evaluate(
        self,
        model: HunyuanTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """WorldPlay's measures on held-out walks."""
        latest_only = self.session(model, encoders, retrieve=False)
        return evaluation.evaluate(self.session(model, encoders), latest_only, config, options, console)

    def points(self) -> np.ndarray:
        return memory.monte_carlo_points(self.clip.memory_points, POINTS_SEED)
