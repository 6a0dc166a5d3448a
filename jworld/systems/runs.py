"""The folder of a run: files that training writes, and functions that open them.

config.json    the resolved config
encoders/      what sampling needs of the data set: its manifest, and the autoencoder of latents
checkpoints/   Orbax checkpoints, one folder per step
metrics.jsonl, goodput.json, tensorboard/, samples/

Released weights have model.safetensors in place of checkpoints/. Imported weights (`python -m conversion import`) have
one Orbax checkpoint weights/ with its description import.json.
"""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from jworld import systems
from jworld.data import media
from jworld.data.conversations import chat
from jworld.encoders import choices, model_encoders
from jworld.encoders.choices import EncoderOverrides
from jworld.models.layers import quantized
from jworld.parallel import mesh as mesh_lib
from jworld.systems import asking, generation, options, recipes
from jworld.systems.base import AnySystem, SystemEncoders, TextSystem, VideoSystem
from jworld.systems.sessions import VideoSession
from jworld.training import optimizers, weights
from jworld.training import state as train_state
from jworld.training.checkpoints import Checkpoints
from jworld.utils import config as run_config
from jworld.utils import errors, files, hub_folders, nnx_types

CHECKPOINTS, ENCODERS, SAMPLES = "checkpoints", model_encoders.FOLDER, "samples"
#: Weights outside a checkpoint, as in the starter folder.
WEIGHTS = "model.safetensors"
#: Imported weights, and their description.
IMPORTED, IMPORT_RECORD = "weights", "import.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, ready to be sampled on its mesh.

    Attributes:
      config: the resolved config.
      system: the system that the config names.
      model: the network, with EMA weights if there are any.
      encoders: result of `system.data.encoders`.
      step: training step of the weights; None for released and imported weights.
      mesh: mesh of the weights.
    """

    config: ml_collections.ConfigDict
    system: AnySystem
    model: nnx.Module
    encoders: SystemEncoders
    step: int | None
    mesh: jax.sharding.Mesh

    def session(self) -> VideoSession:
        """Open a new step-by-step video generation.

        Raises:
          UserError: the system does not generate videos.
        """
        return generation.video_system(self.system, self.config).session(self.model, self.encoders)

    @functools.cached_property
    def _shared_session(self) -> VideoSession:
        """The session of all calls of `generate`, so that its programs compile once."""
        return self.session()

    def generate(
        self,
        *,
        image: generation.Start = None,
        prompt: str = "",
        pose: str | None = None,
        actions: str | None = None,
        windows: int | None = None,
        length: str | None = None,
        seed: int = 0,
        negative_prompt: str | None = None,
    ) -> np.ndarray:
        """Generate a video, as `python -m jworld.generate` does.

        Args:
          image: first image uint8 [H, W, 3], first video [T, H, W, 3], or a file with one; a list with one for each of
            several cameras.
          prompt: caption of the video.
          pose: path of the camera, such as "w-3, right-4", for systems steered by --pose.
          actions: control tokens, such as "D*3,DR*2", for systems steered by --actions.
          windows: length of the video for models that are not steered (default: 1).
          length: "pad" or "cut" for a path that ends within a chunk (default: refused).
          seed: random seed for the noise.
          negative_prompt: text of the guidance's negative branch (default: that of the config).

        Returns:
          Frames, uint8 [T, H, W, 3]; of several cameras a grid, see `jworld.data.camera_grids`.

        Raises:
          UserError: an input is missing or does not fit the model.
        """
        system = generation.video_system(self.system, self.config)
        options.check_negative_prompt(system, negative_prompt)
        start = generation.find_start(image, system, fps=self.encoders.fps)
        steps = system.controls(generation.steering(system, pose=pose, actions=actions), windows, length)
        frames: list[np.ndarray] = []
        generation.roll_out(
            self._shared_session,
            steps,
            mesh=self.mesh,
            image=start,
            prompt=prompt,
            seed=seed,
            negative_prompt=negative_prompt,
            take=frames.append,
        )
        return np.concatenate(frames)

    def answer(
        self, prompt: str | Sequence[chat.Turn], images: Sequence[np.ndarray | str | pathlib.Path] = (), **sampling: Any
    ) -> str:
        """Answer a question about images, for systems that answer in text.

        Args:
          prompt: the question, or the turns of a conversation.
          images: arrays uint8 [H, W, 3] or files, in the order of their places in the text.
          sampling: fields of `asking.Sampling`, such as `temperature` (default: those of the config).

        Raises:
          UserError: the system generates videos, or the question or an image does not fit the model.
        """
        return "".join(self.stream(prompt, images, **sampling))

    def stream(
        self, prompt: str | Sequence[chat.Turn], images: Sequence[np.ndarray | str | pathlib.Path] = (), **sampling: Any
    ) -> Iterator[str]:
        """Yield the text of an answer as its tokens are decoded; arguments as in `answer`."""
        system = generation.text_system(self.system, self.config)
        session = system.session(self.model, self.encoders)
        read = [media.read_image(image) if isinstance(image, str | pathlib.Path) else image for image in images]
        chosen = dataclasses.replace(system.sampling(), **sampling)
        text = asking.TextStream(session.decode, chosen)
        with jax.set_mesh(self.mesh):
            session.reset(read, prompt, sampling=chosen)
            while (token := session.step()) is not None:
                if new := text.add(token):
                    yield new
        if rest := text.end():
            yield rest


def resolve(
    directory: pathlib.Path,
    *,
    encoders: pathlib.Path | None = None,
    flags: options.Flags | None = None,
    changes: Mapping[str, str] | None = None,
    mesh: Sequence[tuple[str, int]] = (),
) -> ml_collections.ConfigDict:
    """Return a folder's config with all defaults, for one device, and with new values.

    Args:
      directory: folder of a run, or of released or imported weights.
      encoders: folder of the encoders (default: that of the folder).
      flags: values of the plain flags of generation.
      changes: other values as text by dotted key.
      mesh: pairs of an axis of the mesh and its size.

    Raises:
      UserError: there is no such key or option, or a value does not fit the model.
    """
    directory = hub_folders.find(directory)
    config = run_config.load(directory)
    system, changes, flags = systems.create(config), dict(changes or {}), flags or options.Flags()
    values = config.to_dict()
    for name, section in system.sections().items():
        node = values
        for key in name.split("."):
            node = node.setdefault(key, {})
        node.update({key: _plain(value) for key, value in dataclasses.asdict(section).items()})
    values["mesh"] = dict.fromkeys(mesh_lib.AXIS_NAMES, 1) | dict(mesh)
    if given := flags.given():
        if not isinstance(system, VideoSystem | TextSystem):
            raise errors.UserError(f"{next(iter(given))}: the model generates no videos: leave it out")
        found = options.changes(system, config, flags, directory / ENCODERS if encoders is None else encoders)
        if twice := [key for key in found if key in changes]:
            raise errors.UserError(f"--config.{twice[0]} is also set by {', '.join(given)}: leave one of them out")
        changes |= found
    changed = recipes.change(ml_collections.ConfigDict(values), changes)
    if flags.negative_prompt is not None:
        options.check_negative_prompt(generation.video_system(systems.create(changed), changed), flags.negative_prompt)
    return changed


def _plain(value: Any) -> Any:
    """Return a dtype as its name, everything else as it is."""
    return value if isinstance(value, str | int | float | tuple | None) else jnp.dtype(value).name


def load(
    directory: pathlib.Path,
    step: int | None = None,
    *,
    config: ml_collections.ConfigDict | None = None,
    mesh: jax.sharding.Mesh | None = None,
    encoders: pathlib.Path | None = None,
    given: EncoderOverrides | None = None,
    teacher: bool = False,
    stored: bool = False,
    quantize: str | None = None,
    meanwhile: Callable[[SystemEncoders, nnx.Module], object] | None = None,
) -> Run:
    """Open a run's folder, or a folder of released or imported weights; EMA weights are preferred.

    Args:
      directory: the folder.
      step: the checkpoint (default: the newest).
      config: other settings of the same model (default: those of the folder).
      mesh: mesh for the weights (default: one device).
      encoders: folder of records, or a run's `encoders/` (default: that of the folder).
      given: encoders that replace those of `config.sample.encoders` and of the folder.
      teacher: load the teacher of the run too, if evaluation compares the model with it.
      stored: use the states that a data set of the user stores, so that text and image encoders may be absent.
      quantize: type of the large weights, a key of `quantized.DTYPES`, for video systems; None for that of the config.
      meanwhile: called in a thread, on the mesh, while the weights are read, with the encoders and the model, whose
        parameters are descriptions.

    Raises:
      UserError: something is missing or damaged, or does not fit the model.
    """
    directory = hub_folders.find(directory)
    _refuse_step(directory, step)
    config = run_config.load(directory) if config is None else config
    system = systems.create(config)
    if quantize is not None:
        generation.check_quantized(system, quantize)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    kept = directory / ENCODERS if encoders is None else encoders
    given = given or EncoderOverrides()
    chosen = given.or_else(choices.from_config(config))
    opened = system.data.encoders(kept, given=chosen, mesh=mesh, stored=stored)
    model_encoders.check_options(given, opened)
    # Released and imported weights have no teacher.
    teacher = teacher and (directory / CHECKPOINTS).is_dir()
    work = None if meanwhile is None else functools.partial(meanwhile, opened)
    model, found = load_model(directory, config, step, mesh=mesh, teacher=teacher, quantize=quantize, meanwhile=work)
    return Run(config, system, model, opened, found, mesh)


def load_model(
    directory: pathlib.Path,
    config: ml_collections.ConfigDict,
    step: int | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    teacher: bool = False,
    quantize: str | None = None,
    meanwhile: Callable[[nnx.Module], object] | None = None,
) -> tuple[nnx.Module, int | None]:
    """Return the model without encoders, and the step of its checkpoint; see `load`."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    system = systems.create(config)
    init = system.init_evaluation if teacher else system.init
    graphdef, abstract, _ = train_state.abstract_state(init, trainable=nnx.Param, optimizer=optimizer, mesh=mesh)
    take = None if quantize is None else quantized.Quantizer.of(abstract.params, quantize)
    if meanwhile is None:
        params, found = load_params(directory, abstract.params, step, take)
        return nnx.merge(graphdef, params), found
    model: nnx.Module = nnx.merge(graphdef, abstract.params if take is None else take.described)

    def work() -> None:
        with jax.set_mesh(mesh):
            meanwhile(model)

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        done = threads.submit(work)
        params, found = load_params(directory, abstract.params, step, take)
        done.result()
    nnx.update(model, params)
    return model, found


def load_params(
    directory: pathlib.Path, abstract: nnx_types.State, step: int | None = None, take: weights.Take | None = None
) -> tuple[nnx_types.State, int | None]:
    """Load all parameters of a run, or of released or imported weights, in the layout of `abstract`.

    `take` may replace every parameter: of released and imported weights while the others are read, of a run after all
    have been read.

    Returns:
      The parameters, and the step of the checkpoint; None for released and imported weights.
    """
    _refuse_step(directory, step)
    if (directory / WEIGHTS).is_file():
        return weights.load(directory / WEIGHTS, abstract, take), None
    if (directory / IMPORTED).is_dir():
        return weights.restore(directory / IMPORTED, abstract, import_record(directory)["arrays"], take), None
    trainable = train_state.path_filter(run_config.load(directory).optimizer.trainable)
    stored = _as_stored(directory, abstract)
    trained, frozen = nnx.split_state(stored, trainable, ...)
    checkpoints = Checkpoints(directory / CHECKPOINTS, create=False)
    found = checkpoints.latest_step() if step is None else step
    params = nnx.merge_state(checkpoints.restore_params(trained, found), checkpoints.restore_frozen(frozen))
    params = jax.tree.map(_converted, params, abstract)
    return params if take is None else weights.replaced(params, take), found


def _converted(x: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Return `x` in the dtype of `target`; an array of another dtype is deleted."""
    if x.dtype == target.dtype:
        return x
    converted: jax.Array = x.astype(target.dtype)
    x.delete()
    return converted


def check_weights(directory: pathlib.Path) -> None:
    """Raise a `UserError` if `load_params` would find no weights; nothing is read."""
    if not (directory / WEIGHTS).is_file() and not (directory / IMPORTED).is_dir():
        Checkpoints(directory / CHECKPOINTS, create=False).existing()


def _refuse_step(directory: pathlib.Path, step: int | None) -> None:
    weights_file, imported = directory / WEIGHTS, directory / IMPORTED
    if step is not None and (weights_file.is_file() or imported.is_dir()):
        kind = "released" if weights_file.is_file() else "imported"
        raise errors.UserError(f"--step {step}: {directory} has {kind} weights without steps: leave --step out")


def _as_stored(directory: pathlib.Path, abstract: nnx_types.State) -> nnx_types.State:
    """Return `abstract` with the dtypes of the run's checkpoint.

    They differ if one stage freezes parameters, and stores them in a smaller dtype, and the next one trains them.
    """
    init = systems.create(run_config.load(directory)).init
    with nnx.use_eager_sharding(False):
        own = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: init(nnx.Rngs(0))), nnx.Param))
    dtypes = {path: leaf.dtype for path, leaf in own}
    leaves = []
    for path, leaf in nnx.to_flat_state(abstract):
        described = jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path, leaf.dtype), sharding=leaf.get_value().sharding)
        leaves.append((path, leaf.replace(described)))
    return nnx.from_flat_state(leaves)


def import_record(directory: pathlib.Path) -> dict[str, Any]:
    """Return the description that `python -m conversion import` wrote for the weights in this folder.

    Raises:
      UserError: the record is missing or damaged, or an earlier version of jworld wrote it.
    """
    path = directory / IMPORT_RECORD
    try:
        record: dict[str, Any] = files.read_json(path, fix="import the weights again")
        checksums = [entry["checksum"] for entry in record["arrays"].values()]
    except (TypeError, KeyError, AttributeError) as error:
        raise errors.UserError(f"{path} is damaged ({error!r}): import the weights again") from error
    if not all(isinstance(checksum, str) for checksum in checksums):
        raise errors.UserError(
            f"{path}: an earlier version of jworld wrote these weights, without checksums of their chunks: import the "
            "weights again"
        )
    return record
