"""Limits on files that others made: larger ones are refused before memory is reserved for them.

A size that a file declares is compared with these values and with the file's own size. docs/data.md lists the limits.
"""

#: Bytes of a JSON, text or manifest file, which is read as a whole.
TEXT_BYTES = 512 << 20
#: Bytes of one row of a file of JSON rows, and of one caption in a tar archive.
ROW_BYTES = 64 << 20
#: Bytes of the header of a safetensors file: the format's own limit.
HEADER_BYTES = 100_000_000
#: Bytes of an encoded image in an archive, a table or a download.
IMAGE_BYTES = 256 << 20
#: Pixels of an image or of a frame of a video.
IMAGE_PIXELS = 1 << 27
#: Frames of a video or of an animated image.
VIDEO_FRAMES = 1 << 24
#: Bytes of a row group of a parquet table, unpacked.
PARQUET_GROUP_BYTES = 4 << 30
#: Rows of a row group of a parquet table.
PARQUET_GROUP_ROWS = 1 << 24
#: Bytes of a pickle, without the tensors that lie next to it in a .pt file.
PICKLE_BYTES = 256 << 20
#: Instructions of a pickle.
PICKLE_OPCODES = 10_000_000
#: Latent frames of a clip, records of a shard, and size of any axis of a record's arrays.
RECORD_AXIS = 1 << 32
