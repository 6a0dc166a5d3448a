"""The Cosmos-Predict2 Video2World system: model, batch, loss and session from one config."""

import json
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from jworld.cameras import pose_strings, robots
from jworld.data import records
from jworld.data.records import text_store as text_stores
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.cosmos import flops
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.precompute import latent_records
from jworld.systems import adapters, checks
from jworld.systems.cosmos import data, evaluation, objective
from jworld.systems.cosmos.sampling import SampleConfig
from jworld.systems.cosmos.session import Session
from jworld.utils import config as run_config
from jworld.utils import errors


class Cosmos:
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    sample_name: ClassVar[str] = "continuation"
    #: It shows videos.
    makes_text: ClassVar[bool] = False
    #: The option of `python -m jworld.generate` that steers the model.
    steering: ClassVar[str] = "--pose"
    #: Options of `python -m jworld.evaluate` that mean nothing here.
    unused_options: ClassVar[tuple[str, ...]] = ("--revisits", *results.QUESTION_OPTIONS)
    #: Videos continue a picture.
    needs_image: ClassVar[bool] = True

    def __init__(self, config: ml_collections.ConfigDict):
        self.model_config = run_config.section(CosmosConfig, adapters.network(config), "model")
        self.objective = run_config.section(objective.ObjectiveConfig, config.loss, "loss")
        self.clip = run_config.section(data.ClipConfig, config.data.clip, "data.clip")
        self.sample = run_config.section(SampleConfig, config.sample.rollout, "sample.rollout")
        self.units = run_config.section(pose_strings.Units, config.sample.get("motion", {}), "sample.motion")
        self.lora = adapters.section(config)
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
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        height, width = self.clip.latent_size
        return height // self.model_config.patch_size[1] * (width // self.model_config.patch_size[2])

    @property
    def motion_steps(self) -> int:
        """Motions that an action model is told of a window; 0 without actions."""
        return 0 if self.model_config.action_dim is None else self.model_config.action_dim // data.MOTION

    def _check_fit(self, sequence: int) -> None:
        model, clip = self.model_config, self.clip
        checks.latents_fit_patches(clip.latent_size, model.patch_size[1:])
        checks.frames_fit_mesh(clip.window_frames, sequence)
        if bool(clip.actions) != (model.action_dim is not None):
            raise errors.UserError(
                f"config.data.clip.actions is {clip.actions!r} but config.model.action_dim is {model.action_dim}: set "
                "both, or '' and None"
            )
        if clip.actions and self.sample.given_frames != 1:
            raise errors.UserError(
                f"config.sample.rollout.given_frames is {self.sample.given_frames}, expected 1: a window of "
                "an action model begins with one frame"
            )
        if clip.actions == "poses" and model.action_dim != data.MOTION * (clip.window_frames - 1):
            raise errors.UserError(
                f"config.model.action_dim is {model.action_dim}, expected {data.MOTION * (clip.window_frames - 1)}: "
                f"{data.MOTION} numbers for every latent of the window after the first"
            )
        if model.views is not None:
            raise errors.UserError("config.model.views: training with several cameras is not supported, leave it None")

    def init(self, rngs: nnx.Rngs) -> CosmosTransformer:
        return adapters.adapted(CosmosTransformer(self.model_config, rngs=rngs), self.lora, rngs=rngs)

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """What one training batch holds: name -> shape, dtype, logical axes."""
        clip, model = self.clip, self.model_config
        latent = (global_batch, clip.window_frames, *clip.latent_size, model.channels)
        states = (global_batch, clip.text_tokens, model.text_dim)
        specs = {
            "latent": records.ArraySpec(latent, jnp.bfloat16, ("batch", "frames", None, None, None)),
            "text_states": records.ArraySpec(states, jnp.bfloat16, ("batch", None, None)),
        }
        if model.action_dim is not None:
            shape = (global_batch, self.motion_steps, data.MOTION)
            specs["motion"] = records.ArraySpec(shape, np.float32, ("batch", None, None))
        return specs

    def manifest_expectations(self) -> dict[str, Any]:
        """What the manifest of a data set must say for this model: dotted key -> value."""
        clip = self.clip
        actions = {"": (), "poses": ("w2c",), "motion": ("motion",)}[clip.actions]
        return {
            "arrays": ("latent", "prompt", *actions),
            "latent_shape": [*clip.latent_size, self.model_config.channels],
            "text_encoder.dim": self.model_config.text_dim,
        }

    def transform(self, text_store: text_stores.TextStore, global_batch: int) -> data.FirstFrames:
        """Record -> training example."""
        return data.FirstFrames(self.clip, text_store=text_store)

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss and further metrics; everything random comes from `key`."""
        assert isinstance(model, CosmosTransformer)
        return objective.loss(model, batch, objective.draw(key, batch["latent"].shape, self.objective))

    def step_tokens(self, global_batch: int) -> int:
        """Tokens of the videos in one training step."""
        return global_batch * self.clip.window_frames * self.tokens_per_frame

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """Useful floating-point operations of one training step, by the formula of `models/cosmos/flops.py`.

        Forward and backward pass; recomputation and the optimizer are left out. Without `sizes` all weights count as
        trained.
        """
        height, width = self.clip.latent_size
        sample = flops.forward_flops(
            self.model_config,
            frames=self.clip.window_frames,
            height=height,
            width=width,
            text_tokens=self.clip.text_tokens,
        )
        return global_batch * training(sample, trained_share(sizes))

    def controls(self, pose: str | None, windows: int | None) -> list[results.Action]:
        """What `Session.step` is told, window by window.

        Args:
          pose: for an action model a pose string, or the name of a JSON file with its own numbers; else None.
          windows: how many windows a model without actions makes; None for one.

        Raises:
          UserError: the string or the file is not understood, or does not fill whole windows.
        """
        if self.model_config.action_dim is None:
            if pose is not None:
                raise errors.UserError(
                    "--pose: the model knows no actions, it continues pictures by their caption: leave --pose out, and "
                    "say with --windows how long the video is"
                )
            return [results.Action(control=None, name=f"window {i + 1}") for i in range(windows or 1)]
        if pose is None:
            raise errors.UserError("--pose is missing: the model is steered by actions, such as --pose 'w-3, right-4'")
        values = _from_file(pathlib.Path(pose)) if pose.endswith(".json") else self._from_pose(pose)
        steps = self.motion_steps
        if len(values) == 0 or len(values) % steps:
            raise errors.UserError(
                f"--pose {pose} has {len(values)} motions, expected a multiple of the {steps} of a window: add "
                f"{-len(values) % steps or steps}"
            )
        parts = values.reshape(-1, steps, data.MOTION)
        return [results.Action(control=part, name=f"window {i + 1}") for i, part in enumerate(parts)]

    def _from_pose(self, pose: str) -> np.ndarray:
        if self.clip.actions != "poses":
            raise errors.UserError(
                f"--pose {pose}: the model was not trained on camera poses: give a JSON file with the list 'action' of "
                f"its {data.MOTION} numbers per frame"
            )
        return robots.camera_actions(pose_strings.path(pose, self.units).w2c)

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """A UserError where a mesh does not split the frames of a window into equal parts."""
        self._check_fit(mesh.shape["sequence"])

    def session(self, model: CosmosTransformer, encoders: Encoders) -> Session:
        """A video, window by window."""
        return Session(model, encoders, sample=self.sample, clip=self.clip)

    def sample_rollout(
        self, model: CosmosTransformer, encoders: Encoders, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """A held-out clip beside its continuation."""
        return evaluation.sample(self.session(model, encoders), config)

    def evaluate(
        self,
        model: CosmosTransformer,
        encoders: Encoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """PSNR of continuations of held-out clips."""
        return evaluation.evaluate(self.session(model, encoders), config, options, console)


def _from_file(path: pathlib.Path) -> np.ndarray:
    """[steps, 7] from a JSON file {"action": [[...], ...]}, already scaled as in training."""
    try:
        values = np.asarray(json.loads(path.read_text())["action"], np.float32)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise errors.UserError(
            f"--pose {path} cannot be read ({error}): give a JSON file with 'action', a list of lists"
        ) from error
    if values.ndim != 2 or values.shape[1] != data.MOTION:
        raise errors.UserError(f"--pose {path}: 'action' has shape {list(values.shape)}, expected [N, {data.MOTION}]")
    return values
