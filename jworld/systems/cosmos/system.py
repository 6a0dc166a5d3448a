"""The Cosmos-Predict2 Video2World system: model, batch, loss and session from one config."""

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

from jworld.cameras import actions, lengths, pose_strings, robots, trajectories
from jworld.data import records
from jworld.data.records import text_store as text_stores
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.autoencoders.wan import WanAutoencoder
from jworld.models.cosmos import flops
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.systems import adapters, base, latent_video, live, losses
from jworld.systems.cosmos import data, distillation, evaluation, hand, matching_recipe, objective
from jworld.systems.cosmos.distillation import MatchingConfig
from jworld.systems.cosmos.sampling import SampleConfig
from jworld.systems.cosmos.session import Session
from jworld.training import optimizers, parts, score_losses
from jworld.utils import config as run_config
from jworld.utils import errors, notes

#: Sizes of the published program by aspect ratio. Source: cosmos-predict2 `datasets/utils.py`.
TIERS: dict[str, dict[tuple[int, int], tuple[int, int]]] = {
    "480p": {(16, 9): (768, 432), (4, 3): (640, 480), (1, 1): (480, 480), (3, 4): (480, 640), (9, 16): (432, 768)},
    "720p": {(16, 9): (1280, 704), (4, 3): (960, 704), (1, 1): (960, 960), (3, 4): (704, 960), (9, 16): (704, 1280)},
}
#: Latent frames of a window of the models that were published for 10 frames per second.
SLOW_WINDOW = 16


class Cosmos(latent_video.LatentVideoSystem[CosmosTransformer, data.ClipConfig]):
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    tiers: ClassVar[Mapping[str, Mapping[tuple[int, int], tuple[int, int]]]] = TIERS
    named_aspects: ClassVar[bool] = True
    autoencoder: ClassVar[str] = WanAutoencoder.family
    sample_name: ClassVar[str] = "continuation"
    steering: ClassVar[str] = "--pose"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        self.model_config = self.read(CosmosConfig, "model", adapters.network(config))
        self.objective = self.read(losses.chosen(config, distillation.LOSSES), "loss")
        self.clip = self.read(data.ClipConfig, "data.clip")
        self.sample = self.read(SampleConfig, "sample.rollout")
        self.units = self.read(pose_strings.Units, "sample.motion")
        self.patch = self.model_config.patch_size[1:]
        self._check_fit(config.mesh.sequence)
        if self.distills:
            distillation.check(config, self.sample)
        self.open_records(min_frames=self.clip.window_frames, fps=self.sample.fps)

    @property
    def fps(self) -> float:
        """See `LatentVideoSystem`: 4 for actions, 10 for several cameras and the shorter of the windows, else 16."""
        if self.model_config.action_dim is not None:
            return 4.0
        return 10.0 if self.clip.views or self.clip.window_frames == SLOW_WINDOW else 16.0

    @property
    def has_negative_prompt(self) -> bool:
        """See `VideoSystem`."""
        return self.sample.rows == 2

    @property
    def start_frames(self) -> int:
        """See `VideoSystem`: pixel frames of the conditioning frames."""
        return 1 + actions.FRAMES_PER_LATENT * (self.sample.conditioning_frames - 1)

    def start_note(self, frames: int) -> str:
        """See `VideoSystem`: with fewer frames a window continues one."""
        if frames >= self.start_frames:
            return ""
        return (
            f"config.sample.rollout.conditioning_frames is {self.sample.conditioning_frames}, which are "
            f"{self.start_frames} frames of a video, so the first window continues only the last frame"
        )

    @property
    def most_latents(self) -> tuple[int, int]:
        """See `LatentVideoSystem`."""
        return self.model_config.max_size[1], self.model_config.max_size[2]

    @staticmethod
    def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
        """See `SystemType`: records made from one of Cosmos' input formats, or of videos alone."""
        return matching_recipe.train_command(manifest, directory)

    @property
    def motion_steps(self) -> int:
        """Motions per window of an action model; 0 without actions."""
        return 0 if self.model_config.action_dim is None else self.model_config.action_dim // self.clip.action_size

    def _check_fit(self, sequence: int) -> None:
        model, clip = self.model_config, self.clip
        self.check_patches()
        self.check_frames(sequence)
        if bool(clip.actions) != (model.action_dim is not None):
            raise errors.UserError(
                f"config.data.clip.actions is {clip.actions!r} but config.model.action_dim is {model.action_dim}: set "
                "both, or '' and None"
            )
        if clip.actions and self.sample.conditioning_frames != 1:
            raise errors.UserError(
                f"config.sample.rollout.conditioning_frames is {self.sample.conditioning_frames}, expected 1: a "
                "window of an action model continues one frame"
            )
        size = clip.action_size
        if clip.actions == "poses" and model.action_dim != size * (clip.window_frames - 1):
            raise errors.UserError(
                f"config.model.action_dim is {model.action_dim}, expected {size * (clip.window_frames - 1)}: {size} "
                "numbers for every latent of the window after the first"
            )
        if clip.actions and model.action_dim is not None and model.action_dim % size:
            raise errors.UserError(
                f"config.model.action_dim is {model.action_dim}, expected a multiple of the {size} numbers of an action"
            )
        self._check_views()

    def _check_views(self) -> None:
        model, clip = self.model_config, self.clip
        if bool(clip.views) != (model.views is not None):
            raise errors.UserError(
                f"config.data.clip.views is {clip.views} but config.model.views is {model.views}: set both, or () and "
                "None"
            )
        if model.views is None:
            return
        if max(clip.view_ids) >= model.views:
            raise errors.UserError(
                f"config.data.clip.view_ids is {clip.view_ids}, expected numbers below config.model.views {model.views}"
            )
        if model.view_frames != clip.window_frames:
            raise errors.UserError(
                f"config.data.clip.window_frames is {clip.window_frames}, expected config.model.view_frames "
                f"{model.view_frames}, the latent frames of one camera"
            )
        if model.action_dim is not None:
            raise errors.UserError(
                f"config.model.action_dim is {model.action_dim}, expected None: models of several cameras have none"
            )

    @property
    def cameras(self) -> tuple[str, ...]:
        """See `VideoSystem`."""
        return self.clip.views

    def check_frames(self, sequence: int) -> None:
        """See `LatentVideoSystem`; with several cameras their frames are split together."""
        frames = self.clip.cameras * self.clip.window_frames
        if self.clip.cameras == 1:
            super().check_frames(sequence)
        elif sequence > 0 and frames % sequence:
            raise errors.UserError(
                f"config.mesh.sequence is {sequence}, which does not divide {frames}, the latent frames of "
                f"{self.clip.cameras} cameras: choose a divisor of it"
            )

    def step_tokens(self, global_batch: int) -> int:
        """See `System`."""
        return self.clip.cameras * super().step_tokens(global_batch)

    @property
    def distills(self) -> bool:
        """True for a loss with a teacher and a critic."""
        return isinstance(self.objective, MatchingConfig)

    @property
    def copies(self) -> tuple[str, ...]:
        """See `System`: teacher and critic start as the student."""
        return (parts.TEACHER, parts.CRITIC) if self.distills else ()

    def network(self, rngs: nnx.Rngs) -> CosmosTransformer:
        """See `LatentVideoSystem`."""
        return CosmosTransformer(self.model_config, rngs=rngs)

    def init_training(self, rngs: nnx.Rngs) -> CosmosTransformer:
        """See `System`: with teacher and critic of a distillation."""
        model = self.init(rngs)
        if not isinstance(self.objective, MatchingConfig):
            return model
        own = dataclasses.replace(self.model_config, param_dtype=jnp.dtype(self.objective.teacher_dtype))
        return parts.attach(model, teacher=CosmosTransformer(own, rngs=rngs), critic=self.network(rngs))

    def attention_calls(self) -> list[base.AttentionCall]:
        """See `System`: self-attention of a window, and cross-attention to the text."""
        model, tokens = self.model_config, self.step_tokens(1)
        return [
            base.AttentionCall(
                name=name,
                implementation=model.attention,
                lengths=(queries, keys),
                heads=model.num_heads,
                head_dim=model.head_dim,
                dtype=model.dtype,
            )
            for name, queries, keys in (
                ("video", tokens, tokens),
                # Every camera attends to its own text.
                ("text", tokens // self.clip.cameras, self.clip.text_tokens),
            )
        ]

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""
        clip, model = self.clip, self.model_config
        latent = (global_batch, clip.cameras * clip.window_frames, *clip.latent_size, model.channels)
        states = (global_batch, clip.cameras * clip.text_tokens, model.text_dim)
        specs = {
            "latent": records.ArraySpec(latent, jnp.bfloat16, ("batch", "frames", None, None, None)),
            "text_states": records.ArraySpec(states, jnp.bfloat16, ("batch", None, None)),
        }
        if model.action_dim is not None:
            shape = (global_batch, self.motion_steps, clip.action_size)
            specs["motion"] = records.ArraySpec(shape, np.float32, ("batch", None, None))
        if model.fps_modulation:
            specs["fps"] = records.ArraySpec((global_batch,), np.float32, ("batch",))
        return specs

    def manifest_expectations(self) -> dict[str, Any]:
        """See `LatentVideoSystem`."""
        clip = self.clip
        actions = {"": (), "poses": ("w2c",), "motion": ("motion",), "commands": ("motion",)}[clip.actions]
        return {
            "arrays": ("latent", "prompt", *actions),
            "latent_shape": [*clip.latent_size, self.model_config.channels],
            "text_encoder.dim": self.model_config.text_dim,
            **({"views": {"names": list(clip.views), "ids": list(clip.view_ids)}} if clip.views else {}),
        }

    def transform(self, store: text_stores.TextStore, global_batch: int) -> data.FirstFrames:
        """See `LatentVideoSystem`."""
        fps = None
        if self.model_config.fps_modulation:
            fps = float(records.read_manifest(self.config.data.records)["fps"])
        return data.FirstFrames(self.clip, text_store=store, fps=fps)

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`."""
        assert isinstance(model, CosmosTransformer)
        cfg = self.objective
        if isinstance(cfg, MatchingConfig):
            return score_losses.student_loss(model, self._matching(batch, key, cfg))
        return objective.loss(model, batch, self._draw(batch, key, cfg), cfg, self.clip.view_ids)

    @property
    def critic_loss(self) -> base.CriticLoss | None:
        """See `System`."""
        cfg = self.objective
        if not isinstance(cfg, MatchingConfig):
            return None
        return lambda model, batch, key: distillation.critic_loss(model, self._matching(batch, key, cfg))

    def _draw(self, batch: objective.Batch, key: jax.Array, cfg: objective.ObjectiveConfig) -> objective.Draws:
        return objective.draw(key, batch["latent"].shape, cfg, cameras=self.clip.cameras)

    def _matching(
        self, batch: objective.Batch, key: jax.Array, cfg: MatchingConfig, level: jax.Array | None = None
    ) -> distillation.WindowMatching:
        return distillation.matching(batch, key, cfg, self.sample, view_ids=self.clip.view_ids, level=level)

    def held_out_loss(
        self, model: nnx.Module, batch: objective.Batch, key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; `level` is the time sigma / (1 + sigma), in a distillation that of the scores.

        No text is dropped, and no level counts less.
        """
        assert isinstance(model, CosmosTransformer)
        cfg = self.objective
        if isinstance(cfg, MatchingConfig):
            return score_losses.student_loss(model, self._matching(batch, key, cfg, level))
        cfg = dataclasses.replace(cfg, sigma_floor=0.0)
        draws = self._draw(batch, key, cfg)
        sigma = jnp.full_like(draws.sigma, level / (1 - level))
        draws = draws._replace(sigma=sigma, keep_text=jnp.ones_like(draws.keep_text))
        loss, metrics = objective.loss(model, batch, draws, cfg, self.clip.view_ids)
        prediction = objective.predict(model, batch, draws, cfg, self.clip.view_ids)
        return loss, metrics | {base.PREDICTION: prediction}

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """See `System`; the formula is in `models/cosmos/flops.py`.

        Forward and backward pass count; recomputation and the optimizer do not. A distillation adds passes without a
        gradient, of its rollouts and scores, and the updates of the critic.
        """
        height, width = self.clip.latent_size
        sample = flops.forward_flops(
            self.model_config,
            frames=self.clip.cameras * self.clip.window_frames,
            height=height,
            width=width,
            text_tokens=self.clip.text_tokens,
        )
        own = {name: count for name, count in (sizes or {}).items() if name not in self.copies}
        step, cfg = training(sample, trained_share(own or None)), self.objective
        if isinstance(cfg, MatchingConfig):
            updates = run_config.value_at(self.config, "critic.updates", optimizers.CriticConfig.updates)
            # A rollout has half of the steps before its last one, on average; the last one of the critic's is a pass.
            rollout = (self.sample.num_steps - 1) / 2 * sample.total
            step += rollout + (3 if cfg.teacher_guidance else 2) * sample.total
            step += updates * (rollout + sample.total + training(sample, 1.0))
        return global_batch * step

    def controls(self, pose: str | None, windows: int | None, length: str | None = None) -> list[results.Action]:
        """Return one action per window for `Session.step`.

        Args:
          pose: for an action model a pose string, or the name of a JSON file with its motions; else None.
          windows: number of windows of a model without actions; None for one.
          length: see `VideoSystem`. The end of a recording's annotation that fills no window is always cut.

        Raises:
          UserError: the string or the file is invalid, or does not fill whole windows and `length` is None.
        """
        if self.model_config.action_dim is None:
            if pose is not None:
                raise errors.UserError(
                    "--pose: the model has no actions, it continues images by a caption: leave --pose out, and set "
                    "the length of the video with --windows"
                )
            return [results.Action(control=None, name=f"window {i + 1}") for i in range(lengths.check_windows(windows))]
        if pose is None:
            raise errors.UserError("--pose is missing: the model is steered by actions, such as --pose 'w-3, right-4'")
        values, steps = self._motions(pose), self.motion_steps
        if values.is_annotation and length is None:
            length = "cut" if len(values.values) >= steps else None
        count = lengths.whole(len(values.values), steps, length, where=f"--pose {pose}", unit="motions", chunk="window")
        resized = robots.resized(values.values, count, still=self.clip.actions != "commands")
        motions = resized.reshape(-1, steps, self.clip.action_size)
        return [results.Action(control=motion, name=f"window {i + 1}") for i, motion in enumerate(motions)]

    def _motions(self, pose: str) -> robots.Motions:
        if trajectories.is_file(pose):
            motions = robots.read_motions(pathlib.Path(pose), size=self.clip.action_size)
            notes.note(f"--pose {pose}: {robots.describe(motions)}")
            return motions
        if self.clip.actions != "poses":
            raise errors.UserError(
                f"--pose {pose}: the model was not trained on camera poses: give a JSON file with 'action', a list of "
                f"{self.clip.action_size} numbers per frame"
            )
        return robots.Motions(robots.camera_actions(pose_strings.path(pose, self.units).w2c), is_annotation=False)

    @property
    def decodes_apart(self) -> bool:
        """See `LiveSystem`: a window continues the decoded frames of the one before."""
        return False

    def live_keys(self) -> Sequence[live.Key]:
        """See `LiveSystem`: the keys of a camera, or for a model of motions those of a robot's hand."""
        if self.model_config.action_dim is None:
            raise errors.UserError(
                "the checkpoint is a Cosmos-Predict2 model without actions, which cannot be steered: give a "
                "--checkpoint of its action model"
            )
        if self.clip.actions == "commands":
            raise errors.UserError(
                "the checkpoint is steered by recorded commands of a robot, which have no keys: use jworld generate "
                "--pose FILE"
            )
        return live.CAMERA_KEYS if self.clip.actions == "poses" else hand.KEYS

    def held(self, keys: Sequence[str]) -> results.Action:
        """See `LiveSystem`: the motions of a window."""
        name, steps = live.joined(keys), self.motion_steps
        if self.clip.actions == "poses":
            motions = robots.camera_actions(pose_strings.path(f"{name}-{steps}", self.units).w2c)
        else:
            motions = np.repeat(hand.motion(keys)[None], steps, axis=0)
        return results.Action(control=motions, name=name)

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """See `System`: the mesh must split the frames of a window into equal parts."""
        self._check_fit(mesh.shape["sequence"])

    def session(self, model: CosmosTransformer, encoders: Encoders) -> Session:
        """See `VideoSystem`."""
        return Session(model, encoders, sample=self.sample, clip=self.clip)

    def make_sample(
        self, model: CosmosTransformer, encoders: Encoders, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """See `System`: a held-out clip and its continuation."""
        return evaluation.sample(self.session(model, encoders), config)

    def sample_prompt(
        self,
        model: CosmosTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        prompt: results.Prompt,
    ) -> results.Comparison:
        """See `System`: the continuation of `make_sample` with another caption, or of another image."""
        return evaluation.sample(self.session(model, encoders), config, prompt)

    def evaluate(
        self,
        model: CosmosTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """See `System`: PSNR of continuations of held-out clips."""
        return evaluation.evaluate(self.session(model, encoders), config, options, console)
