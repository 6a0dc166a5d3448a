"""Import of a PyTorch checkpoint to a folder with a config and an Orbax checkpoint, or to an autoencoder's file."""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from conversion import (
    adapter_files,
    autoencoders,
    digests,
    engine,
    families,
    outputs,
    quantized,
    resolving,
    schedulers,
    selecting,
    sources,
    store,
)
from jworld import systems
from jworld.data import records
from jworld.models.layers.config import ComputeConfig
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors, files, finite

DTYPES = ("float32", "bfloat16", "float16")
_FLOAT8 = "float8"


class Target(Protocol):
    """System or autoencoder that weights belong to."""

    @property
    def model_config(self) -> Any: ...

    def init(self, rngs: nnx.Rngs) -> nnx.Module: ...


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an import.

    Attributes:
      family: a key of `families.FAMILIES`; None to detect it.
      recipe: a recipe that the weights must match.
      settings: single values of the config as "key=value", which replace the recipe's.
      variant: the published model (a key of the family's variants); None to derive it from the file's name.
      allow: regular expressions of tensors that may be missing or unexpected.
      dtype: one of `DTYPES`; None for the file's dtype.
      selection: selection of the file's weights.
    """

    family: str | None = None
    recipe: str | None = None
    settings: Sequence[str] = ()
    variant: str | None = None
    allow: Sequence[str] = ()
    dtype: str | None = None
    selection: selecting.Selection = dataclasses.field(default_factory=selecting.Selection)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked import, before any data is read.

    Attributes:
      source: the tensors.
      target: the system or autoencoder of the weights.
      config: config of the resulting run; None for an autoencoder.
      variant: the published model whose sampling settings apply; None for an autoencoder.
      published: hyper-parameters that only the published values set.
      params: path -> shape and dtype on disk of every parameter.
      places: path -> the tensors of this parameter.
      selection: selection of the file's weights and of base checkpoints.
      ignored: allowed tensors that the model does not have.
      initial: allowed tensors that the file does not have.
      scheduler: path of a scheduler_config.json, and the values that it sets, by dotted key; None without one.
    """

    family: families.Family
    layout: families.KeyLayout
    source: selecting.Selected
    target: Target
    config: ml_collections.ConfigDict | None
    variant: str | None
    published: Sequence[str]
    params: Mapping[str, jax.ShapeDtypeStruct]
    places: Mapping[str, Mapping[str, engine.TensorPlacement]]
    ignored: Sequence[str]
    initial: Sequence[str]
    selection: selecting.Selection
    scheduler: tuple[str, Mapping[str, Any]] | None

    @property
    def size(self) -> int:
        """Size on disk in bytes."""
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self.params.values())

    @property
    def lower_precision(self) -> str | None:
        """Dtype in which a run computes if it is narrower than that of float32 weights, else None."""
        if self.config is None or all(leaf.dtype != np.float32 for leaf in self.params.values()):
            return None
        computed = np.dtype(self.config.model.get("dtype", ComputeConfig.dtype))
        return str(computed) if computed.itemsize < np.dtype(np.float32).itemsize else None


def make_plan(opened: sources.Source, options: Options) -> Plan:
    """Compare the headers of a file with the model that headers and options describe.

    Raises:
      UserError: the hyper-parameters are contradictory or incomplete; or one message that lists every missing,
        unexpected and misshapen tensor.
    """
    where = str(opened.path)
    if adapter_files.are_adapters(opened.tensors):
        raise errors.UserError(
            f"{where}: has adapters (LoRA) alone, expected weights: merge them into their base with "
            f"`python -m conversion fuse BASE {where} --output DIR`"
        )
    quantized.refuse(opened)
    family, layout = families.detect(opened.tensors, where, family=options.family)
    settings = resolving.parse_settings(options.settings)
    options = dataclasses.replace(options, selection=_with_rows(options, opened, layout, settings))
    source = selecting.Selected(opened, layout, options.selection)
    selecting.check(source, options.selection)
    found = {name: info.shape for name, info in source.tensors.items()}
    resolved = _resolve(family, layout, source, options, settings)
    target = resolved.target
    params = abstract_params(target)
    shapes = {path: leaf.shape for path, leaf in params.items()}
    planned = engine.plan(shapes, layout.rules(target.model_config))
    source.place_adapters(family, shapes, target.model_config)
    listed, allowed = _without_allowed(engine.problems(found, shapes, planned), options.allow)
    places: dict[str, dict[str, engine.TensorPlacement]] = {path: {} for path in params}
    for name, place in planned.items():
        if name in found:
            places[place.path][name] = place
    params, mixed = _with_dtypes(params, places, source, options.dtype, family)
    base = "" if layout.from_base is None else "give the checkpoints that it was trained from with --base, "
    engine.check(
        [*listed, *mixed],
        where,
        f"{base}set the model's sizes with {resolving.OPTIONS}model.KEY=VALUE, or allow exceptions with --allow",
    )
    ignored = [problem.name for problem in allowed if problem.kind == "unexpected"]
    initial = [problem.name for problem in allowed if problem.kind == "missing"]
    return Plan(
        family=family,
        layout=layout,
        source=source,
        target=target,
        config=resolved.config,
        variant=resolved.variant,
        published=resolved.published,
        params=params,
        places=places,
        ignored=ignored,
        initial=initial,
        selection=options.selection,
        scheduler=resolved.scheduler,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Resolved:
    """The model of some weights; the attributes are those of `Plan`."""

    target: Target
    published: Sequence[str]
    config: ml_collections.ConfigDict | None = None
    variant: str | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None


def _resolve(
    family: families.Family,
    layout: families.KeyLayout,
    source: sources.Source,
    options: Options,
    settings: Mapping[str, Any],
) -> _Resolved:
    """Find the model that shapes, files next to the weights, and options describe."""
    facts = layout.from_shapes({name: info.shape for name, info in source.tensors.items()})
    downloaded = None
    if source.config is not None:
        config_path = str(source.files[0].parent / "config.json")
        downloaded = (config_path, layout.from_config(source.config, config_path))
    if family.runs is None:
        _check_autoencoder(family, options)
        target, published = autoencoders.resolve(family, shapes=facts, downloaded=downloaded, settings=settings)
        return _Resolved(target=target, published=published)
    variant = options.variant or family.runs.guess_variant(source.path, facts)
    if variant not in family.runs.variants:
        raise errors.UserError(f"--variant is {variant!r}, expected one of {', '.join(family.runs.variants)}")
    scheduler = None
    if (path := schedulers.find(source.files[0], family.runs.scheduler_name)) is not None:
        scheduler = (str(path), family.runs.scheduler(sources.read_json(path), str(path), variant))
    config, published = resolving.resolve(
        family.runs,
        shapes=facts,
        downloaded=downloaded,
        recipe=options.recipe,
        settings=settings,
        variant=variant,
        scheduler=scheduler,
    )
    return _Resolved(
        target=systems.create(config), published=published, config=config, variant=variant, scheduler=scheduler
    )


def _with_rows(
    options: Options, opened: sources.Source, layout: families.KeyLayout, settings: Mapping[str, Any]
) -> selecting.Selection:
    """Return the selection with the number of embedding rows of the model, if it is known."""
    if layout.embedding is None or options.selection.rows is not None:
        return options.selection
    rows = settings.get("model.vocabulary")
    if rows is None and options.recipe is not None:
        rows = run_config.load_recipe(options.recipe).model.get("vocabulary")
    return dataclasses.replace(options.selection, rows=layout.rows(opened.config) if rows is None else rows)


def _check_autoencoder(family: families.Family, options: Options) -> None:
    values = {"--config": options.recipe, "--variant": options.variant, "--dtype": options.dtype}
    if wrong := [option for option, value in values.items() if value is not None]:
        raise errors.UserError(
            f"{', '.join(wrong)}: not for an autoencoder ({family.name}), whose file is always float32: leave it out"
        )


def abstract_params(target: Target) -> dict[str, jax.ShapeDtypeStruct]:
    """Return path -> shape and dtype for a model's parameters."""
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: target.init(nnx.Rngs(0))), nnx.Param)
    return {
        "/".join(map(str, path)): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in nnx.to_flat_state(params)
    }


def _without_allowed(
    listed: Sequence[engine.Problem], allow: Sequence[str]
) -> tuple[list[engine.Problem], list[engine.Problem]]:
    """Split problems into those that remain and those that `allow` permits."""
    try:
        patterns = [re.compile(pattern) for pattern in allow]
    except re.error as error:
        raise errors.UserError(f"--allow {error.pattern!r}: is not a regular expression ({error})") from error
    allowed = [
        problem
        for problem in listed
        if problem.kind in ("missing", "unexpected") and any(pattern.fullmatch(problem.name) for pattern in patterns)
    ]
    return [problem for problem in listed if problem not in allowed], allowed


def _with_dtypes(
    params: Mapping[str, jax.ShapeDtypeStruct],
    places: Mapping[str, Mapping[str, engine.TensorPlacement]],
    source: sources.Source,
    dtype: str | None,
    family: families.Family,
) -> tuple[dict[str, jax.ShapeDtypeStruct], list[engine.Problem]]:
    """Return the parameters in the dtype to store, and problems of parameters with tensors of several dtypes.

    float8 becomes bfloat16, which has all its values; autoencoders are stored in float32.

    Raises:
      UserError: the file has tensors of another dtype.
    """
    where, narrow = str(source.path), family.autoencoder is None
    counts = collections.Counter(info.dtype for info in source.tensors.values())
    usual = counts.most_common(1)[0][0]
    stored, mixed = {}, []
    for path, leaf in params.items():
        found = {source.tensors[name].dtype for name in places[path]}
        if len(found) > 1 and dtype is None:
            names = ", ".join(sorted(map(str, found)))
            mixed.append(engine.Problem("mixed", path, f": its tensors are {names} (choose one with --dtype)"))
        chosen = np.dtype(dtype) if dtype else next(iter(found), usual)
        if narrow and str(chosen).startswith(_FLOAT8):
            chosen = np.dtype("bfloat16")
        stored[path] = jax.ShapeDtypeStruct(leaf.shape, chosen)
    if other := {str(leaf.dtype) for leaf in stored.values()} - set(DTYPES):
        fix = "choose one with --dtype" if narrow else "give the published files"
        raise errors.UserError(
            f"{where}: has tensors of {', '.join(sorted(other))}, expected {', '.join(DTYPES)}: {fix}"
        )
    return stored, mixed


class _Reader:
    """Reader of one parameter of a plan from its tensors, for the writer of a checkpoint.

    Several threads may read at the same time.

    Attributes:
      digest: checksum of the rows read so far.
      non_finite: tensors read so far that have NaN or infinite values.
    """

    def __init__(self, plan: Plan, path: str, advance: Callable[[int], None]):
        self._leaf, self._places = plan.params[path], plan.places[path]
        self._source, self._advance = plan.source, advance
        complete = sum(math.prod(place.shape) for place in self._places.values()) == math.prod(self._leaf.shape)
        self._initial = None if complete else functools.cache(functools.partial(_initial, plan, path))
        self.digest = digests.Digest(self._leaf)
        self.non_finite: set[str] = set()

    def read(self, index: engine.Index) -> np.ndarray:
        """Read some rows from slices of the tensors."""
        dtype = self._leaf.dtype
        initial = None if self._initial is None else self._initial()[index].astype(dtype)
        block = engine.read_block(self._places, index, dtype, self._read, initial)
        self.digest.add(block, index[0].start if index else 0)
        self._advance(block.nbytes)
        return block

    def _read(self, name: str, box: engine.Index) -> np.ndarray:
        with np.errstate(over="ignore"):
            value = self._source.read(name, box).astype(self._leaf.dtype, copy=False)
        if not finite.all_finite(value):
            self.non_finite.add(name)
        return value


def _initial(plan: Plan, path: str) -> np.ndarray:
    """Return the model's initial values of a parameter; the compiler removes all other parameters."""

    @jax.jit
    def init(key: jax.Array) -> jax.Array:
        params = nnx.to_flat_state(nnx.state(plan.target.init(nnx.Rngs(key)), nnx.Param))
        value: jax.Array = next(leaf[...] for keys, leaf in params if "/".join(map(str, keys)) == path)
        return value

    with nnx.use_eager_sharding(False):
        return np.asarray(init(jax.random.key(0 if plan.config is None else plan.config.seed)))


def import_weights(
    origin: pathlib.Path,
    output: pathlib.Path,
    options: Options,
    *,
    overwrite: bool = False,
    console: rich.console.Console | None = None,
) -> tuple[Plan, dict[str, Any]]:
    """Write `output` from the tensors in `origin`; -> (plan of the import, record of the import).

    `output` is the folder of a run or, for an autoencoder, its file or the folder for the file.

    Raises:
      UserError: as in `make_plan`; a tensor is not finite; `output` exists or cannot be written. No partial output
        remains.
    """
    with sources.open_source(origin) as source:
        plan = make_plan(source, options)
        plan.source.check_heads()
        with _destination(plan, output, overwrite) as partial, outputs.progress(console) as bar:
            outputs.check_space(output, plan.size)
            task = bar.add_task("importing", total=plan.size)
            readers = {path: _Reader(plan, path, lambda count: bar.advance(task, count)) for path in plan.params}
            arrays = {
                path: store.LazyArray(leaf.shape, leaf.dtype, readers[path].read) for path, leaf in plan.params.items()
            }
            record = _record(plan)
            if isinstance(plan.target, autoencoders.Target):
                autoencoders.write_file(partial, plan.target, arrays, record)
            else:
                store.save(partial / runs.IMPORTED, arrays)
            names = sorted(name for reader in readers.values() for name in reader.non_finite)
            non_finite = [engine.Problem("non-finite", name) for name in names]
            engine.check(non_finite, str(origin), "download the file again, or choose another --dtype")
            written = {path: reader.digest.entry() for path, reader in readers.items()}
            record |= {"checksum": digests.of_all(written), "arrays": written}
            if plan.config is not None:
                (partial / runs.IMPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n")
                run_config.save(plan.config, partial)
                _carry(plan, partial / runs.ENCODERS)
    return plan, record


def _carry(plan: Plan, folder: pathlib.Path) -> None:
    """Copy the files that belong to the weights, each from the first checkpoint that has it."""
    origins = [file.parent for file in plan.source.files[:1]]
    origins += [path if path.is_dir() else path.parent for path in map(pathlib.Path, plan.selection.bases)]
    for name in plan.layout.carried:
        found = next((origin / name for origin in origins if (origin / name).is_file()), None)
        if found is not None:
            folder.mkdir(exist_ok=True)
            files.copy(found, folder / name)


@contextlib.contextmanager
def _destination(plan: Plan, output: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yield the folder to fill or, for an autoencoder, the file to write."""
    if plan.config is not None:
        outputs.check_output(output, overwrite, is_ours=(output / runs.IMPORT_RECORD).is_file())
        with outputs.new_folder(output) as partial:
            yield partial
        return
    name = output.name if output.suffix == ".safetensors" else records.AUTOENCODER_FILE

    def is_ours(folder: pathlib.Path) -> bool:
        return [child.name for child in folder.iterdir()] == [name]

    with outputs.destination(output, [name], is_ours, overwrite=overwrite) as (partial, _):
        yield partial / name


def _record(plan: Plan) -> dict[str, Any]:
    source = plan.source
    return {
        "family": plan.family.name,
        "layout": plan.layout.name,
        "variant": plan.variant,
        "source": str(source.path),
        "files": [file.name for file in source.files],
        "tensors": sum(map(len, plan.places.values())),
        "parameters": sum(math.prod(leaf.shape) for leaf in plan.params.values()),
        "dtype": ", ".join(sorted({str(leaf.dtype) for leaf in plan.params.values()})),
        "selection": dataclasses.asdict(plan.selection),
        "ignored": list(plan.ignored),
        "initial": list(plan.initial),
    }
