"""The front door: links and anchors of every page, files that other programs parse, versions, and the site itself."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts import import_graph

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PARSED = sorted(
    [ROOT / "CITATION.cff", ROOT / "mkdocs.yml", ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
)


class Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return mapping


def parse(path: pathlib.Path) -> Any:
    return yaml.load(path.read_text(), Loader)


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: pathlib.Path) -> str:
    """Return a page without code blocks."""
    return re.sub(r"^ *(```|~~~).*?^ *\1", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(path: pathlib.Path) -> list[str]:
    """Return the targets of the links and images of a page, those in HTML included."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    return re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"\b(?:src|href)=\"([^\"]+)\"", text)


def anchors(path: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as repository hosts derive them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*)$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = sum(1 for anchor in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", anchor))
        found.add(f"{slug}-{number}" if slug in found else slug)
    return found


def broken(path: pathlib.Path) -> Iterator[str]:
    """Yield what is wrong with the relative links of a page."""
    for link in links(path):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            yield f"{link}: there is no file {target}"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{link}: {file.name} has no heading with this anchor"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_and_anchors_exist(page: pathlib.Path) -> None:
    assert list(broken(page)) == []


def test_broken_links_are_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "b.md").write_text("# Title of `it`: a, b\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# Own\n[1](b.md#title-of-it-a-b) [2](#own) [3](b.md#twice-1) [4](https://example.org/x) `[5](code.md)`\n"
        "[6](c.md) [7](b.md#no-heading) [8](#missing) ![9](missing.png)\n"
        '<img src="lost.png" alt="lost">\n'
    )
    assert [line.split(":")[0] for line in broken(page)] == [
        "c.md",
        "b.md#no-heading",
        "#missing",
        "missing.png",
        "lost.png",
    ]


@pytest.mark.parametrize("path", PARSED, ids=name)
def test_yaml_parses(path: pathlib.Path) -> None:
    assert isinstance(parse(path), dict)


def test_workflows_run_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = parse(path)["jobs"]
        for job in jobs.values():
            assert job["runs-on"]
            assert job["timeout-minutes"] <= 120
            assert set(job.get("needs", "").split()) <= jobs.keys()
            commands = "\n".join(step.get("run", "") for step in job["steps"])
            called += re.findall(r"^make ([\w.-]+)", commands, flags=re.MULTILINE)
    assert {"lint", "test", "test-slow", "docs"} <= set(called) <= targets


def test_issue_forms_have_what_a_form_needs() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) == 3
    for path in forms:
        form = parse(path)
        assert form["name"]
        assert form["description"]
        identifiers = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(identifiers) == len(set(identifiers)) > 0


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", changelog, flags=re.MULTILINE)
    assert "## [Unreleased]\n" in changelog
    assert released[0] == version
    citation = parse(ROOT / "CITATION.cff")
    assert str(citation["version"]) == version
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_new_names_in_the_changelog_exist() -> None:
    """Every module on the right of the tables of moved modules and commands can be imported by this name."""
    rows = re.findall(r"^\| `[^`]+` \| `(?:python -m )?([^`]+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        package, _, modules = row.rpartition(".")
        for module in modules.split(", "):
            first = package.replace(".", "/")
            assert module == "*" or any(
                (ROOT / first / tail).exists() for tail in (f"{module}.py", f"{module}/__init__.py")
            ), f"{package}.{module}"


def nav_pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav_pages(value) if isinstance(value, list) else [value]


def test_the_navigation_names_every_page() -> None:
    navigation = list(nav_pages(parse(ROOT / "mkdocs.yml")["nav"]))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(navigation) == pages | {"contributing.md", "changelog.md"}
    assert len(navigation) == len(set(navigation))


def exists(room: str) -> bool:
    path = ROOT / room.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def test_every_room_has_a_reference_page_and_a_row_in_the_design() -> None:
    described = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    design = (DOCS / "design.md").read_text()
    order = import_graph.layer_order(ROOT / "pyproject.toml")
    rooms = {room for room in order if exists(room)} - import_graph.COMMANDS.keys() - import_graph.PARTS.keys()
    assert len(rooms) > 15
    for room in rooms:
        assert re.search(rf"^::: {re.escape(room)}$", described, flags=re.MULTILINE), f"no reference of {room}"
        assert room == "jworld" or f"`{room}`" in design, f"docs/design.md does not name {room}"


def test_the_design_names_every_dependency() -> None:
    table = (DOCS / "design.md").read_text().partition("## Dependencies")[2].lower().replace("_", "-")
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        package = re.split(r"[\[<>=; ]", requirement)[0].lower().replace("_", "-")
        assert re.search(rf"\b{re.escape(package)}\b", table), package


def test_docstrings_are_markdown() -> None:
    """Outside backquotes `<step>` is a tag, which the site drops, and `[a][b]` is a reference to b."""
    found = []
    for path in [*(ROOT / "jworld").rglob("*.py"), *(ROOT / "conversion").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                blocks = (ast.get_docstring(node) or "").split("\n\n")
                text = "\n\n".join(block for block in blocks if not block.startswith("    "))
                wrong = re.findall(r"</?[a-zA-Z][^<>\n]*>|\[[^\[\]]+\]\[[^\[\]]+\]", re.sub(r"`[^`]*`", "", text))
                found += [f"{name(path)}: {tag}" for tag in wrong]
    assert found == []


def mkdocs(config: pathlib.Path, site: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: pathlib.Path) -> None:
    result = mkdocs(ROOT / "mkdocs.yml", tmp_path)
    assert result.returncode == 0, result.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {
        "index.html",
        "quickstart.html",
        "contributing.html",
        "changelog.html",
        "reference/models.html",
    } <= pages.keys()
    for path, page in pages.items():
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//", page), path
        assert not re.findall(r"<link[^>]*\srel=\"?(?:stylesheet|preconnect|preload)\"?[^>]*//", page), path
    for module in ("jworld.training.checkpoints", "jworld.models.layers.attention", "conversion.engine"):
        assert any(f'id="{module}"' in page for page in pages.values()), module
    assert 'href="design.html"' in pages["contributing.html"]
    assert 'href="contributing.html"' in pages["index.html"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("# Page\n[fine](#page)\n", ""),
        ("# Page\n[lost](missing.md)\n", "missing.md"),
        ("# Page\n[lost](#missing)\n", "#missing"),
    ],
)
def test_a_broken_link_or_anchor_fails_the_build(tmp_path: pathlib.Path, text: str, complaint: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(text)
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\nnav: [index.md]\nhooks: []\nplugins: [search]\n")
    result = mkdocs(config, tmp_path / "site")
    assert (result.returncode != 0) == bool(complaint), result.stderr
    assert complaint in result.stderr
