"""Samples and held-out measurements between the steps of a training run.

Neither changes the state, the data iterator or a random stream, and a failure of either is one line in the log.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import einops
import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jworld.data import media, pipeline, records
from jworld.encoders import choices, model_encoders
from jworld.evaluation import held_out, results, samples, settings
from jworld.parallel import axes
from jworld.parallel import mesh as mesh_lib
from jworld.systems import base, runs
from jworld.systems.training_job import TrainingJob, to_devices
from jworld.training import metrics, step, watchdog
from jworld.training import state as train_state
from jworld.utils import errors, nnx_types

#: Prefix of held-out measurements in the log.
PREFIX = "val"
#: Held-out clips whose predictions are decoded for the PSNR.
PSNR_CLIPS = 2

Loss = Callable[..., dict[str, jax.Array]]


class Periodic:
    """Samples and held-out measurements of one run, at the intervals of its config."""

    def __init__(
        self,
        job: TrainingJob,
        graphdef: nnx_types.GraphDef,
        shardings: train_state.TrainState,
        batch_shardings: Mapping[str, NamedSharding],
        *,
        log: metrics.ProgressLog,
        watch: watchdog.Watchdog,
    ) -> None:
        """Prepare both; nothing is read or compiled before the first use.

        Args:
          job: the run.
          graphdef: merges (trained parameters, frozen parameters) into the model for training.
          shardings: of the state.
          batch_shardings: of a batch.
          log: receives measurements, samples and failures.
          watch: is stopped meanwhile.
        """
        self._job, self._log, self._watch = job, log, watch
        self._evaluation = Evaluation(job, graphdef, shardings, batch_shardings, message=log.message)
        self._failures: dict[str, str] = {}
        if job.samples.interval and jax.process_count() > 1:
            log.message(
                "config.sample.interval: nothing is sampled during a multi-process run: sample its checkpoints with "
                "python -m jworld.generate on one host"
            )

    def after(self, number: int, state: train_state.TrainState) -> None:
        """Evaluate and sample if they are due after step `number`; a run that evaluates also does so at its end."""
        interval = self._job.evaluation.interval
        if _due(interval, number) or (interval > 0 and number == self._job.config.steps):
            with self._safely("evaluation", number):
                self._log.extra(number, self._evaluation.measure(state, beat=self._watch.beat))
        # The samplers bring their results to one host.
        if _due(self._job.samples.interval, number) and jax.process_count() == 1:
            with self._safely("samples", number), self._watch.paused():
                self._sample(number, state)

    @contextlib.contextmanager
    def _safely(self, name: str, number: int) -> Iterator[None]:
        """Report an error of the body in one line, unless the last failure was the same."""
        with self._log.excluded():
            try:
                yield
            except Exception as error:
                problem = errors.one_line(error, limit=400)
                if self._failures.get(name) != problem:
                    self._log.message(f"no {name} after step {number}: {problem}; the training continues")
                self._failures[name] = problem

    def _sample(self, number: int, state: train_state.TrainState) -> None:
        job, folder = self._job, self._job.workdir / runs.SAMPLES / str(number)
        system, directory = job.system, job.workdir / runs.ENCODERS
        if problem := system.data.find_problem(directory):
            raise errors.UserError(problem)
        system.check_sampling(job.mesh)
        given = choices.from_config(job.config)
        encoders = system.data.encoders(directory, given=given, mesh=job.mesh, stored=True)
        model = sampling_model(system, state)
        for name, made in make_samples(system, model, encoders, job.config, job.samples):
            samples.write(made, folder, name, fps=encoders.fps)
            self._log.media(number, samples.media(made, name, fps=encoders.fps))
        self._log.message(f"samples after step {number} are in {folder}")


def _due(interval: int, number: int) -> bool:
    return interval > 0 and number % interval == 0


def weights(state: train_state.TrainState) -> nnx_types.State:
    """Return the trained parameters that sampling and evaluation prefer: the EMA, if there is one."""
    return state.params if state.ema is None else state.ema


def sampling_model(system: base.AnySystem, state: train_state.TrainState) -> nnx.Module:
    """Return the model for sampling with the arrays of a state, without a copy; a teacher is left out."""
    with nnx.use_eager_sharding(False), nnx.logical_axis_rules(axes.RULES):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    needed = {path for path, _ in nnx.to_flat_state(shapes)}
    params, _ = nnx.split_state(nnx.merge_state(weights(state), state.frozen), lambda path, _: path in needed, ...)
    # New variables, so that nothing can replace those of the state.
    model: nnx.Module = nnx.merge(graphdef, jax.tree.map(lambda x: x, params))
    return model


def make_samples(
    system: base.AnySystem,
    model: nnx.Module,
    encoders: Any,
    config: ml_collections.ConfigDict,
    chosen: settings.SamplesConfig,
) -> Iterator[tuple[str, results.Comparison | results.Answers]]:
    """Make the held-out sample, and one for each prompt, by file name.

    Raises:
      UserError: one cannot be made; those before it have been.
    """
    yield system.sample_name, system.make_sample(model, encoders, config)
    for i, text in enumerate(chosen.prompts):
        image = media.read_image(pathlib.Path(chosen.images[i])) if chosen.images else None
        prompt = results.Prompt(text=text, image=image)
        yield f"prompt-{i + 1}", system.sample_prompt(model, encoders, config, prompt)


class Evaluation:
    """The held-out loss of the same batches with the same noise, at every noise level of the system, and the PSNR."""

    def __init__(
        self,
        job: TrainingJob,
        graphdef: nnx_types.GraphDef,
        shardings: train_state.TrainState,
        batch_shardings: Mapping[str, NamedSharding],
        *,
        message: Callable[[str], object],
    ) -> None:
        """See `Periodic`; `message` receives the reason if there is no PSNR."""
        self._job, self._graphdef, self._message = job, graphdef, message
        self._shardings, self._batch_shardings = shardings, batch_shardings
        self._batches: list[pipeline.Batch] = []
        self._loss: Loss | None = None
        self._no_decoder = False

    def measure(self, state: train_state.TrainState, *, beat: Callable[[], None]) -> dict[str, float]:
        """Return the measurements by name; call it in all processes of a run, inside the mesh.

        Args:
          state: the weights.
          beat: called after every forward pass.
        """
        self._read_batches()
        if self._loss is None:
            self._loss = self._compile()
        found: dict[str, list[tuple[float, float]]] = {}
        for number, batch in enumerate(self._batches):
            arrays = to_devices(batch, self._job.spec, self._batch_shardings)
            predictions = {}
            for level in self._job.system.noise_levels or (None,):
                values = dict(self._loss(weights(state), state.others, arrays, number, level or 0.0))
                prediction, weight = values.pop(base.PREDICTION, None), float(values.pop(step.WEIGHT, 1.0))
                if prediction is not None and number == 0:
                    predictions[level] = np.asarray(prediction)
                for name, value in values.items():
                    for key in _names(name, level):
                        found.setdefault(key, []).append((float(value), weight))
                beat()
            for level, decibels in self._psnr(batch, predictions).items():
                for key in _names("psnr", level):
                    found.setdefault(key, []).append((decibels, 1.0))
        return {key: _mean(pairs) for key, pairs in found.items()}

    def _read_batches(self) -> None:
        """Read the held-out batches of this process; all processes fail if one does."""
        problem: Exception | None = None
        if not self._batches:
            try:
                iterator = self._job.system.data.batches("val")
                self._batches = [next(iterator) for _ in range(self._job.evaluation.batches)]
                for batch in self._batches:
                    batch.pop("index")
            except Exception as error:
                problem = error
        if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array(problem is None)).all():
            self._batches = []
            problem = problem or errors.UserError("another process could not read its held-out batches")
        if problem is not None:
            raise problem

    def _compile(self) -> Loss:
        system, graphdef = self._job.system, self._graphdef
        parts, key = self._job.optimizer.config.accumulate, jax.random.key(self._job.config.seed)

        def measure(
            params: nnx_types.State,
            others: nnx_types.State,
            batch: dict[str, jax.Array],
            number: jax.Array,
            level: jax.Array,
        ) -> dict[str, jax.Array]:
            # With gradient accumulation, only a microbatch fits into memory.
            batch = {name: einops.rearrange(x, "(b m) ... -> m b ...", m=parts)[0] for name, x in batch.items()}
            own_key = jax.random.fold_in(key, number)
            loss, values = system.held_out_loss(nnx.merge(graphdef, params, others), batch, own_key, level)
            values = values | {"loss": loss}
            if base.PREDICTION in values:
                values[base.PREDICTION] = values[base.PREDICTION][:PSNR_CLIPS]
            return values

        mesh = self._job.mesh
        replicated = NamedSharding(mesh, PartitionSpec())
        shardings = self._shardings.params, self._shardings.others, dict(self._batch_shardings), replicated, replicated
        return jax.jit(measure, in_shardings=shardings, out_shardings=replicated)

    def _psnr(self, batch: pipeline.Batch, predictions: Mapping[float | None, np.ndarray]) -> dict[float | None, float]:
        """Return the PSNR in dB of decoded predictions by noise level, against the decoded latents of the records."""
        if not predictions or jax.process_index() != 0 or self._no_decoder:
            return {}
        mesh = mesh_lib.make_mesh(devices=jax.local_devices()[:1])
        directory, given = self._job.workdir / runs.ENCODERS, choices.from_config(self._job.config)
        with jax.set_mesh(mesh):
            try:
                manifest = records.read_manifest(directory)
                autoencoder = model_encoders.open_autoencoder(directory, manifest, given=given.autoencoder, mesh=mesh)
            except errors.UserError as error:
                self._no_decoder = True
                self._message(f"no held-out PSNR: {error}")
                return {}
            clean = batch["latent"][:: self._job.optimizer.config.accumulate][:PSNR_CLIPS].astype(np.float32)
            views = manifest.get("views")
            clips, cameras = len(clean), len(views["names"]) if views else 1

            def decode(latents: np.ndarray) -> np.ndarray:
                # An example of several cameras has one after the other.
                return autoencoder.decode(latents.reshape(clips * cameras, -1, *latents.shape[2:]))

            truth = decode(clean)
            decoded = {level: decode(latents[:clips]) for level, latents in predictions.items()}
        return {level: held_out.psnr(truth, video) for level, video in decoded.items()}


def _names(name: str, level: float | None) -> tuple[str, ...]:
    """Return the names of a measurement: of the mean over the noise levels, and of its own level, if there is one."""
    return (f"{PREFIX}_{name}",) if level is None else (f"{PREFIX}_{name}", f"{PREFIX}_{name}_t{level:g}")


def _mean(pairs: list[tuple[float, float]]) -> float:
    """Return the weighted mean of (value, weight)."""
    values, shares = zip(*pairs, strict=True)
    return float(np.average(values, weights=shares))
