"""Train the small tokenizer of the embedded questions: python scripts/make_tokenizer.py [--output assets/tokenizer]

Byte-level BPE, which encodes any text, trained on the questions about recorded episodes; with Gemma's special tokens.
The result is deterministic. With `tokenizer_config.json`, transformers' AutoTokenizer loads the folder.
"""

import json
import pathlib
from collections.abc import Iterator

import tokenizers

from jworld.data.conversations import chat, questions
from jworld.data.recording import rooms
from jworld.utils import arguments, errors, outputs

VOCABULARY = 512
UNKNOWN = "<unk>"
WORDS = "yes no true false nearest closest above below behind in front of up down near far the a is are there this that"


def corpus() -> Iterator[str]:
    """Yield the questions and answers, and the words for the contents of the rooms."""
    for kind, phrases in questions.PHRASES.items():
        yield from phrases
        yield from questions.ANSWERS[kind]
    colors = sorted({name for palette in rooms.PALETTES for name, _ in palette})
    for color in colors:
        yield f"What colour is the wall? The wall is {color}. Describe this image in detail."
    yield WORDS
    yield "user\nmodel\n\n"


def make() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # Padding, end and beginning have the same numbers as in Gemma.
    first = [chat.PAD, chat.EOS, chat.BOS, UNKNOWN]
    special = [*first, *(name for name in (*chat.SPECIAL, *chat.WORLD) if name not in first)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


@errors.exit_on_user_error
def main() -> None:
    parser = arguments.Parser("python scripts/make_tokenizer.py", str(__doc__).splitlines()[0])
    parser.add_argument("--output", default="assets/tokenizer", help="folder to write")
    output = pathlib.Path(parser.parse().output)
    outputs.check_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    make().save(str(output / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": chat.BOS,
        "eos_token": chat.EOS,
        "pad_token": chat.PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"wrote {output}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    main()
