"""Arguments of ffmpeg for files of strangers: names are names of files, and contents read no other file.

ffmpeg takes a name such as "http:a.mp4" for an address and one such as "-y.mp4" for an option. Content decides about
the format, and that of a playlist or script names other files or addresses, which ffmpeg would open.
"""

import pathlib

#: Formats of files that hold their frames themselves.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,webp,apng,flv,mpegts,mpeg,ogg,asf,ivf,h264,hevc,m4v,mpegvideo,mjpeg"
)


def source(path: str | pathlib.Path, *, part: tuple[int, int] | None = None) -> list[str]:
    """Return the arguments that name a video to read; options of the input stand before them.

    With `part`, an offset and a size in bytes, the video lies there in the file `path`.
    """
    place = name(path)
    if part is not None:
        place = f"subfile,,start,{part[0]},end,{sum(part)},,:{place}"
    return ["-protocol_whitelist", "file,subfile", "-format_whitelist", _FORMATS, "-i", place]


def name(path: str | pathlib.Path) -> str:
    """Return a path as the name of a file to write."""
    return f"file:{path}"
