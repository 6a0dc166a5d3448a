"""Words that the project does not use: the checker on examples, and on every file of the repository."""

import collections

import pytest

from scripts import check_words


def phrases(text: str, path: str = "page.md") -> list[str]:
    return [finding.phrase for finding in check_words.check_text(path, text)]


@pytest.mark.parametrize(
    "text",
    [
        "The model is told the prompt.",
        "The manifest tells the frame rate.",
        "Room for kept keys.",
        "The file beside the weights.",
        "Padding behind the text.",
        "It trains anew.",
        "A folder is refused for good.",
        "Checked at birth.",
        "The run goes on.",
        "It went\non after the step.",
        "The kernel wants blocks.",
        "The text is no number.",
        "These are no adapters.",
        "One of several processes writes.",
        "Of the weights, half are frozen.",
        "- Of one sample the tokens are split.",
        "The linear codec of the data set.",
        "The first picture.",
        "On held-out walks it is better.",
        "A walk through rooms.",
        "Colours fade.",
        "Normalised latents.",
        "The behaviour of neighbours.",
        "The centre of an image, 3 metres away.",
        "Utilisation is low; the optimiser is off.",
        "It was learnt.",
        "Licences of the weights.",
        "A grey wall.",
    ],
)
def test_a_banned_phrase_is_found_in_prose_comments_and_strings(text: str) -> None:
    assert phrases(text)
    assert phrases(f'"""Return a value.\n\n{text}\n"""\n', "module.py")
    assert phrases("".join(f"# {line}\n" for line in text.split("\n")), "module.py")


@pytest.mark.parametrize(
    "text",
    [
        "There is no colored wall; there are no images.",
        "It is no longer than 3 meters and no less gray.",
        "Of course the video codec matters.",
        "Walk forward, then the camera walks 3 latents back.",
        "`beside_torch.py` compares; see [the file](beside.md) and https://example.org/picture.",
        "```\nThe picture behind the codec.\n```",
        "Noise, precise raises and the exercise of a promise are fine words; four hours of your source.",
    ],
)
def test_plain_words_pass(text: str) -> None:
    assert not phrases(text)


def test_names_in_code_are_not_words() -> None:
    assert not phrases('colour = codec["picture"].behind(walks, told=1)\n', "module.py")


@pytest.mark.parametrize("word", ["What", "How", "Which", "Where", "Whether", "Of"])
def test_the_first_sentence_of_a_docstring_has_a_head(word: str) -> None:
    source = f'def size():\n    """{word} size of a thing."""\n'
    assert any(finding.line == 2 and word in finding.phrase for finding in check_words.check_text("module.py", source))


def test_a_help_text_can_be_read_alone() -> None:
    assert phrases('parser.add_argument("--seed", help="of the noise (default: 0)")\n', "module.py")
    assert not phrases('parser.add_argument("--seed", help="seed of the noise (default: 0)")\n', "module.py")


def test_a_finding_names_file_line_phrase_and_replacement() -> None:
    source = 'x = 1\nraise ValueError(\n    "the file is "\n    "no recipe"\n)\n'
    (finding,) = check_words.check_text("jworld/module.py", source)
    assert str(finding) == 'jworld/module.py:3: "is no recipe" -> is not a ...'


@pytest.fixture(scope="module")
def findings() -> list[check_words.Finding]:
    return check_words.check_files(check_words.ROOT, check_words.tracked_files(check_words.ROOT))


def test_the_repository_uses_none_of_the_phrases(findings: list[check_words.Finding]) -> None:
    counts = collections.Counter(f.path for f in findings if not check_words.is_allowed(f))
    assert not counts, "\n".join(f"{count:5d} {path}" for path, count in counts.most_common())


def test_every_exception_is_needed(findings: list[check_words.Finding]) -> None:
    found = {(finding.path, finding.phrase.lower()) for finding in findings}
    assert check_words.ALLOWED.keys() <= found
    assert all(reason.strip() for reason in check_words.ALLOWED.values())
