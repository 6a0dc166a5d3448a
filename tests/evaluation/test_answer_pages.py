"""Pages and tables of answers next to their references and images."""

import base64
import io
import pathlib
import re

import numpy as np
import PIL.Image
import rich.console

from jworld.evaluation import answer_pages


def test_a_page_shows_images_and_escapes_texts(tmp_path: pathlib.Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 900, 3), np.uint8)
    entries = [
        answer_pages.Entry(
            question="a < b?", answers={"model": "<b>yes</b>"}, truth="no & yes", images=[image, image[:, :40]]
        ),
        answer_pages.Entry(question="2?", answers={"model": "two"}, right={"model": True}),
    ]
    answer_pages.write(tmp_path / "page.html", "Title", entries, [("loss", "0.5")])
    text = (tmp_path / "page.html").read_text()
    for part in ("a &lt; b?", "&lt;b&gt;yes&lt;/b&gt;", "no &amp; yes", '<td class="right">two</td>', "<td>loss</td>"):
        assert part in text
    stored = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    sizes = [PIL.Image.open(io.BytesIO(base64.b64decode(data))).size for data in stored]
    assert sizes == [(448, 15), (40, 30)]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_table_has_a_column_per_way() -> None:
    entries = [
        answer_pages.Entry(question=f"q{i} [x]", answers={"with": f"a{i}", "without": f"b{i}"}, truth=f"t{i}")
        for i in range(3)
    ]
    console = rich.console.Console(file=io.StringIO(), width=100)
    console.print(answer_pages.table(entries, limit=2))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("with", "without", "reference", "q1 [x]", "a1", "b1", "t1"):
        assert part in printed
    assert "q2" not in printed
