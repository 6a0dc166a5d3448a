"""Video autoencoders of all families as compiled programs with numpy inputs and outputs."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.data import records
from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders import linear, patch, taehv
from jworld.models.autoencoders.network import VideoAutoencoder
from jworld.models.autoencoders.tiling import Tiling
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.parallel.programs import Program
from jworld.utils import compilation, files, hub_folders

#: Families without published weights. Their files are small, so a data set has a copy.
OWN_FAMILIES = frozenset({linear.FAMILY, patch.PatchAutoencoder.family})
Placed = TypeVar("Placed")


class Decoder(Protocol):
    """Interface of what decodes latents; see `network.VideoAutoencoder`."""

    config: Any

    def decode(self, latents: jax.Array) -> jax.Array: ...

    def decode_step(self, latents: jax.Array, cache: Any) -> tuple[jax.Array, Any]: ...

    def hash(self) -> str: ...


class Network(Decoder, Protocol):
    """Interface of the linear autoencoder and the networks; see `network.VideoAutoencoder`."""

    family: ClassVar[str]
    #: Whether the latent of the first frame is independent of later frames.
    first_frame_alone: ClassVar[bool]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]: ...

    def encode(self, video: jax.Array) -> jax.Array: ...

    def manifest_entry(self) -> dict[str, Any]: ...


class Latents(NamedTuple):
    """Normalized latents of videos, float32.

    Attributes:
      latent: [B, F, H', W', C], the posterior's mean.
      image_cond: [B, 1, H', W', C], the first frame encoded alone.
      logvar: [B, F, H', W', C], log variance of the normalized latents; None unless requested.
    """

    latent: np.ndarray
    image_cond: np.ndarray
    logvar: np.ndarray | None


class Autoencoder:
    """An autoencoder whose programs are compiled once per shape.

    Batches are sharded over the mesh (default: one local device) if their size divides.

    Attributes:
      network: linear autoencoder or neural network, replicated over the devices of the mesh; if its weights are
        descriptions, its programs can be compiled.
      source: file or folder that it was loaded from; None if it was not loaded.
      tiling: tiles in which a network encodes and decodes whole videos; None for whole frames.
      preview: tiny decoder that decodes in place of the network, whole frames; None without.
    """

    def __init__(
        self,
        network: Network,
        *,
        mesh: jax.sharding.Mesh | None = None,
        source: str | None = None,
        tiling: Tiling | None = None,
        preview: taehv.TinyDecoder | None = None,
    ):
        self.source, self.tiling = source, tiling
        self._mesh = mesh_lib.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.network: Network = _placed_network(network, self._mesh)
        self.preview = None if preview is None else _placed_network(preview, self._mesh)

    def on(self, mesh: jax.sharding.Mesh) -> "Autoencoder":
        """Return this autoencoder on other devices."""
        return Autoencoder(self.network, mesh=mesh, source=self.source, tiling=self.tiling, preview=self.preview)

    def previewed(self, preview: taehv.TinyDecoder) -> "Autoencoder":
        """Return this autoencoder with a tiny decoder in place of its own one."""
        return Autoencoder(self.network, mesh=self._mesh, source=self.source, tiling=self.tiling, preview=preview)

    @property
    def _decoder(self) -> Decoder:
        return self.network if self.preview is None else self.preview

    @property
    def family(self) -> str:
        return self.network.family

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent, in height and in width."""
        return int(self.network.config.spatial_ratio)

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent after the first."""
        return int(self.network.config.temporal_ratio)

    @property
    def has_posterior(self) -> bool:
        """True if its latents have a variance."""
        return isinstance(self.network, VideoAutoencoder)

    @functools.cached_property
    def hash(self) -> str:
        own = self.network.hash()
        return own if self.preview is None else f"{own}, previews {self.preview.hash()}"

    def manifest_entry(self) -> dict[str, Any]:
        """Return the entry of a manifest; it has `source` unless the autoencoder is stored with the data set."""
        return self.network.manifest_entry() | ({} if self.is_stored else {"source": self.source})

    @property
    def is_stored(self) -> bool:
        """True if a data set has a copy of its file: it has no file yet, or a small one."""
        return self.source is None or self.family in OWN_FAMILIES

    def save(self, path: pathlib.Path) -> None:
        """Write the file, or copy the one that was opened."""
        if self.source is not None:
            files.copy(pathlib.Path(self.source), path)
        else:
            assert isinstance(self.network, linear.LinearAutoencoder)
            self.network.save(path)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return [F, H', W', C] of a video; a `UserError` if its sizes do not fit."""
        return self.network.latent_shape(frames, height, width)

    def encode_clips(self, video: np.ndarray, *, posterior: bool = False) -> Latents:
        """Encode videos uint8 [B, T, H, W, 3] as the latents that records store."""
        with jax.set_mesh(self._mesh):
            placed = self._placed(video)
            latents = encode_program()(self.network, placed, posterior=posterior, tiling=self.tiling)
            if not self.network.first_frame_alone:
                # A call of its own: in one program, XLA's CPU compiler would keep copies of all weights in float32 from
                # one use to the next.
                alone = encode_program()(self.network, placed[:, :1], posterior=False, tiling=self.tiling)
                latents = latents._replace(image_cond=alone.latent)
        on_host: Latents = jax.device_get(latents)
        return on_host

    def encode(self, video: np.ndarray) -> np.ndarray:
        """Encode videos uint8 [B, T, H, W, 3] as normalized latents [B, F, H', W', C] float32."""
        with jax.set_mesh(self._mesh):
            latents = encode_program()(self.network, self._placed(video), posterior=False, tiling=self.tiling)
        return np.asarray(latents.latent)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode normalized latents [B, F, H', W', C] to videos uint8 [B, T, H, W, 3]."""
        with jax.set_mesh(self._mesh):
            return np.asarray(decode_program()(self._decoder, self._placed(latents), tiling=self.tiling))

    def stream(self) -> "Stream":
        """Start a video that is decoded latent by latent."""
        return Stream(self)

    def decode_step(self, latents: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Decode the next latents [B, f, H', W', C] to frames uint8 [B, t, H, W, 3]; `cache` None starts a video."""
        with jax.set_mesh(self._mesh):
            video, cache = step_program()(self._decoder, self._placed(latents), cache)
        return np.asarray(video), cache

    def encoding(self, shape: tuple[int, ...]) -> Program:
        """Return the program that encodes a video uint8 of this shape, [T, H, W, 3]."""
        video = self._described(shape, jnp.uint8)
        options = {"posterior": False, "tiling": self.tiling}
        return self._call("encoding", encode_program, self.network, video, options=options)

    def decoding(self, shape: tuple[int, ...]) -> Program:
        """Return the program that decodes latents of this shape, [F, H', W', C]."""
        latents = self._described(shape)
        return self._call("decoding", decode_program, self._decoder, latents, options={"tiling": self.tiling})

    def streaming(self, shape: tuple[int, ...], *, runs: int = 1) -> Iterator[Program]:
        """Yield the programs that decode latents of this shape, [f, H', W', C], at the start of a video and later."""
        latents = self._described(shape)
        first = self._call("decoding at the start", step_program, self._decoder, latents, None, runs=0)
        yield first
        _, cache = first.results()
        yield self._call("decoding", step_program, self._decoder, latents, cache, runs=runs, cache=cache)

    def _call(
        self,
        name: str,
        program: Callable[[], Any],
        *inputs: Any,
        options: Mapping[str, Any] | None = None,
        runs: int = 1,
        cache: Any = None,
    ) -> Program:
        with jax.set_mesh(self._mesh):
            function = program()
        return Program(name, function, inputs, options or {}, runs, cache, self._mesh)

    def _placed(self, batch: np.ndarray) -> jax.Array:
        placed: jax.Array = jax.device_put(batch, self._sharding(len(batch)))
        return placed

    def _described(self, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=self._sharding(1))

    def _sharding(self, videos: int) -> jax.sharding.NamedSharding:
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        return axes.sharding(self._mesh, ("batch",) if videos % shards == 0 else ())


def _placed_network(network: Placed, mesh: jax.sharding.Mesh) -> Placed:
    """Return a network whose weights are on all devices of a mesh."""
    graphdef, state = nnx.split(network)
    placed: Placed = nnx.merge(graphdef, _replicated(state, axes.sharding(mesh, ())))
    return placed


def _replicated(state: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """Place weights, or descriptions of them, on all devices."""
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        return jax.device_put(state, sharding)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


class Stream:
    """Streaming decoder of one video, whose cache stays on the devices."""

    def __init__(self, autoencoder: Autoencoder):
        self._autoencoder = autoencoder
        self._cache: Any = None

    def step(self, latents: np.ndarray) -> np.ndarray:
        """Decode the next latents [f, H', W', C] to frames uint8 [t, H, W, 3]."""
        video, self._cache = self._autoencoder.decode_step(latents[None], self._cache)
        frames: np.ndarray = video[0]
        return frames


def _encode_clips(network: Network, video: jax.Array, *, posterior: bool, tiling: Tiling | None) -> Latents:
    logvar = None
    if posterior:
        assert isinstance(network, VideoAutoencoder)
        normalisation = network.config.normalisation
        found = network.posterior(video, tiling=tiling)
        latent = normalisation.apply(found.mean)
        # The bounds are those of sampling; the scale of the latents also scales their deviation.
        logvar = jnp.clip(found.logvar, -30.0, 20.0) + 2 * jnp.log(jnp.abs(jnp.array(normalisation.scale)))
    else:
        latent = _encode(network, video, tiling)
    return Latents(latent, latent[:, :1], logvar)  # type: ignore[arg-type]


def _encode(network: Network, video: jax.Array, tiling: Tiling | None) -> jax.Array:
    """Encode by tiles; the linear autoencoder has none."""
    if isinstance(network, VideoAutoencoder):
        return network.encode(video, tiling=tiling)
    return network.encode(video)


def _decode(decoder: Decoder, latents: jax.Array, *, tiling: Tiling | None) -> jax.Array:
    if isinstance(decoder, VideoAutoencoder):
        return linear.to_uint8(decoder.decode(latents, tiling=tiling))
    return linear.to_uint8(decoder.decode(latents))


def _decode_step(decoder: Decoder, latents: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    video, cache = decoder.decode_step(latents, cache)
    return linear.to_uint8(video), cache


encode_program = compilation.in_order(_encode_clips, static_argnames=("posterior", "tiling"))
decode_program = compilation.in_order(_decode, static_argnames="tiling")
step_program = compilation.in_order(_decode_step)


def find(path: str | pathlib.Path) -> pathlib.Path:
    """Return the file of an autoencoder, which is given by its path or by a folder or hub id of one."""
    path = hub_folders.find(pathlib.Path(path).expanduser()).absolute()
    return path / records.AUTOENCODER_FILE if path.is_dir() else path


def load(
    path: str | pathlib.Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    tiling: Callable[[int], Tiling | None] = lambda spatial_ratio: None,
) -> Autoencoder:
    """Open an autoencoder's file (see `models.autoencoders.files`), or the one in a folder.

    Args:
      path: file, or folder with autoencoder.safetensors.
      mesh: devices to which the weights are replicated (default: one local device).
      dtype: dtype of a network's activations (default: the one in its file).
      tiling: spatial ratio -> tiles in which the network encodes and decodes (default: whole frames).

    Raises:
      UserError: the file is absent, damaged, or not an autoencoder.
    """
    path = find(path)
    network = autoencoder_files.load(path, **({} if dtype is None else {"dtype": jnp.dtype(dtype)}))
    return Autoencoder(network, mesh=mesh, source=str(path), tiling=tiling(network.config.spatial_ratio))
