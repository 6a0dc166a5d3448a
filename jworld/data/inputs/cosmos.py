"""Format "cosmos": videos/X.mp4 with captions metas/X.txt, as in Cosmos-Predict2's post-training.

Its multi-view post-training has a folder per camera: videos/CAMERA/X.mp4 and metas/CAMERA/X.txt.

These layouts also have encoded captions, t5_xxl/X.pickle. This reader does not open them:
`jworld.systems.cosmos.import_t5` converts them once without executing the pickles.
Source: cosmos-predict2, `data/dataset_video.py` and `data/dataset_multiview.py`.
"""

import dataclasses
import pathlib

from jworld.data.inputs import items, video, views
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with videos/ and metas/, which have neither splits nor poses of cameras."""
    folder = path / "videos"
    if not folder.is_dir():
        raise UserError(f"{folder} is absent, expected videos/X.mp4 and metas/X.txt below {path}: give another folder")
    cameras = views.parse(options.camera)
    if cameras is not None:
        listed = _together(path, cameras, options)
    else:
        if not options.camera and not _videos(folder) and (found := _cameras(folder)):
            raise UserError(
                f"{folder} has a folder per camera: name the cameras in the order of the model, --camera "
                f"{','.join(found)} or with the ids of their embeddings, or one of them"
            )
        listed = [_item(path, file, options.camera, options) for file in _videos(folder / options.camera)]
    notes = []
    if not options.stored_text and any((path / "t5_xxl").rglob("*.p*k*l*")):
        notes.append(
            f"{path / 't5_xxl'} holds pickled text embeddings, which are not opened: --text-encoder encodes the "
            "captions of metas/ again; to use the embeddings, give --text-embeddings with the file that "
            f"python -m jworld.systems.cosmos.import_t5 --input {path} writes"
        )
    listing = items.finish(listed, notes, source=folder, options=options)
    one = {"camera": options.camera} if options.camera else {}
    return dataclasses.replace(listing, facts=one if cameras is None else cameras.facts())


def _videos(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is absent, expected the videos of a camera: correct --camera, or add the folder")
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in video.VIDEO_SUFFIXES and video.is_visible(file)
    ]


def _cameras(folder: pathlib.Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_dir() and _videos(file))


def _item(path: pathlib.Path, file: pathlib.Path, camera: str, options: items.ListOptions) -> items.Item:
    meta = path / "metas" / camera / f"{file.stem}.txt"
    caption = items.read_text(meta)
    problem = None
    if caption is None and options.require_captions and not options.prompt.strip():
        problem = (
            f"{meta} is absent, expected the caption of {file.name}: write it, give --prompt TEXT for all videos "
            "without a caption, or --allow-missing-captions to use an empty text"
        )
    return items.Item(name=file.stem, video=file, caption=caption or "", problem=problem)


def _together(path: pathlib.Path, cameras: views.Views, options: items.ListOptions) -> list[items.Item]:
    """Return one item per video of the first camera; the other cameras have a video of the same name."""
    # One caption is enough, that of the front camera in the original.
    lenient = dataclasses.replace(options, require_captions=False)
    own = [{file.stem: file for file in _videos(path / "videos" / name)} for name in cameras.names]
    listed = []
    for stem in sorted(set().union(*own)):
        files = [
            videos.get(stem, path / "videos" / name / f"{stem}.mp4")
            for videos, name in zip(own, cameras.names, strict=True)
        ]
        parts = [_item(path, file, name, lenient) for file, name in zip(files, cameras.names, strict=True)]
        parts = [dataclasses.replace(part, caption=part.caption.strip() or options.prompt.strip()) for part in parts]
        item = views.together(cameras, parts)
        missing = next((file for file, videos in zip(files, own, strict=True) if stem not in videos), None)
        if missing is not None:
            item = dataclasses.replace(
                item, problem=f"{missing} is absent, expected the video of every camera: add it, or remove the others"
            )
        listed.append(item)
    return listed


FORMAT = Format(
    name="cosmos",
    help="videos/NAME.mp4 and metas/NAME.txt; of several cameras videos/CAMERA/NAME.mp4, see --camera",
    list_items=list_items,
    options=("camera",),
    usual_cut=(93, 16),
)
