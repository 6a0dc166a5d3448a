"""Hooks of mkdocs: pages from the root of the repository, and links that leave docs/.

CONTRIBUTING.md and CHANGELOG.md become pages of the site. In every page, links to these two lead to their pages; links
to other files outside docs/ keep their text and lose their target, because the site does not have those files.
"""

import pathlib
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: File at the root -> name of its page.
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def site_link(text: str, target: str, *, depth: int) -> str:
    """Return a link of a page in docs/, `depth` folders below it, as the site needs it.

    Args:
        text: text of the link.
        target: target relative to the page.
        depth: 0 for a page directly in docs/.
    """
    path, _, anchor = target.partition("#")
    outside = "../" * (depth + 1)
    if not path.startswith(outside):
        return f"[{text}]({target})"
    page = ROOT_PAGES.get(path.removeprefix(outside))
    if page is None:
        return text
    return f"[{text}]({'../' * depth}{page}{'#' + anchor if anchor else ''})"


def from_root(markdown: str) -> str:
    """Rewrite the links of a file at the root for its page, which lies in docs/."""

    def rewrite(match: re.Match[str]) -> str:
        text, target = match["text"], match["target"]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        inside = target.removeprefix("docs/")
        return f"[{text}]({inside})" if inside != target else site_link(text, f"../{target}", depth=0)

    return _LINK.sub(rewrite, markdown)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from the root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=from_root((ROOT / name).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page that leave docs/."""
    depth = page.file.src_uri.count("/")
    return _LINK.sub(lambda match: site_link(match["text"], match["target"], depth=depth), markdown)
