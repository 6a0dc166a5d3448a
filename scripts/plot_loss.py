"""Plot the training loss of one or more runs from their metrics.jsonl.

python scripts/plot_loss.py runs/ar_mem-starter --output docs/starter_loss.png
"""

import pathlib
from collections.abc import Sequence

import matplotlib.figure

from jworld.training import metrics
from jworld.utils import arguments, errors, outputs


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser("python scripts/plot_loss.py", str(__doc__))
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="folders of training runs")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="PNG file to write")
    options = parser.parse(argv)
    outputs.check_file("--output", options.output)
    if options.output.suffix.lower() != ".png":
        raise errors.UserError(f"--output {options.output} ends in {options.output.suffix!r}, expected .png")
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in options.runs:
        if not (run / metrics.FILE).is_file():
            raise errors.UserError(f"{run / metrics.FILE} does not exist: give the folder of a training run")
        rows = [row for row in metrics.read(run) if row.get("loss_mean") is not None]
        axes.plot([row["step"] for row in rows], [row["loss_mean"] for row in rows], label=run.name)
    axes.set(xlabel="step", ylabel="training loss (velocity, mean squared error)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(options.output, dpi=110)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
