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
#: Bytes of a shard or table that is downloaded, so that no server fills the disk.
SHARD_BYTES = 16 << 30
#: Pixels of an image or of a frame of a video.
IMAGE_PIXELS = 1 << 27
#: Frames of a video or of an animated image.
VIDEO_FRAMES = 1 << 24
#: Bytes of a row group of a parquet table, unpacked.
PARQUET_GROUP_BYTES = 4 << 30
#: Bytes of a record of a TFRecord file: the limit of protocol buffers.
RECORD_BYTES = (2 << 30) - 1
#: Records of an ArrayRecord file.
RECORDS = 1 << 24
#: Rows of a row group of a parquet table.
PARQUET_GROUP_ROWS = 1 << 24
#: Bytes of a pickle, without the tensors that lie next to it in a .pt file.
PICKLE_BYTES = 256 << 20
#: Instructions of a pickle.
PICKLE_OPCODES = 10_000_000
#: Latent frames of a clip, records of a shard, and size of any axis of a record's arrays.
RECORD_AXIS = 1 << 32

# Limits of `jworld play`, whose players are strangers with --host.
#: Open connections of all players and waiting ones.
PLAY_CONNECTIONS = 32
#: Bytes of a text message of a player.
PLAY_MESSAGE_BYTES = 64 << 10
#: Messages per second of a player in the long run, and in a burst.
PLAY_MESSAGES, PLAY_BURST = 200, 400
#: Bytes and pixels of a player's first image, and shortest time between two of them in seconds.
PLAY_IMAGE_BYTES, PLAY_IMAGE_PIXELS, PLAY_IMAGE_SECONDS = 8 << 20, 1 << 24, 1.0
#: Characters of a caption.
PLAY_PROMPT = 2000
#: Characters of a question about a frame, and tokens of its answer.
PLAY_QUESTION, PLAY_ANSWER = 500, 256
#: Denoising steps and scale of the guidance that a player may set.
PLAY_STEPS, PLAY_GUIDANCE = 100, 30
#: Different pairs of steps and guidance of a server: each is compiled, and its programs stay in memory.
PLAY_VARIANTS = 16
#: Steps of a key log; a longer session plays on without a log.
PLAY_LOG = 100_000
#: Frames of a recording.
PLAY_RECORDING = 100_000
#: Time of a player while others wait, and without any sign while nobody waits, in seconds.
PLAY_TURN_SECONDS, PLAY_IDLE_SECONDS = 300.0, 1800.0
