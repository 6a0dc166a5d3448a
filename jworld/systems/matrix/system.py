"""The Matrix: model, batch, loss and session of all four stages from one config.

All stages share one network. Stage 1 trains adapters, stage 2 the control blocks, and stage 3 all parameters on windows
with a timestep per frame. Stage 4 distills the result. `config.optimizer.trainable` selects the parameters that train,
`config.loss.kind` the objective.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from jworld.cameras import driving, lengths
from jworld.data import records
from jworld.data.records import text_store as text_stores
from jworld.encoders import autoencoders
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.autoencoders.cogvideox import CogVideoXAutoencoder
from jworld.models.cogvideox import flops
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.systems import adapters, base, described, latent_video, live, losses, matching, options
from jworld.systems.matrix import (
    data,
    distillation,
    evaluation,
    objective,
    stream_evaluation,
    stream_matching,
    streaming,
)
from jworld.systems.matrix.objective import ObjectiveConfig
from jworld.systems.matrix.sampling import SampleConfig
from jworld.systems.matrix.session import ClipSession, Controls
from jworld.systems.matrix.stream_matching import MatchingConfig
from jworld.training import optimizers, parts, score_losses
from jworld.utils import config as run_config
from jworld.utils import errors, notes

#: Recipes that train first on a data set: with the autoencoder of the shipped base, another small one, or CogVideoX'.
SHIPPED, TINY, PUBLISHED = "configs/matrix_lora.py", "configs/matrix_lora.py:base", "configs/matrix_lora.py:2b"
#: Keys of a stream: the letters of its tokens, and arrows. Without a gear it is N.
LIVE_KEYS = (
    live.Key(name="D", label="drive", codes=("KeyD", "ArrowUp"), opposite="B", axis="y0-"),
    live.Key(name="B", label="reverse", codes=("KeyB", "ArrowDown"), opposite="D", axis="y0+"),
    live.Key(name="N", label="neutral", codes=("KeyN",)),
    live.Key(name="L", label="left", codes=("KeyL", "ArrowLeft"), opposite="R", axis="x0-"),
    live.Key(name="R", label="right", codes=("KeyR", "ArrowRight"), opposite="L", axis="x0+"),
)


class Matrix(latent_video.LatentVideoSystem[CogVideoXTransformer, data.ClipConfig]):
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    fps: ClassVar[float] = 16.0
    autoencoder: ClassVar[str] = CogVideoXAutoencoder.family
    steering: ClassVar[str] = "--actions"
    copies: ClassVar[tuple[str, ...]] = (parts.TEACHER, parts.CRITIC)

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.model_config = self.read(CogVideoXConfig, "model", adapters.network(config))
        self.objective = self.read(losses.chosen(config, distillation.LOSSES), "loss")
        self.clip = self.read(data.ClipConfig, "data.clip")
        self.sample = self.read(SampleConfig, "sample.rollout")
        self.patch = (self.model_config.patch_size, self.model_config.patch_size)
        self.alphas = self.objective.alphas_cumprod()
        self._check_fit(config.mesh.sequence)
        if self.distills:
            distillation.check(config, self.objective, self.sample, frames=self.clip.window_frames)
        self.open_records(min_frames=self.clip.least_latents, fps=self.sample.fps)

    @property
    def flag_keys(self) -> Mapping[str, str]:
        """See `VideoSystem`: a model with a guidance embedding receives the scale as an input."""
        keys = dict(super().flag_keys)
        if self.model_config.guidance_dim is not None:
            keys[options.GUIDANCE] = f"{options.ROLLOUT}.guidance_embedding_scale"
        return keys

    @property
    def has_negative_prompt(self) -> bool:
        """See `VideoSystem`."""
        return self.sample.guidance != 1

    @property
    def start_frames(self) -> int:
        """See `VideoSystem`: the frames of a stream's first window."""
        is_stream = self.sample.mode == "stream"
        return streaming.start_frames(self.sample, mid_clip=self.clip.start == "middle") if is_stream else 1

    def start_note(self, frames: int) -> str:
        """See `VideoSystem`: one image is a still world, but a video should be long enough."""
        if not 1 < frames < self.start_frames:
            return ""
        return f"it has {frames} of the {self.start_frames} frames of a window, so the first one is repeated before it"

    @staticmethod
    def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
        """See `SystemType`: records made from The Matrix' input format, or of videos with CogVideoX' autoencoder.

        The first stage comes first; the others continue it with the same records.
        """
        arrays, family = manifest["arrays"], manifest["autoencoder"]["family"]
        ours = manifest["source"] == "matrix" or (
            manifest["source"] == "videos" and family == CogVideoXAutoencoder.family
        )
        if not ours or "prompt" not in arrays:
            return None
        is_tiny, size = family in autoencoders.OWN_FAMILIES, tuple(manifest["latent_shape"][:2])
        # Small latents are not divided into tokens of 2 x 2.
        odd = {"model.patch_size": 1} if any(length % 2 for length in size) else {}
        recipe = PUBLISHED
        if is_tiny:
            recipe = SHIPPED if matching.continues(SHIPPED, manifest) else TINY
        needed = {
            **({"data.recording.source": ""} | odd if is_tiny else {}),
            "data.clip.latent_size": size,
            "data.clip.window_frames": matching.window(manifest, recipe),
            "data.clip.posterior": "logvar" in arrays,
            "model.channels": manifest["latent_shape"][2],
            "model.text_dim": manifest["text_encoder"]["dim"],
        }
        return matching.arguments(recipe, directory, needed)

    @property
    def sample_name(self) -> str:
        """See `System`."""
        return self.sample.mode

    @property
    def needs_image(self) -> bool:
        """See `VideoSystem`: a stream continues an image, a clip is generated from a caption alone."""
        return self.sample.mode == "stream"

    @property
    def distills(self) -> bool:
        """True for stage 4, which has a teacher."""
        return self.objective.kind in ("consistency", "distribution_matching")

    @property
    def loss_takes_ema(self) -> bool:
        """See `System`."""
        cfg = self.objective
        return isinstance(cfg, ObjectiveConfig) and cfg.kind == "consistency" and cfg.target == "ema"

    @property
    def window_frames(self) -> int:
        """Latent frames that the network receives: those of an example, or of a window that moves along it."""
        cfg, frames = self.objective, self.clip.window_frames
        return frames - cfg.slides * self.sample.window_frames if isinstance(cfg, MatchingConfig) else frames

    def step_tokens(self, global_batch: int) -> int:
        """See `System`."""
        return global_batch * self.window_frames * self.tokens_per_frame

    def _check_fit(self, sequence: int) -> None:
        model, clip = self.model_config, self.clip
        self.check_patches()
        if sequence > 0 and self.tokens_per_frame % sequence:
            raise errors.UserError(
                f"config.mesh.sequence is {sequence}, which does not divide the {self.tokens_per_frame} tokens of a "
                "latent frame: choose a divisor of it"
            )
        if bool(clip.controls) != (model.control_dim is not None):
            raise errors.UserError(
                f"config.data.clip.controls is {clip.controls!r} but config.model.control_dim is {model.control_dim}: "
                "set both, or '' and None"
            )
        if self.objective.kind in ("windows", "consistency") and (clip.window_frames - 1) % self.objective.groups:
            raise errors.UserError(
                f"config.data.clip.window_frames is {clip.window_frames}, expected one more than a multiple of "
                f"config.loss.groups {self.objective.groups}"
            )

    def network(self, rngs: nnx.Rngs) -> CogVideoXTransformer:
        """See `LatentVideoSystem`."""
        return CogVideoXTransformer(self.model_config, schedule=self.objective.schedule, rngs=rngs)

    def attention_calls(self) -> list[base.AttentionCall]:
        """See `System`: text and video tokens in one sequence."""
        model = self.model_config
        tokens = model.text_tokens + self.window_frames * self.tokens_per_frame
        return [
            base.AttentionCall(
                name="text and video",
                implementation=model.attention,
                lengths=(tokens, tokens),
                heads=model.num_heads,
                head_dim=model.head_dim,
                dtype=model.dtype,
            )
        ]

    def init_training(self, rngs: nnx.Rngs) -> CogVideoXTransformer:
        """See `System`."""
        if not self.distills:
            return self.init(rngs)
        model = self._with_teacher(rngs)
        return parts.attach(model, critic=self.network(rngs)) if self.critic_loss else model

    def init_evaluation(self, rngs: nnx.Rngs) -> CogVideoXTransformer:
        """See `System`: a student is compared with its teacher; a critic is not evaluated."""
        return self._with_teacher(rngs) if self.distills else self.init(rngs)

    def _with_teacher(self, rngs: nnx.Rngs) -> CogVideoXTransformer:
        # The teacher is the same network without a guidance embedding.
        own = dataclasses.replace(self.model_config, guidance_dim=None, param_dtype=self.objective.teacher_dtype)
        teacher = CogVideoXTransformer(own, schedule=self.objective.schedule, rngs=rngs)
        return parts.attach(self.network(rngs), teacher=teacher)

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""
        clip, model = self.clip, self.model_config
        latent = (global_batch, clip.window_frames, *clip.latent_size, model.channels)
        states = (global_batch, model.text_tokens, model.text_dim)
        specs = {
            "latent": records.ArraySpec(latent, jnp.bfloat16, ("batch", None, None, None, None)),
            "text_states": records.ArraySpec(states, jnp.bfloat16, ("batch", None, None)),
        }
        if model.control_dim is not None:
            shape = (global_batch, clip.window_frames, model.control_dim)
            specs["control"] = records.ArraySpec(shape, np.float32, ("batch", None, None))
        if self.distills:
            specs["null_states"] = specs["text_states"]
        return specs

    def manifest_expectations(self) -> dict[str, Any]:
        """See `LatentVideoSystem`."""
        return {
            "arrays": self.clip.arrays,
            "latent_shape": [*self.clip.latent_size, self.model_config.channels],
            "text_encoder.dim": self.model_config.text_dim,
            **({"controls": list(driving.TOKENS)} if self.clip.controls == "tokens" else {}),
        }

    def transform(self, store: text_stores.TextStore, global_batch: int) -> data.TakeLatents:
        """See `LatentVideoSystem`."""
        return data.TakeLatents(
            self.clip,
            text_store=store,
            text_tokens=self.model_config.text_tokens,
            table=self.control_table(),
            null_states=self.distills,
        )

    def control_table(self) -> np.ndarray | None:
        """Return `data.control_table` of the config, or None for a model without control."""
        dim = self.model_config.control_dim
        return None if dim is None else data.control_table(self.clip.control_states, dim)

    def loss(
        self, model: nnx.Module, batch: objective.Batch, key: jax.Array, ema_model: nnx.Module | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; `ema_model` is the model with EMA weights if `loss_takes_ema`."""
        assert isinstance(model, CogVideoXTransformer)
        cfg = self.objective
        if isinstance(cfg, MatchingConfig):
            return score_losses.student_loss(model, self._matching(batch, key, cfg))
        if self.distills:
            target = model if ema_model is None else ema_model
            assert isinstance(target, CogVideoXTransformer)
            return distillation.loss(model, target, batch, key, cfg, self.alphas)[0], {}
        draws = objective.draw(key, batch["latent"].shape, cfg)
        example = objective.example_of(batch)
        return objective.velocity_loss(model, example, draws, self.alphas, sigma_floor=cfg.sigma_floor), {}

    @property
    def critic_loss(self) -> base.CriticLoss | None:
        """See `System`."""
        cfg = self.objective
        if not isinstance(cfg, MatchingConfig):
            return None
        return lambda model, batch, key: score_losses.critic_loss(model, self._matching(batch, key, cfg))

    def _matching(
        self, batch: objective.Batch, key: jax.Array, cfg: MatchingConfig, level: jax.Array | None = None
    ) -> stream_matching.StreamMatching:
        return stream_matching.matching(batch, key, cfg, self.sample, self.alphas, level)

    def held_out_loss(
        self, model: nnx.Module, batch: objective.Batch, key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; `level` is the share of all timesteps, and for windows of the timesteps of each noise group."""
        assert isinstance(model, CogVideoXTransformer)
        cfg = self.objective
        if isinstance(cfg, MatchingConfig):
            return score_losses.student_loss(model, self._matching(batch, key, cfg, level))
        if self.distills:
            loss, clean = distillation.loss(model, model, batch, key, cfg, self.alphas, level)
            return loss, {base.PREDICTION: clean}
        example = objective.example_of(batch)
        draws = objective.draw(key, example.latents.shape, cfg, level)
        loss = objective.velocity_loss(model, example, draws, self.alphas, sigma_floor=cfg.sigma_floor)
        return loss, {base.PREDICTION: objective.predict(model, example, draws, self.alphas)}

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """See `System`; the formula is in `models/cogvideox/flops.py`.

        Forward and backward pass count; recomputation and the optimizer do not. Consistency adds three passes without
        a gradient: two of the teacher, for guidance, and one of the target. Distribution matching adds rollouts,
        scores, and the updates of the critic.
        """
        height, width = self.clip.latent_size
        sample = flops.forward_flops(
            self.model_config,
            frames=self.window_frames,
            height=height,
            width=width,
            control=bool(self.clip.controls),
            frame_times=self.objective.kind != "clip",
        )
        trained = trained_share(sizes, *(name for name in sizes or () if name not in self.copies))
        step, cfg = training(sample, trained), self.objective
        if isinstance(cfg, MatchingConfig):
            updates: int = run_config.value_at(self.config, "critic.updates", optimizers.CriticConfig.updates)
            steps = self.sample.num_steps / cfg.groups
            # The last step of the critic's rollouts is a pass of its own.
            rollout = (cfg.slides * steps + (steps - 1) / 2) * sample.total
            step += rollout + (2 if cfg.teacher_guidance == 1 else 3) * sample.total
            return global_batch * (step + updates * (rollout + sample.total + training(sample, 1.0)))
        return global_batch * (step + 3 * self.distills * sample.total)

    def controls(self, actions: str | None, windows: int | None, length: str | None = None) -> list[results.Action]:
        """Return one action per session step.

        Args:
          actions: driving tokens for a model with control, such as "D*3,DR*2", else None. A clip has a token for every
            latent after the first, and the last one is held; with as many tokens as latents, the first one belongs to
            the first latent, as in the original. A stream has a token for every latent.
          windows: number of windows of a stream without control; None or 1 for other models.
          length: see `VideoSystem`.

        Raises:
          UserError: the tokens are invalid, too many for a clip, or do not fill whole windows of a stream.
        """
        if self.sample.mode == "stream":
            return self._stream_controls(actions, windows, length)
        if windows not in (None, 1):
            raise errors.UserError(f"--windows is {windows}, but the model generates single clips: leave it out")
        if self.model_config.control_dim is None:
            if actions is not None:
                raise errors.UserError(
                    "--actions: the model has no control, it generates clips from a caption: leave it out, or choose a "
                    "checkpoint of stage 2"
                )
            return [results.Action(control=None, name="clip")]
        if actions is None:
            raise errors.UserError(
                "--actions is missing: the model needs driving tokens, such as --actions 'D*3,DR*2' or --actions random"
            )
        filled = self._clip_tokens(actions, length)
        return [results.Action(control=Controls(filled), name=driving.named(filled[1:]))]

    def _clip_tokens(self, actions: str, length: str | None) -> tuple[str, ...]:
        """Return the tokens of all latents of a clip."""
        latents = self.clip.window_frames
        tokens, shown = driving.parse(actions, random_tokens=latents - 1), driving.shortened(actions)
        if length == "cut" and len(tokens) > latents:
            notes.note(f"--actions {shown} has {len(tokens)} tokens: those after the {latents} latents are left out")
            tokens = tokens[:latents]
        if len(tokens) > latents:
            raise errors.UserError(
                f"--actions {shown} has {len(tokens)} latents, expected at most {latents - 1}, a clip without its "
                f"first latent, or {latents} with it: remove {len(tokens) + 1 - latents}, or give --length cut"
            )
        if len(tokens) == latents:
            notes.note(
                f"--actions {shown} has {latents} tokens for {latents} latents: the first one belongs to the first "
                "latent, as in the original"
            )
            return tokens
        return driving.filled((tokens[0], *tokens), latents)

    def _stream_controls(self, actions: str | None, windows: int | None, length: str | None) -> list[results.Action]:
        if self.model_config.control_dim is None:
            if actions is not None:
                raise errors.UserError("--actions: the model has no control: leave it out, and give --windows")
            count = lengths.check_windows(windows)
            return [results.Action(control=Controls(()), name=f"window {i + 1}") for i in range(count)]
        if actions is None or windows is not None:
            raise errors.UserError("the model needs driving tokens: give --actions 'D*6,DR*2', and no --windows")
        return streaming.script(driving.parse(actions), self.sample, length)

    @property
    def decodes_apart(self) -> bool:
        """See `LiveSystem`: a window has the latents of the one before."""
        return True

    def live_keys(self) -> Sequence[live.Key]:
        """See `LiveSystem`: the letters of the driving tokens."""
        if self.sample.mode != "stream" or self.model_config.control_dim is None:
            raise errors.UserError(
                "the checkpoint is of a stage of The Matrix that is not steered while it runs: it makes whole clips, "
                "or has no control: give a --checkpoint of stage 3 or 4"
            )
        return LIVE_KEYS

    def held(self, keys: Sequence[str]) -> results.Action:
        """See `LiveSystem`: one token that is held."""
        gear = next((key for key in keys if key in "DB"), "N")
        token = gear + "".join(key for key in keys if key in "LR")
        return results.Action(control=token, name=live.joined(keys))

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """See `System`: the mesh must split the tokens of a frame into equal parts."""
        self._check_fit(mesh.shape["sequence"])

    def generation(self, model: CogVideoXTransformer, mesh: jax.sharding.Mesh) -> described.Generation:
        """See `PlannedSystem`; the values of control vectors do not matter, so their file may be absent."""
        if not self.clip.control_states:
            return super().generation(model, mesh)
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.data.clip.control_states = ""
        return Matrix(config).generation(model, mesh)

    def session(self, model: CogVideoXTransformer, encoders: Encoders) -> ClipSession | streaming.StreamSession:
        """See `VideoSystem`: clips or an endless stream, by `config.sample.rollout.mode`."""
        return (
            self._stream(model, encoders, self.sample) if self.sample.mode == "stream" else self._clips(model, encoders)
        )

    def _clips(self, model: CogVideoXTransformer, encoders: Encoders) -> ClipSession:
        shape = (self.clip.window_frames, *self.clip.latent_size, self.model_config.channels)
        return ClipSession(
            model, encoders, sample=self.sample, shape=shape, table=self.control_table(), alphas=self.alphas
        )

    def _stream(self, model: CogVideoXTransformer, encoders: Encoders, sample: SampleConfig) -> streaming.StreamSession:
        return streaming.StreamSession(
            model,
            encoders,
            sample=sample,
            shape=(*self.clip.latent_size, self.model_config.channels),
            table=self.control_table(),
            alphas=self.alphas,
            mid_clip=self.clip.start == "middle",
        )

    def make_sample(
        self, model: CogVideoXTransformer, encoders: Encoders, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """See `System`: a clip or stream with the caption and controls of a held-out recording."""
        if self.sample.mode == "stream":
            return stream_evaluation.sample(self._stream(model, encoders, self.sample), config)
        return evaluation.sample(self._clips(model, encoders), config, steered=bool(self.clip.controls))

    def sample_prompt(
        self,
        model: CogVideoXTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        prompt: results.Prompt,
    ) -> results.Comparison:
        """See `System`: the sample of `make_sample` with another caption, and for streams another first image."""
        if self.sample.mode == "stream":
            return stream_evaluation.sample(self._stream(model, encoders, self.sample), config, prompt)
        return evaluation.sample(self._clips(model, encoders), config, steered=bool(self.clip.controls), prompt=prompt)

    def evaluate(
        self,
        model: CogVideoXTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """See `System`: PSNR of restored clips or of streams, and for a student the distance from its teacher."""
        if self.sample.mode == "clip":
            clips = self._clips(model, encoders)
            return evaluation.evaluate(clips, config, options, console, steered=bool(self.clip.controls))
        stream = self._stream(model, encoders, self.sample)
        if not parts.has(model, parts.TEACHER):
            return stream_evaluation.evaluate(stream, config, options, console)
        samples = distillation.compared(self.sample, self.objective)
        sessions = {
            name: self._stream(
                parts.of(model, parts.TEACHER) if name in distillation.OF_TEACHER else model, encoders, each
            )
            for name, each in samples.items()
        }
        teacher = sessions.pop(distillation.MANY_STEPS)
        return stream_evaluation.evaluate(stream, config, options, console, teacher=teacher, students=sessions)
