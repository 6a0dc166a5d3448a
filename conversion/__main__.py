"""python -m conversion: weights of the PyTorch programs in and out.

import   a PyTorch checkpoint -> a folder that jworld trains on and generates from, or an autoencoder's file
fuse     the same of a checkpoint and a file of adapters (LoRA), which are added to its matrices
export   what import wrote, or a run -> safetensors, .pt or .pth under the original keys
inspect  what a checkpoint, a folder or a file is, in a table
verify   what import wrote against the checkpoint that it came from
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import rich.console
import rich.table

from conversion import exporting, families, importing, inspecting, selecting, torch_files, verifying
from jworld.utils import errors

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    # Weights go from file to file: an accelerator stays free for who needs it.
    jax.config.update("jax_platforms", "cpu")
    run: Callable[[argparse.Namespace], None] = arguments.run
    run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conversion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import(commands)
    _add_fuse(commands)
    _add_export(commands)
    inspect = _add(commands, "inspect", _inspect, "Say what a checkpoint or what import wrote is, without loading it.")
    inspect.add_argument("source", type=pathlib.Path, help="file or folder as downloaded, or of jworld")
    inspect.add_argument("--step", type=int, help="step of a run (default: the newest)")
    verify = _add(commands, "verify", _verify, "Compare every element of weights with the checkpoint they came from.")
    verify.add_argument(
        "directory", type=pathlib.Path, metavar="dir", help="folder or file that import wrote, or a run"
    )
    verify.add_argument("source", type=pathlib.Path, help="file or folder as downloaded")
    verify.add_argument("--step", type=int, help="step of a run (default: the newest)")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: object, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "import",
        _import,
        "Write the weights of a PyTorch checkpoint and the config to use them with: a folder or, for a video "
        "autoencoder (families *-vae), one file. Sizes come from the tensors, from the config.json beside them, from a "
        "recipe and from --set; they must agree.",
    )
    parser.add_argument(
        "source",
        type=pathlib.Path,
        help="a .safetensors file, the index of a sharded one, a .pt or .pth file, or the folder as downloaded",
    )
    parser.set_defaults(adapters=None)
    _add_weights(parser, output="folder to create; for an autoencoder also the name of a .safetensors file")
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights of a training checkpoint that has both"
    )
    parser.add_argument(
        "--lora-alpha",
        type=float,
        metavar="X",
        help="adapters (LoRA) in the checkpoint are merged with the factor X / rank (default: their rank)",
    )


def _add_fuse(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "fuse",
        _import,
        "Import a PyTorch checkpoint with a file of adapters (LoRA in the layout of diffusers and peft) added to its "
        "matrices: W + X / rank B A, in float32. `export` then writes the fused checkpoint in the original's layout. A "
        "run that was trained here needs none of this: training and export add its adapters by themselves.",
    )
    parser.add_argument("source", type=pathlib.Path, help="the checkpoint, a file or folder as downloaded")
    parser.add_argument("adapters", type=pathlib.Path, help="such as pytorch_lora_weights.safetensors")
    _add_weights(parser, output="folder to create")
    parser.add_argument(
        "--lora-alpha", type=float, metavar="X", help="the alpha that they were trained with (default: their rank)"
    )
    parser.set_defaults(ema=False)


def _add_weights(parser: argparse.ArgumentParser, *, output: str) -> None:
    """What every import takes."""
    parser.add_argument("--family", choices=sorted(families.FAMILIES), help="kind of checkpoint (default: found out)")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="PATH", help=output)
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="recipe that the weights must fit and whose other values to use, as configs/ar_mem.py:8b "
        "(default: the published values)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="one value of the config, as model.rope_dims=16,56,56, or of an autoencoder, as attention=causal; may be "
        "repeated",
    )
    parser.add_argument(
        "--variant",
        choices=families.variants(),
        help="which published model it is: sets how it is sampled (default: by the name of the file or folder)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="regular expression of tensor names that may be unexpected (left out) or missing (start new)",
    )
    parser.add_argument(
        "--dtype", choices=importing.DTYPES, help="store in this type (default: the file's; not for autoencoders)"
    )
    parser.add_argument(
        "--base",
        action="append",
        default=[],
        metavar="PATH",
        help="checkpoint that has what the source lacks, as Gemma-3 and an autoencoder for TheWorld; may be repeated",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier import wrote")


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "export",
        _export,
        "Write weights under the keys of the program they came from, with its config.json.",
    )
    parser.add_argument(
        "directory",
        type=pathlib.Path,
        metavar="dir",
        help="folder or file that import wrote, or a run, whose averaged weights are taken",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="PATH",
        help="folder to create, or a .safetensors, .pt or .pth file",
    )
    layouts = sorted({layout for family in families.FAMILIES.values() for layout in family.layouts})
    parser.add_argument("--layout", choices=layouts, help="whose keys (default: those it was imported from)")
    parser.add_argument(
        "--adapters", action="store_true", help="only the adapters of a run with model.lora, in the layout of peft"
    )
    parser.add_argument("--dtype", choices=importing.DTYPES, help="write in this type (default: as stored)")
    parser.add_argument("--step", type=int, help="step of a run (default: the newest)")
    parser.add_argument(
        "--trained",
        action="store_true",
        help="of a run, write only what it trained, as TheWorld's own checkpoints (default: everything)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export wrote")


def _import(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    options = importing.Options(
        family=arguments.family,
        recipe=arguments.config,
        settings=arguments.settings,
        variant=arguments.variant,
        allow=arguments.allow,
        dtype=arguments.dtype,
        selection=selecting.Selection(
            average=arguments.ema,
            lora_alpha=arguments.lora_alpha,
            adapters=None if arguments.adapters is None else str(arguments.adapters),
            bases=tuple(arguments.base),
        ),
    )
    plan, record = importing.import_weights(
        arguments.source, arguments.output, options, overwrite=arguments.overwrite, console=console
    )
    seconds = time.perf_counter() - began
    console.print(
        f"imported {record['tensors']:,} tensors, {record['parameters']:,} parameters ({record['dtype']}, checksum "
        f"{record['checksum']}) to {arguments.output} in {seconds:.1f} s, {plan.size / seconds / 1e6:.0f} MB/s"
    )
    what, names = plan.family.describe({}), plan.published
    if plan.config is not None:
        facts = {key: plan.config.model[key] for key in plan.config.model}
        what = f"{plan.family.describe(facts)}, sampled as {plan.variant} (--variant)"
        names = [f"model.{name}" for name in plan.published]
    console.print(what)
    if plan.source.rank is not None:
        alpha = arguments.lora_alpha or plan.source.rank
        console.print(
            f"adapters of rank {plan.source.rank} are merged, with the factor {alpha:g} / rank (--lora-alpha)"
        )
    for text, listed in (
        ("published values, which nothing in the checkpoint tells", names),
        ("left out, as allowed", plan.ignored),
        ("not in the checkpoint, so new, as allowed", plan.initial),
    ):
        if listed:
            console.print(f"{text}: {', '.join(listed)}")
    for line in plan.family.beside(arguments.source):
        console.print(line)
    console.print(f"next: python -m conversion verify {arguments.output} {arguments.source}")
    if plan.config is None:
        console.print(f"      python -m jworld.precompute --autoencoder {arguments.output} --help")
    else:
        console.print(f"      python -m jworld.generate --checkpoint {arguments.output} --help")


def _export(arguments: argparse.Namespace) -> None:
    export: Callable[..., exporting.Summary] = exporting.export_weights
    if arguments.adapters:
        export = exporting.export_adapters
    elif arguments.trained:
        export = functools.partial(export, trained=True)
    summary = export(
        arguments.directory,
        arguments.output,
        layout=arguments.layout,
        dtype=arguments.dtype,
        step=arguments.step,
        overwrite=arguments.overwrite,
        console=console,
    )
    console.print(
        f"exported {summary.tensors:,} tensors, {summary.parameters:,} parameters in the layout of "
        f"{summary.layout.title} to {', '.join(map(str, summary.files))}"
    )
    if summary.limits:
        console.print(f"that program cannot load these sizes: {'; '.join(summary.limits)}")
    first = summary.files[0]
    if arguments.adapters:
        console.print(f"next: python -m conversion fuse CHECKPOINT {first} --output DIR, or load it beside the base")
        return
    written = first if first.suffix in torch_files.SUFFIXES else first.parent
    console.print(f"next: python -m conversion verify {arguments.directory} {written}")


def _inspect(arguments: argparse.Namespace) -> None:
    table = rich.table.Table("", str(arguments.source), show_header=True)
    for title, text in inspecting.inspect(arguments.source, step=arguments.step).items():
        table.add_row(title, text)
    console.print(table)


def _verify(arguments: argparse.Namespace) -> None:
    summary = verifying.verify(arguments.directory, arguments.source, step=arguments.step, console=console)
    console.print(
        f"equal: {summary.tensors:,} tensors, {summary.parameters:,} parameters, checksum {summary.checksum}"
        + (f"; left out at the import: {', '.join(summary.ignored)}" if summary.ignored else "")
    )


if __name__ == "__main__":
    main()
