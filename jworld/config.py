"""python -m jworld.config --config=configs/ar_mem.py

Prints every key of a config: name, value, where the value comes from, type and meaning.
"""

import pathlib
from collections.abc import Sequence

from jworld.systems import recipes
from jworld.utils import arguments, errors
from jworld.utils import config as run_config


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(
        "python -m jworld.config",
        "Print every key of a config in one line: its name, its value, the source of the value (recipe, saved, default "
        "or command line), its type and its meaning. Nothing is trained.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        help="recipe such as configs/ar_mem.py:8b, a Python file that is executed, or the folder of a run",
    )
    arguments.add_changes(parser, default="as in the recipe")
    options = parser.parse(argv)
    is_run = (pathlib.Path(options.config) / run_config.FILE_NAME).is_file()
    base = run_config.load(pathlib.Path(options.config)) if is_run else run_config.load_recipe(options.config)
    run_config.check_sections(base)
    config = recipes.change(base, options.changes)
    recipes.print_keys(recipes.keys(config, base, options.changes, base_name="saved" if is_run else "recipe"))


if __name__ == "__main__":
    main()
