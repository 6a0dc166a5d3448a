"""Import and export of weights of the original PyTorch programs.

import   convert a PyTorch checkpoint to a folder for training and sampling, or to an autoencoder's file
fuse     import a checkpoint with the adapters (LoRA) of a separate file merged
export   write imported weights or a run as safetensors, .pt or .pth with the original keys
inspect  describe a checkpoint, a folder or a file in a table
verify   compare imported weights with the original checkpoint
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import rich.console
import rich.table

from conversion import (
    adapter_exports,
    exporting,
    families,
    folders,
    importing,
    inspecting,
    pipelines,
    selecting,
    torch_files,
    verifying,
)
from conversion import outputs as conversion_outputs
from jworld import systems
from jworld.systems import runs
from jworld.utils import arguments, errors, hub_folders, outputs

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse(argv)
    for name in ("source", "directory", "adapters"):
        if getattr(options, name, None) not in (None, True, False):
            setattr(options, name, hub_folders.find(getattr(options, name)))
    if getattr(options, "base", None):
        options.base = [str(hub_folders.find(base)) for base in options.base]
    if isinstance(output := getattr(options, "output", None), pathlib.Path):
        outputs.check_folder("--output", output.parent, of=output)
        # Found before a checkpoint is read.
        conversion_outputs.check_output(output, getattr(options, "overwrite", False), is_ours=True)
    # Conversion needs no accelerator and leaves it free for other processes.
    jax.config.update("jax_platforms", "cpu")
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)


def _parser() -> arguments.Parser:
    parser = arguments.Parser("python -m conversion", "Import, export and compare weights of the PyTorch programs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_import(commands)
    _add_fuse(commands)
    _add_export(commands)
    inspect = _add(commands, "inspect", _inspect, "Describe a checkpoint or weights of jworld, without loading them.")
    inspect.add_argument("source", type=pathlib.Path, help="downloaded file or folder, or weights of jworld")
    inspect.add_argument("--step", type=arguments.training_step, help="training step of a run (default: the newest)")
    verify = _add(commands, "verify", _verify, "Compare every element of weights with the original checkpoint.")
    verify.add_argument("directory", type=pathlib.Path, metavar="dir", help="output of import, or folder of a run")
    verify.add_argument("source", type=pathlib.Path, help="downloaded file or folder")
    verify.add_argument("--step", type=arguments.training_step, help="training step of a run (default: the newest)")
    return parser


def _add(
    commands: "argparse._SubParsersAction[arguments.Parser]", name: str, run: object, text: str, *, summary: str = ""
) -> arguments.Parser:
    parser = commands.add_parser(name, help=summary or text[0].lower() + text[1:].rstrip("."), description=text)
    parser.set_defaults(run=run)
    return parser


def _add_import(commands: "argparse._SubParsersAction[arguments.Parser]") -> None:
    parser = _add(
        commands,
        "import",
        _import,
        "Convert a PyTorch checkpoint to a folder with weights and config or, for a video autoencoder (families "
        "*-vae), to one file. Sizes follow from the tensors, the config.json next to them and a recipe; these sources "
        "must agree. --config.KEY=VALUE sets values that the weights do not determine.",
        summary="convert a PyTorch checkpoint to weights and config for training and sampling",
    )
    parser.add_argument(
        "source",
        type=pathlib.Path,
        help="a .safetensors file, the index of a sharded set, a .pt or .pth file, the downloaded folder, or a hub id",
    )
    parser.set_defaults(adapters=None)
    _add_weights(parser, output="folder to create, or the name of a .safetensors file for an autoencoder")
    parser.add_argument(
        "--ema", action="store_true", help="use the EMA weights of a training checkpoint with both kinds"
    )
    parser.add_argument(
        "--lora-alpha",
        type=float,
        help="alpha of the adapters (LoRA) in the checkpoint, merged with alpha / rank (default: their rank)",
    )


def _add_fuse(commands: "argparse._SubParsersAction[arguments.Parser]") -> None:
    parser = _add(
        commands,
        "fuse",
        _import,
        "Import a PyTorch checkpoint and merge the adapters of a separate file (LoRA in the layout of diffusers and "
        "peft): W + alpha / rank B A, in float32. `export` then writes the fused checkpoint in the original's layout. "
        "Runs of jworld do not need this command: training and export merge their adapters.",
        summary="import a checkpoint with the adapters (LoRA) of a separate file merged",
    )
    parser.add_argument("source", type=pathlib.Path, help="the checkpoint, a downloaded file or folder")
    parser.add_argument("adapters", type=pathlib.Path, help="adapter file, such as pytorch_lora_weights.safetensors")
    _add_weights(parser, output="folder to create")
    parser.add_argument(
        "--lora-alpha", type=float, help="alpha that the adapters were trained with (default: their rank)"
    )
    parser.set_defaults(ema=False)


def _add_weights(parser: arguments.Parser, *, output: str) -> None:
    """Add the options of every import."""
    parser.add_argument("--family", choices=sorted(families.FAMILIES), help="kind of checkpoint (default: detected)")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="PATH", help=output)
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="recipe that the weights must match and that sets all other values, such as configs/ar_mem.py:8b "
        "(default: the published values)",
    )
    arguments.add_changes(parser, default="as in the recipe", alias=True)
    parser.add_argument(
        "--variant",
        choices=families.variants(),
        help="published model, which sets how it is sampled (default: by the name of the file or folder)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="regular expression of tensor names that may be unexpected (ignored) or missing (newly initialized); may "
        "be repeated",
    )
    parser.add_argument(
        "--dtype", choices=importing.DTYPES, help="dtype to store (default: that of the file; not for autoencoders)"
    )
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="PATH",
        help="checkpoint with the tensors that the source lacks, such as Gemma-3 and an autoencoder for TheWorld; may "
        "be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier import")


def _add_export(commands: "argparse._SubParsersAction[arguments.Parser]") -> None:
    parser = _add(
        commands,
        "export",
        _export,
        "Write weights with the keys of the original program, and its config.json.",
        summary="write weights with the keys of the original program",
    )
    parser.add_argument(
        "directory",
        type=pathlib.Path,
        metavar="dir",
        help="output of import, or folder of a run, whose EMA weights are used if it has them",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="PATH",
        help="folder to create, or a .safetensors, .pt or .pth file",
    )
    layouts = sorted({layout for family in families.FAMILIES.values() for layout in family.layouts})
    parser.add_argument(
        "--layout",
        choices=[*layouts, exporting.LIBRARY],
        help="layout of the keys; library: one that transformers or diffusers loads, if it has the model (default: "
        "that of the import; of a .pt or .pth file original; of Gemma-3 the one that all versions of transformers "
        "load, hub or text)",
    )
    parser.add_argument(
        "--adapters", action="store_true", help="write only the adapters of a run with model.lora, in peft's layout"
    )
    parser.add_argument(
        "--pipeline",
        nargs="?",
        const="",
        metavar="PUBLISHED",
        help="write a whole folder to sample from: the weights, their scheduler, and links to or copies of the other "
        "models in the folder PUBLISHED (default: none; without a value the folder that the weights come from)",
    )
    parser.add_argument("--dtype", choices=importing.DTYPES, help="dtype to write (default: the stored dtype)")
    parser.add_argument("--step", type=arguments.training_step, help="training step of a run (default: the newest)")
    parser.add_argument(
        "--trained",
        action="store_true",
        help="write only the parameters that a run trained, as in TheWorld's own checkpoints (default: all)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output of an earlier export")
    parser.not_with("--trained", "--adapters")


def _import(options: argparse.Namespace) -> None:
    if folders.is_ours(options.source):
        raise errors.UserError(
            f"{options.source}: has weights of jworld, which need no import: use it as it is, or write it for other "
            "programs with `python -m conversion export`"
        )
    began = time.perf_counter()
    chosen = importing.Options(
        family=options.family,
        recipe=options.config,
        settings=[f"{key}={text}" for key, text in options.changes.items()],
        variant=options.variant,
        allow=options.allow,
        dtype=options.dtype,
        selection=selecting.Selection(
            average=options.ema,
            lora_alpha=options.lora_alpha,
            adapters=None if options.adapters is None else str(options.adapters),
            bases=tuple(options.base),
        ),
    )
    plan, record = importing.import_weights(
        options.source, options.output, chosen, overwrite=options.overwrite, console=console
    )
    seconds = time.perf_counter() - began
    console.print(
        f"imported {record['tensors']:,} tensors, {record['parameters']:,} parameters ({record['dtype']}, checksum "
        f"{record['checksum']}) to {options.output} in {seconds:.1f} s, {plan.size / seconds / 1e6:.0f} MB/s"
    )
    description, names = plan.family.describe({}), plan.published
    if plan.config is not None:
        facts = {key: plan.config.model[key] for key in plan.config.model}
        description = f"{plan.family.describe(facts)}, sampled as {plan.variant} (--variant)"
        names = [f"model.{name}" for name in plan.published]
    console.print(description)
    if plan.scheduler is not None and plan.scheduler[1]:
        values = ", ".join(f"{key}={value}" for key, value in plan.scheduler[1].items())
        console.print(f"by {plan.scheduler[0]}: {values}")
    if (lower := plan.lower_precision) is not None:
        console.print(
            f"the weights are float32, and the model computes with them in {lower}: --config.model.dtype=float32 "
            "computes as precisely as they are stored"
        )
    if plan.source.adapters is not None:
        console.print(f"merged adapters of {plan.source.adapters.describe()}")
    for text, listed in (
        ("published values, not given by the checkpoint", names),
        ("ignored, as allowed", plan.ignored),
        ("not in the checkpoint and newly initialized, as allowed", plan.initial),
    ):
        if listed:
            console.print(f"{text}: {', '.join(listed)}")
    for line in plan.family.folder_notes(options.source):
        console.print(line)
    if plan.layout.carried and plan.config is not None:
        problem = systems.create(plan.config).data.find_problem(options.output / runs.ENCODERS)
        if problem:
            console.print(
                f"{problem}: copy it there before generating, or import with --base from a folder that has it"
            )
    console.print(f"next: python -m conversion verify {options.output} {options.source}")
    if plan.config is None:
        console.print(f"      python -m jworld.precompute --autoencoder {options.output} --help")
    else:
        console.print(f"      python -m jworld.generate --checkpoint {options.output} --help")


def _export(options: argparse.Namespace) -> None:
    if options.pipeline is not None:
        _export_pipeline(options)
        return
    export: Callable[..., exporting.Summary] = exporting.export_weights
    if options.adapters:
        export = adapter_exports.export_adapters
    elif options.trained:
        export = functools.partial(export, trained=True)
    summary = export(
        options.directory,
        options.output,
        layout=options.layout,
        dtype=options.dtype,
        step=options.step,
        overwrite=options.overwrite,
        console=console,
    )
    _print_export(summary)
    first = summary.files[0]
    if options.adapters:
        console.print(f"next: python -m conversion fuse CHECKPOINT {first} --output DIR, or load it with the base")
        return
    written = first if first.suffix in torch_files.SUFFIXES else first.parent
    console.print(f"next: python -m conversion verify {options.directory} {written}")


def _export_pipeline(options: argparse.Namespace) -> None:
    others = {"--layout": options.layout, "--adapters": options.adapters, "--trained": options.trained}
    if given := [name for name, value in others.items() if value]:
        raise errors.UserError(
            f"--pipeline: the program decides {' and '.join(given)}: leave {' and '.join(given)} out"
        )
    summary = pipelines.export_pipeline(
        options.directory,
        options.output,
        hub_folders.find(options.pipeline) if options.pipeline else None,
        dtype=options.dtype,
        step=options.step,
        overwrite=options.overwrite,
        console=console,
    )
    _print_export(summary.network)
    kind = "links to" if summary.linked else "copies of"
    console.print(f"pipeline of {summary.pipeline.title}: {kind} {', '.join(summary.parts)} of {summary.base}")
    console.print(f"next: python -m conversion verify {options.directory} {summary.folder}")


def _print_export(summary: exporting.Summary) -> None:
    console.print(
        f"exported {summary.tensors:,} tensors, {summary.parameters:,} parameters in the layout of "
        f"{summary.layout.title} (--layout {summary.layout.name}) to {', '.join(map(str, summary.files))}"
    )
    if summary.omitted:
        console.print(f"left out, because files in this layout have no place for them: {', '.join(summary.omitted)}")
    if summary.limits:
        console.print(f"that program cannot load these sizes: {'; '.join(summary.limits)}")


def _inspect(options: argparse.Namespace) -> None:
    table = rich.table.Table("", str(options.source), show_header=True)
    for title, text in inspecting.inspect(options.source, step=options.step).items():
        table.add_row(title, text)
    console.print(table)


def _verify(options: argparse.Namespace) -> None:
    summary = verifying.verify(options.directory, options.source, step=options.step, console=console)
    console.print(
        f"equal: {summary.tensors:,} tensors, {summary.parameters:,} parameters, checksum {summary.checksum}"
        + (f"; ignored by the import: {', '.join(summary.ignored)}" if summary.ignored else "")
    )


if __name__ == "__main__":
    main()
