"""Format "cosmos": videos/X.mp4 with captions metas/X.txt, as in Cosmos-Predict2's post-training.

That layout also has encoded captions, t5_xxl/X.pickle. This reader does not open them:
`jworld.systems.cosmos.import_t5` converts them once without executing the pickles.
"""

import pathlib

from jworld.data.inputs import items, video
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with videos/ and metas/, which have neither splits nor cameras."""
    folder = path / "videos"
    if not folder.is_dir():
        raise UserError(f"{folder} is absent, expected videos/X.mp4 and metas/X.txt below {path}: give another folder")
    listed = []
    for file in folder.iterdir():
        if file.suffix.lower() not in video.VIDEO_SUFFIXES or not video.is_visible(file):
            continue
        meta = path / "metas" / f"{file.stem}.txt"
        caption = items.read_text(meta)
        problem = None
        if caption is None and options.require_captions and not options.prompt.strip():
            problem = (
                f"{meta} is absent, expected the caption of {file.name}: write it, give --prompt TEXT for all videos "
                "without a caption, or --allow-missing-captions to use an empty text"
            )
        listed.append(items.Item(name=file.stem, video=file, caption=caption or "", problem=problem))
    notes = []
    if not options.stored_text and any((path / "t5_xxl").glob("*.pickle")):
        notes.append(
            f"{path / 't5_xxl'} holds pickled text embeddings, which are not opened: --text-encoder encodes the "
            "captions of metas/ again; to use the embeddings, give --text-embeddings with the file that "
            f"python -m jworld.systems.cosmos.import_t5 --input {path} writes"
        )
    return items.finish(listed, notes, source=folder, options=options)


FORMAT = Format(name="cosmos", help="videos/NAME.mp4 and metas/NAME.txt", list_items=list_items, usual_cut=(93, 16))
