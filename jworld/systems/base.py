"""Protocols of a system, as commands call it, and base classes with what systems share.

A system is one object built from a run's config. Training, evaluation and planning call the members of `System`;
`generate` and interactive front ends also those of `VideoSystem` or `TextSystem`, and of their sessions
(`sessions.py`). The registry holds `SystemType`s.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax
import ml_collections
import rich.console
from flax import nnx
from jax.typing import DTypeLike

from jworld.data import pipeline, records
from jworld.encoders.choices import EncoderOverrides
from jworld.evaluation import control, results
from jworld.models.layers import lora
from jworld.models.layers.attention import Implementation, Intervals, Mask
from jworld.models.layers.flops import Sizes
from jworld.systems import adapters, asking, described
from jworld.systems.frame_sizes import FrameSizes
from jworld.systems.sessions import BatchAnswers, TextSession, VideoSession
from jworld.utils import config as run_config
from jworld.utils import errors

Batch = Mapping[str, jax.Array]
CriticLoss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
#: Types of a system's model, and of the encoders that it samples with.
Model = TypeVar("Model", bound=nnx.Module)
RunEncoders = TypeVar("RunEncoders", bound="SystemEncoders")
OpenedEncoders = TypeVar("OpenedEncoders", bound="SystemEncoders", covariant=True)
Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The largest attention of one kind in a training step, as `layers.attention.attention` receives it.

    Attributes:
      name: name of this attention in reports.
      implementation: backend that the config names.
      mask, key_mask: the structured mask, and whether keys are padded.
      lengths: tokens of queries and keys.
      heads, head_dim: of the queries.
      dtype: of queries, keys and values.
    """

    name: str
    implementation: Implementation
    lengths: tuple[int, int]
    heads: int
    head_dim: int
    dtype: DTypeLike
    mask: Mask | Intervals | None = None
    key_mask: bool = False


class SystemEncoders(Protocol):
    """Encoders that a system samples with; commands only use their frame rate."""

    @property
    def fps(self) -> float:
        """Frame rate of the videos, in frames per second; any number for a system without videos."""


class TrainingData(Protocol[OpenedEncoders]):
    """The data set that a config names."""

    def prepare(self) -> None:
        """Make the data set if it is absent and the config describes how."""

    def batches(self, split: str) -> pipeline.BatchIterator:
        """Return this process's batches; a `UserError` if the data set is absent, damaged or made for another model."""

    def keep(self, directory: pathlib.Path) -> None:
        """Store what sampling needs of the data set in `directory`, a subfolder of the run."""

    def check_kept(self, directory: pathlib.Path) -> None:
        """Raise a `UserError` if this data set does not fit a model whose run stored `directory`."""

    def find_problem(self, directory: pathlib.Path) -> str:
        """Return the reason, in one sentence, that no sample can be made with `directory`; "" if one can."""

    def encoders(
        self, directory: pathlib.Path, *, given: EncoderOverrides, mesh: jax.sharding.Mesh, stored: bool = False
    ) -> OpenedEncoders:
        """Open what `keep` stored in `directory`.

        Args:
          directory: folder of a run, or of records.
          given: encoders named by the user.
          mesh: that of the model.
          stored: use the states that the user's own data set stores, so that text and image encoders may be absent.
        """


class System(Protocol[Model, RunEncoders]):
    """Members that training, evaluation and planning call."""

    @property
    def model_config(self) -> Any:
        """The network's hyper-parameters, a frozen dataclass."""

    @property
    def data(self) -> TrainingData[RunEncoders]:
        """The data set that the config names."""

    @property
    def sample_name(self) -> str:
        """File name, without suffix, of the sample after training."""

    @property
    def evaluation_flags(self) -> frozenset[str]:
        """Optional flags of `jworld.evaluate` that this system uses, such as --revisits."""

    @property
    def copies(self) -> tuple[str, ...]:
        """First words of the paths of parameters that start as copies of the initial weights."""

    @property
    def parts(self) -> Mapping[str, pathlib.Path]:
        """First words of the paths of parameters that come from other runs, and the folders of those runs."""

    @property
    def loss_takes_ema(self) -> bool:
        """True if `loss` receives the model with EMA weights as a fourth argument."""

    @property
    def critic_loss(self) -> CriticLoss | None:
        """The loss of the critic, with the arguments of `loss` and no EMA; None if the config needs no critic."""

    def sections(self) -> dict[str, Any]:
        """Return the config sections that this system reads, by dotted name: dataclasses with every default filled."""

    def init(self, rngs: nnx.Rngs) -> Model:
        """Build the model for sampling."""

    def init_training(self, rngs: nnx.Rngs) -> Model:
        """Build the model for training, for example with a frozen teacher."""

    def init_evaluation(self, rngs: nnx.Rngs) -> Model:
        """Build the model for evaluation, for example with the teacher that it is compared with."""

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """Return shape, dtype and logical axes of every array of a training batch."""

    def loss(self, model: Model, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the scalar float32 loss and further metrics; all randomness comes from `key`."""

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """Noise levels, between 0 and 1, at which the held-out loss is measured; () for a loss without noise."""

    def held_out_loss(
        self, model: Model, batch: Batch, key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss at one noise level, and further metrics; all other randomness comes from `key`.

        A system of latents adds the metric `PREDICTION`, from which the PSNR is measured.
        """

    def step_tokens(self, global_batch: int) -> int:
        """Return the tokens of one training step."""

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float | None:
        """Return the useful floating-point operations of one training step, or None without a formula.

        `sizes` holds trained and frozen parameters by part; without it all weights count as trained.
        """

    def attention_calls(self) -> list[AttentionCall]:
        """Return the attention calls of a training step for which a backend is chosen."""

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """Raise a `UserError` if sampling cannot run on the mesh."""

    def make_sample(
        self, model: Model, encoders: RunEncoders, config: ml_collections.ConfigDict
    ) -> results.Comparison | results.Answers:
        """Make the sample that `config.sample` describes, next to the held-out truth."""

    def sample_prompt(
        self, model: Model, encoders: RunEncoders, config: ml_collections.ConfigDict, prompt: results.Prompt
    ) -> results.Comparison | results.Answers:
        """Make the same sample for a caption or question of the user, without truth.

        Raises:
          UserError: the system does not read text, or the text cannot be encoded.
        """

    def check_evaluation(self, options: results.Options) -> None:
        """Raise a `UserError` for a wrong option of `evaluate`, before a model is loaded."""

    def evaluate(
        self,
        model: Model,
        encoders: RunEncoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """Measure the model on held-out data."""


@runtime_checkable
class VideoSystem(System[Model, RunEncoders], Protocol[Model, RunEncoders]):
    """A system that generates videos."""

    @property
    def steering(self) -> str:
        """The flag of `jworld.generate` that steers the model: --pose or --actions."""

    @property
    def needs_image(self) -> bool:
        """True if a generated video continues an image or a video."""

    def controls(self, steering: str | None, windows: int | None, length: str | None = None) -> list[results.Action]:
        """Parse the value of the steering flag and the number of windows into one action per session step.

        `length` is "pad" or "cut" for a path that ends within a chunk, which None refuses; see `cameras.lengths`.
        """

    def session(self, model: Model, encoders: RunEncoders) -> VideoSession:
        """Open a session."""

    @property
    def flag_keys(self) -> Mapping[str, str]:
        """The plain flags of `jworld.generate` that the system has, such as --steps, and their keys in the config."""

    @property
    def has_negative_prompt(self) -> bool:
        """True if the settings use a negative prompt."""

    @property
    def start_frames(self) -> int:
        """Pixel frames of a given video that a session continues, at most."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras of a video, which are the tiles of its frames; () for one, see `data.camera_grids`."""

    def start_note(self, frames: int) -> str:
        """Return a note to the user if a session starts differently with only `frames` frames, else ""."""

    def frame_rate(self, directory: pathlib.Path) -> float | None:
        """Return the frames per second of videos with the encoders in `directory`, or None if that is unknown."""

    def frame_sizes(self, directory: pathlib.Path) -> FrameSizes | None:
        """Return the sizes of videos with the encoders in `directory`; None if there is only one."""


@runtime_checkable
class TextSystem(System[Model, RunEncoders], Protocol[Model, RunEncoders]):
    """A system that answers questions in text."""

    def session(self, model: Model, encoders: RunEncoders) -> TextSession:
        """Open a session."""

    def sampling(self, seed: int = 0) -> asking.Sampling:
        """Return how the config draws answers, with a seed."""

    @property
    def flag_keys(self) -> Mapping[str, str]:
        """The plain flags of `jworld.generate` that the system has, such as --temperature, and their config keys."""

    def answers(self, model: Model, encoders: RunEncoders) -> BatchAnswers:
        """Return an object that answers batches of questions."""


@runtime_checkable
class PlannedSystem(System[Model, RunEncoders], Protocol[Model, RunEncoders]):
    """A system whose generation can be planned."""

    def generation(self, model: Model, mesh: jax.sharding.Mesh) -> described.Generation:
        """Describe what generation with a model computes, whose parameters are descriptions on this mesh."""


#: Metric of `System.held_out_loss` with the predicted clean latents [B, F, H, W, C].
PREDICTION = "prediction"
#: Noise levels of `System.held_out_loss`: the middles of four equal bins of the diffusion time.
TIME_BINS = (0.125, 0.375, 0.625, 0.875)

#: A system whose types of model and encoders matter only to its own code; `runs.Run` keeps the three together.
AnySystem = System[Any, Any]


Built = TypeVar("Built", bound=AnySystem, covariant=True)


class SystemType(Protocol[Built]):
    """A class of systems, as the registry holds it."""

    def __call__(self, config: ml_collections.ConfigDict) -> Built:
        """Build a system from a run's config; a `UserError` names a wrong key."""

    def completed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """Inline settings that the system reads from other runs' configs, so that a saved config is self-contained."""

    def listed(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """Return `completed`, or a config with the same keys that needs no other run, if that run does not exist."""

    def train_command(self, manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
        """Return the command that trains on a data set with this manifest, or None if no recipe of the system fits."""

    def recipe_from_json(self, path: pathlib.Path) -> str | None:
        """Return a recipe's text for a JSON training config of the original, or None if it is not one."""


class _WithLoss(Protocol):
    """Part of a system that a default calls. Were it abstract in the base, mypy would accept a system without it."""

    def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]: ...


class BaseSystem(abc.ABC, Generic[Model, RunEncoders]):
    """Defaults of the optional members of `System` and `SystemType`, and the reading of config sections."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.config = config
        self._sections: dict[str, Any] = {}

    def read(self, cls: type[Section], name: str, values: Mapping[str, Any] | None = None) -> Section:
        """Return the config section `name`, for example "data.clip", as a `cls`; an absent section has its defaults.

        Args:
          cls: frozen dataclass of the section.
          name: dotted name below `config`.
          values: use these values instead of those at `name`.

        Raises:
          UserError: a key is unknown or has a wrong type or value.
        """
        if values is None:
            values = run_config.value_at(self.config, name, {})
        section = run_config.section(cls, values, name)
        self._sections[name] = section
        return section

    def read_lora(self) -> lora.LoRAConfig | None:
        """Return the adapters of `config.model.lora`, or None without.

        Raises:
          UserError: a key is unknown or of a wrong type, or everything would train.
        """
        section = adapters.section(self.config)
        if section is not None:
            self._sections["model.lora"] = section
        return section

    def sections(self) -> dict[str, Any]:
        """See `System`."""
        return dict(self._sections)

    @staticmethod
    def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """See `SystemType`; by default nothing is read from other configs."""
        return config

    @classmethod
    def listed(cls, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """See `SystemType`."""
        return cls.completed(config)

    @staticmethod
    def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
        """See `SystemType`; by default no data set names this system."""
        return None

    @staticmethod
    def recipe_from_json(path: pathlib.Path) -> str | None:
        """See `SystemType`; by default there is no such format."""
        return None

    @property
    def evaluation_flags(self) -> frozenset[str]:
        """See `System`."""
        return frozenset({"--episodes", "--motion"})

    @property
    def copies(self) -> tuple[str, ...]:
        """See `System`."""
        return ()

    @property
    def parts(self) -> Mapping[str, pathlib.Path]:
        """See `System`."""
        return {}

    @property
    def loss_takes_ema(self) -> bool:
        """See `System`."""
        return False

    @property
    def critic_loss(self) -> CriticLoss | None:
        """See `System`."""
        return None

    @abc.abstractmethod
    def init(self, rngs: nnx.Rngs) -> Model:
        """See `System`."""

    def init_training(self, rngs: nnx.Rngs) -> Model:
        """See `System`; by default training and sampling use the same model."""
        return self.init(rngs)

    def init_evaluation(self, rngs: nnx.Rngs) -> Model:
        """See `System`; by default the model for sampling."""
        return self.init(rngs)

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """See `System`; by default the loss has no noise levels."""
        return ()

    def held_out_loss(
        self: "_WithLoss", model: Any, batch: Batch, key: jax.Array, level: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; by default the loss of training, for any level."""
        return self.loss(model, batch, key)

    def check_evaluation(self, options: results.Options) -> None:
        """See `System`; by default only the meter of motion may be wrong."""
        if options.motion is not None:
            control.load_meter(self.config, options.motion)

    def sample_prompt(
        self, model: Model, encoders: RunEncoders, config: ml_collections.ConfigDict, prompt: results.Prompt
    ) -> results.Comparison | results.Answers:
        """See `System`; by default the system does not read text."""
        raise errors.UserError(
            f"config.sample.prompts: the system {self.config.system!r} does not read text: leave the key out"
        )

    def attention_calls(self) -> list[AttentionCall]:
        """See `System`; by default no backend is chosen."""
        return []

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """See `System`; by default every mesh works, because dimensions that it does not divide are replicated."""
