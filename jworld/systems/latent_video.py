"""Base class of systems that train a transformer on latents of videos."""

import abc
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import grain
import jax
import ml_collections
from flax import nnx

from jworld.data import records
from jworld.data.records import text_store
from jworld.encoders.model_encoders import Encoders
from jworld.precompute.latent_records import LatentRecords
from jworld.systems import adapters, base, described, frame_sizes, generation, options, sessions
from jworld.utils import config as run_config
from jworld.utils import errors


class LatentClip(Protocol):
    """Fields of a `ClipConfig` of latents: frames of a training window, and height and width of a latent frame."""

    @property
    def latent_size(self) -> tuple[int, int]: ...

    @property
    def window_frames(self) -> int: ...


Clip = TypeVar("Clip", bound=LatentClip)


class LatentVideoSystem(options.VideoOptions, base.BaseSystem[base.Model, Encoders], Generic[base.Model, Clip]):
    """Base of systems that train a transformer on latents of videos.

    A subclass reads its sections, sets `clip` and `patch`, and then calls `open_records`.

    Attributes:
      clip: the training window.
      patch: latent pixels (height, width) of a token.
      lora: adapters of `config.model.lora`, or None.
      data: the records of `config.data`.
      tiers: published sets of sizes by name, such as "480p": ratio -> size, in pixels.
      autoencoder: family of the published model's autoencoder.
      named_aspects: sizes of `tiers` are chosen by their ratio alone, and not by the nearest one.
    """

    tiers: ClassVar[Mapping[str, Mapping[frame_sizes.Size, frame_sizes.Size]]] = {}
    autoencoder: ClassVar[str]
    named_aspects: ClassVar[bool] = False
    clip: Clip
    patch: tuple[int, int]
    data: LatentRecords

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        super().__init__(config)
        run_config.require_path(config, "data.records")
        self.lora = self.read_lora()

    @property
    @abc.abstractmethod
    def fps(self) -> float:
        """Frame rate of the published models' videos, for weights without a data set."""

    @abc.abstractmethod
    def network(self, rngs: nnx.Rngs) -> base.Model:
        """Build the network without adapters."""

    @abc.abstractmethod
    def manifest_expectations(self) -> dict[str, Any]:
        """Return the values that the manifest of a data set must have for this model, by dotted key."""

    @abc.abstractmethod
    def transform(self, store: text_store.TextStore, global_batch: int) -> grain.transforms.RandomMap:
        """Return the transform from records to training examples."""

    @abc.abstractmethod
    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""

    def open_records(self, *, min_frames: int, fps: float | None) -> None:
        """Set `data`; clips of fewer than `min_frames` latent frames are refused.

        `fps` replaces the frame rate of the data set; None keeps it.
        """
        self.data = LatentRecords(
            self.config,
            expected=self.manifest_expectations(),
            spec=self.batch_spec(self.config.global_batch),
            transform=self.transform,
            min_frames=min_frames,
            default_fps=self.fps,
            fps=fps,
        )

    def init(self, rngs: nnx.Rngs) -> base.Model:
        """See `System`."""
        return adapters.adapted(self.network(rngs), self.lora, rngs=rngs)

    @abc.abstractmethod
    def session(self, model: base.Model, encoders: Encoders) -> sessions.PlannedSession:
        """See `VideoSystem`."""

    def generation(self, model: base.Model, mesh: jax.sharding.Mesh) -> described.Generation:
        """See `PlannedSystem`; text and image encoders are left out."""
        latent = self.manifest_expectations()["latent_shape"]
        encoders = described.encoders(self.config, published=self.autoencoder, latent=latent, fps=self.fps, mesh=mesh)
        session = self.session(model, encoders)
        if generation.is_watched(model) and isinstance(session, sessions.WatchedSession):
            session.watch(lambda done, steps: None)
        height, width = self.clip.latent_size
        ratio = encoders.autoencoder.spatial_ratio
        return described.Generation(
            network=session.programs(),
            decoding=session.decoding(),
            autoencoder=encoders.autoencoder.network,
            unit="frames",
            per_chunk=session.new_frames,
            chunk=f"frames of {width * ratio}x{height * ratio}, decoded by an autoencoder of the family "
            f"{encoders.autoencoder.family}",
        )

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """See `System`."""
        return base.TIME_BINS

    @property
    def needs_image(self) -> bool:
        """See `VideoSystem`."""
        return True

    @property
    def flag_keys(self) -> Mapping[str, str]:
        """See `VideoSystem`."""
        names = {
            options.STEPS: "num_steps",
            options.GUIDANCE: "guidance",
            options.NEGATIVE_PROMPT: "negative_prompt",
            options.FPS: "fps",
        }
        return {flag: f"{options.ROLLOUT}.{name}" for flag, name in names.items()}

    @property
    def most_latents(self) -> tuple[int, int] | None:
        """Largest height and width of the latents; None for no limit."""
        return None

    def frame_rate(self, directory: pathlib.Path) -> float:
        """See `VideoSystem`."""
        return self.data.rate(directory)

    def frame_sizes(self, directory: pathlib.Path) -> frame_sizes.FrameSizes:
        """See `VideoSystem`."""
        ratio, (height, width), (rows, columns) = (
            self.data.spatial_ratio(directory),
            self.clip.latent_size,
            self.patch,
        )
        most = self.most_latents
        return frame_sizes.FrameSizes(
            current=(width * ratio, height * ratio),
            unit=(columns * ratio, rows * ratio),
            ratio=ratio,
            tiers=self.tiers,
            named=self.named_aspects,
            most=None if most is None else (most[1] * ratio, most[0] * ratio),
        )

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        (height, width), (rows, columns) = self.clip.latent_size, self.patch
        return height // rows * (width // columns)

    def step_tokens(self, global_batch: int) -> int:
        """See `System`; text and image conditioning do not count."""
        return global_batch * self.clip.window_frames * self.tokens_per_frame

    def check_patches(self) -> None:
        """Raise a `UserError` if a latent frame does not divide into patches."""
        if any(size % patch for size, patch in zip(self.clip.latent_size, self.patch, strict=True)):
            raise errors.UserError(
                f"config.data.clip.latent_size is {tuple(self.clip.latent_size)}, expected multiples of "
                f"config.model.patch_size {self.patch}"
            )

    def check_frames(self, sequence: int) -> None:
        """Raise a `UserError` if `sequence` devices cannot split the latent frames of a window evenly."""
        frames = self.clip.window_frames
        if sequence > 0 and frames % sequence:
            raise errors.UserError(
                f"config.mesh.sequence is {sequence}, which does not divide config.data.clip.window_frames {frames}: "
                "choose a divisor of it"
            )
