"""The blocks of the guides: each is run or marked, and the texts of `pages.py` and `shrink.py` occur in them."""

import pathlib
from collections.abc import Callable

import pytest

from guides import blocks, pages, shrink

ALL = [block for page in blocks.pages() for block in blocks.of_page(page)]


def test_every_block_is_run_or_marked(record_property: Callable[[str, object], None]) -> None:
    """A fenced block of another kind, or a mark that marks nothing, is an error of `blocks.parse`."""
    commands = [block for block in ALL if block.kind != "text"]
    skipped = [block for block in commands if block.reason is not None]
    assert all(block.reason and block.reason.strip() for block in skipped)
    assert {block.page for block in commands} >= {"README.md", "docs/quickstart.md", "docs/train.md", "docs/data.md"}
    record_property("guide", f"{len(commands) - len(skipped)} command blocks are run, {len(skipped)} are not:")
    for block in skipped:
        record_property("guide", f"  {block.name}: {block.reason}")


def test_every_page_has_a_test() -> None:
    tests = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_guide_*.py"))
    run = {block.page for block in ALL if block.kind != "text" and block.reason is None}
    assert [page for page in sorted(run) if f'run_page("{page}")' not in tests] == []


def test_values_of_pages_occur_in_them() -> None:
    assert pages.PAGES.keys() <= set(blocks.pages())
    for page, needs in pages.PAGES.items():
        text = "".join(shrink.values(block.text) for block in blocks.of_page(page))
        assert [value for value in needs.values if value not in text] == [], page


def test_sizes_occur_in_the_guides() -> None:
    text = "".join(block.text for block in ALL)
    assert [value for value in shrink.VALUES if value not in text] == []
    assert [folder for folder in shrink.IMPORTS if folder not in text] == []
    # `make train-hf` makes a recipe from a config in JSON.
    names = {recipe: recipe.replace(".py", ".json") for recipe in {**shrink.RECIPES, **shrink.PLANS}}
    assert [recipe for recipe, made_from in names.items() if recipe not in text and made_from not in text] == []


PAGE = """# Title

```
python -m jworld.train --config=a.py
```

<!-- not run: needs a pod -->

```bash
xpk create
```

- a list

  ```python
  print("a")
  ```

```text
a drawing
```

| theirs | ours |
| --- | --- |
| `python -m scripts.train x` | `jworld convert export A`, or <!-- not run: no account --> `jworld train --a='b\\|c'` |
| `python -m jworld.train` | `--steps` |
"""


def test_blocks_of_a_page() -> None:
    assert blocks.parse("page.md", PAGE) == [
        blocks.Block("page.md", 3, "shell", "python -m jworld.train --config=a.py\n"),
        blocks.Block("page.md", 9, "shell", "xpk create\n", "needs a pod"),
        blocks.Block("page.md", 15, "python", 'print("a")\n'),
        blocks.Block("page.md", 19, "text", "a drawing\n"),
        blocks.Block("page.md", 25, "shell", "jworld convert export A\n"),
        blocks.Block("page.md", 25, "shell", "jworld train --a='b|c'\n", "no account"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```yaml\na: 1\n```\n", "page.md:1: the block is 'yaml', expected one of"),
        ("```text\npython -m jworld.train --config=a.py\n```\n", "page.md:1: the block is text and holds a command"),
        ("<!-- not run: why -->\n\nwords\n", "page.md:1: the mark stands before no block"),
        ("words\n<!-- not run: why -->\n", "page.md:2: the mark stands before no block"),
        ("| <!-- not run: why --> |\n", "page.md:1: the mark stands before no command"),
        ("words\n```\nmake\n", "page.md:2: the block has no end"),
    ],
)
def test_blocks_that_would_be_forgotten(text: str, message: str) -> None:
    with pytest.raises(blocks.MarkError, match=message):
        blocks.parse("page.md", text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python -m jworld.train --config=configs/ar_mem.py:8b --dry-run", ()),
        ("python -m jworld.train --config=configs/ar_mem.py:8b", (*shrink.RECIPES["ar_mem.py:8b"], *shrink.RUN)),
        ("jworld plan --config=configs/ar_mem.py:8b --topology x", shrink.PLANS["ar_mem.py:8b"]),
        ("jworld convert import a --output weights/ar", shrink.IMPORTS["weights/ar"]),
        ("jworld doctor --config=configs/ar_mem.py:8b", shrink.COMMANDS["jworld.doctor"]),
        ("python scripts/x.py --a", ()),
    ],
)
def test_overrides_are_appended(words: str, expected: tuple[str, ...]) -> None:
    assert shrink.command(words.split()) == [*words.split(), *expected]


def test_an_override_replaces_the_key_of_the_guide() -> None:
    words = ["python", "-m", "jworld.train", "--config=configs/ar_mem.py", "--config.steps=400", "--workdir=a"]
    changed = shrink.command(words)
    assert changed.count("--config.steps=2") == 1
    assert "--config.steps=400" not in changed
    assert changed[3:5] == ["--config=configs/ar_mem.py", "--workdir=a"]
