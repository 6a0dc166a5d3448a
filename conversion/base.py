"""Entries of the registry of checkpoint families: a family, its key layouts, and the runs that its weights become."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from conversion import schedulers, sources
from conversion.engine import Rule, Shape
from jworld.utils import errors


def check_prediction(prediction: str) -> None:
    """Raise UserError for a network that predicts (`model.prediction`) what the original programs do not expect."""
    if prediction != "velocity":
        raise errors.UserError(
            f"model.prediction is {prediction!r}, expected 'velocity': the original programs take the network's output "
            "for it"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """One way in which the tensors of a family are named and laid out.

    Attributes:
      name: value of `--layout`.
      title: the programs that use this layout, for messages.
      marks: names of tensors that identify the layout: each file has at least one of them, other layouts have none.
      rules: model config -> key table.
      from_shapes: tensor shapes by name -> the fields of the model config that follow from them.
      from_config: content of a downloaded config.json, its path for messages -> the fields that it sets. A `UserError`
        lists the values that the network here does not support.
      to_config: model config -> content of the config.json next to exported weights. A `UserError` has
        the reason why a model cannot be written in this layout.
      limits: model config -> why the other program cannot load all of it or describe it; empty if it can.
      omits: regular expression of paths of parameters that an export leaves out, because the other program has no place
        for them.
      prefixes: prefixes of the key table's names, and of EMA weights; files may also have neither.
      ignored: names of tensors in a file that are not weights.
      adapter_prefix: prefix of the names in a single file of adapters.
      adapter_layout: layout of the names in peft, whose adapters have the names of modules; None for this layout.
      from_base: names of tensors in a base checkpoint -> {name in this layout: name there}; None if every checkpoint is
        complete.
      embedding: the tensor that may have more rows than the model; None without one.
      heads: names of output heads, which files may repeat although they are equal to the embedding.
      rows: content of a config.json -> the model's rows of the embedding, or None if it does not say.
      weights_name: name of the weights file in an exported folder.
      one_file: True if the other program reads one file of weights, however large, and no index of several.
      carried: files next to the weights, such as those of a tokenizer, that import and export copy.
      companions: model config, folder of the carried files -> name and content of further files that the other program
        needs next to exported weights.
      trained_config: paths of the parameters that a run trained -> additional entries of config.json if only those are
        exported; None if the other program needs all weights.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    rules: Callable[[Any], Sequence[Rule]]
    from_shapes: Callable[[Mapping[str, Shape]], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    to_config: Callable[[Any], dict[str, Any]]
    limits: Callable[[Any], list[str]] = lambda model: []
    omits: str = ""
    prefixes: tuple[str, ...] = ()
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    adapter_prefix: str = "diffusion_model."
    adapter_layout: str | None = None
    from_base: Callable[[Iterable[str]], dict[str, str]] | None = None
    embedding: str | None = None
    heads: tuple[str, ...] = ()
    rows: Callable[[Mapping[str, Any] | None], int | None] = lambda config: None
    weights_name: str = sources.WEIGHTS_NAME
    one_file: bool = False
    carried: tuple[str, ...] = ()
    companions: Callable[[Any, pathlib.Path], Mapping[str, str]] = lambda model, folder: {}
    trained_config: Callable[[Iterable[str]], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Folder with a network and all other models that a program needs to sample from it.

    Attributes:
      title: the program that opens the folder, for messages.
      layout: key layout of the network.
      network: published model (None for a run without one), config of the run -> sub-folder of the network.
      base_network: sub-folder of the network that the program loads before another one; None without one.
      classes: values of `_class_name` in model_index.json, first the usual one; empty if there is no such file.
      parts: entries of model_index.json by sub-folder, with the network and the scheduler. Without such a file, the
        sub-folders that must exist.
      scheduler: content of scheduler_config.json where the given folder has none; None to copy the given file.
    """

    title: str
    layout: str
    network: Callable[[str | None, ml_collections.ConfigDict], str] = lambda variant, config: "transformer"
    base_network: str | None = None
    classes: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """The conversion of a network's weights into a run of a system.

    Attributes:
      system: `config.system`.
      recipe: file in configs/ and its variant, whose values apply unless a checkpoint or the user sets others.
      variants: published model -> those values of `config.sample.rollout` that differ from the recipe's.
      guess_variant: path of a checkpoint, fields that follow from its shapes -> the published model it may be.
      recipes: recipes of published models that have their own.
      fit: sets other values of a config that follow from its model.
      scheduler_name: name of the file that `scheduler` reads.
      scheduler: content of a scheduler_config.json, its path for messages, published model -> the values that it sets,
        by dotted key of the config.
      to_scheduler: config -> the entries of scheduler_config.json that a run determines.
      pipelines: whole folders that `export --pipeline` writes; at most one has a model_index.json.
    """

    system: str
    recipe: str
    variants: Mapping[str, Mapping[str, Any]]
    guess_variant: Callable[[pathlib.Path, Mapping[str, Any]], str]
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fit: Callable[[ml_collections.ConfigDict], None] = lambda config: None
    scheduler_name: str = schedulers.NAME
    scheduler: Callable[[Mapping[str, Any], str, str], dict[str, Any]] = lambda values, where, variant: {}
    to_scheduler: Callable[[ml_collections.ConfigDict], dict[str, Any]] = lambda config: {}
    pipelines: tuple[Pipeline, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one network in one or more layouts: the network of a system (`runs`) or an autoencoder.

    Attributes:
      name: value of `--family`.
      describe: known fields of the model config -> a description of the network.
      layouts: key layouts by name; the registry sets them.
      runs: the runs that the weights become; None for autoencoders.
      autoencoder: key of `jworld.models.autoencoders.files.NETWORKS`; None for the networks of systems.
      default_layout: model config, layout of the import or None -> layout of an export for which the user gives none.
      library_layout: model config -> layout that a library loads; None for that of diffusers, if it has the model.
      folder_notes: path of a checkpoint -> sentences about other contents of its folder.
    """

    name: str
    describe: Callable[[Mapping[str, Any]], str]
    layouts: Mapping[str, KeyLayout] = dataclasses.field(default_factory=dict)
    runs: Runs | None = None
    autoencoder: str | None = None
    default_layout: Callable[[Any, str | None], str] | None = None
    library_layout: Callable[[Any], str | None] = lambda model: None
    folder_notes: Callable[[pathlib.Path], list[str]] = lambda path: []

    def with_layouts(self, *layouts: KeyLayout) -> "Family":
        """Return the family with these layouts."""
        return dataclasses.replace(self, layouts={layout.name: layout for layout in layouts})
