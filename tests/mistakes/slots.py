"""Every place of a command line where a user names a file or folder.

In the arguments "{}" stands for the wrong path and "{name}" for a valid input of `mistakes.inputs`.
"""

import dataclasses

import commands
import own_records

THEWORLD = (
    "--config=configs/theworld.py",
    "--config.data.recording.source=",
    "--config.data.conversations.format=llava",
    "--config.data.records=set",
    "--config.data.conversations.images={images}",
)
COSMOS = tuple(commands.merged([*own_records.COSMOS, "--config.global_batch=8"]))
GENERATE = ("--image={image.png}", "--prompt=a", "--pose=w-3", "--out=out.mp4")
SIZES = ("--fps=5", "--frames=9", "--width=32", "--height=24", "--output=out")
VIDEOS = (*SIZES, "--autoencoder={autoencoder.safetensors}")
#: Contents that are captions.
CAPTIONS = ("text", "zeros", "half", "empty")


@dataclasses.dataclass(frozen=True)
class Slot:
    """One place for a path.

    Attributes:
      module: the command.
      arguments: its command line.
      table: key of `wrong.TABLES`.
      valid: name of the valid input, which "half" and the members come from.
      members: files of a folder that are replaced, one by one, in a copy of the valid input.
      good: kinds that are not a mistake here, for a member with its name and a colon before them.
    """

    module: str
    arguments: tuple[str, ...]
    table: str
    valid: str
    members: tuple[str, ...] = ()
    good: tuple[str, ...] = ()

    @property
    def slow(self) -> bool:
        """Return whether only the slow suite runs its tries."""
        return self.name in SLOW

    @property
    def name(self) -> str:
        """Command and option."""
        option = next(text for text in self.arguments if "{}" in text)
        command = next((text for text in self.arguments if text in COMMANDS), "")
        return " ".join(filter(None, (self.module, command, option.partition("{}")[0].rstrip("=:") or self.valid)))


COMMANDS = ("import", "fuse", "export", "inspect", "verify", "compare")


def _file(module: str, valid: str, *arguments: str, good: tuple[str, ...] = ()) -> Slot:
    return Slot(module, arguments, "file", valid, good=good)


def _folder(module: str, valid: str, *arguments: str, members: str = "", good: tuple[str, ...] = ()) -> Slot:
    return Slot(module, arguments, "folder", valid, tuple(members.split()), good)


def _output(module: str, table: str, *arguments: str, name: str = "out") -> Slot:
    return Slot(module, arguments, f"output {table}", name)


#: A path that is not a file is a string of another option's notation.
_TRAIN = (
    _file("jworld.train", "recipe.py", "--config={}", "--dry-run", good=("half",)),
    _file("jworld.train", "original.json", "--from-json={}", good=("empty object",)),
    _folder(
        "jworld.train",
        "own",
        *COSMOS,
        "--config.data.records={}",
        "--workdir=run",
        members="manifest.json",
    ),
    _folder(
        "jworld.train",
        "starter",
        *COSMOS,
        "--config.init_from={}",
        "--config.data.records={own}",
        "--workdir=run",
        members="config.json model.safetensors",
    ),
    _folder(
        "jworld.train",
        "tokenizer",
        *THEWORLD,
        "--config.data.conversations.path={chat.json}",
        "--config.data.tokenizer={}",
        "--workdir=run",
        members="tokenizer.json",
    ),
    _file(
        "jworld.train",
        "chat.json",
        *THEWORLD,
        "--config.data.conversations.path={}",
        "--workdir=run",
        # Rows that cannot be used are counted in the error, which names the first one and the config key.
        good=("empty object", "other object", "infinite number"),
    ),
    Slot(
        "jworld.train",
        ("--config=configs/ar_mem.py", "--config.checkpoint.hub.repo={}", "--workdir=run"),
        "repository",
        "a/b",
    ),
    _output("jworld.train", "folder", *COSMOS, "--config.data.records={own}", "--workdir={}"),
)
_GENERATE = (
    _folder(
        "jworld.generate",
        "starter",
        "--checkpoint={}",
        *GENERATE,
        members="config.json model.safetensors encoders/manifest.json encoders/autoencoder.safetensors",
    ),
    _file("jworld.generate", "image.png", "--checkpoint={starter}", "--image={}", *GENERATE[1:], good=("image",)),
    _file("jworld.generate", "poses.json", "--checkpoint={starter}", *GENERATE[:2], "--pose={}", "--out=out.mp4"),
    _file("jworld.generate", "batch.jsonl", "--checkpoint={starter}", "--image={image.png}", "--batch={}", "--out=out"),
    _folder(
        "jworld.generate",
        "starter/encoders",
        "--checkpoint={starter}",
        "--encoders={}",
        *GENERATE,
        members="manifest.json autoencoder.safetensors",
    ),
    _file(
        "jworld.generate",
        "starter/encoders/autoencoder.safetensors",
        "--checkpoint={starter}",
        "--autoencoder={}",
        *GENERATE,
    ),
    _file("jworld.generate", "embeddings.safetensors", "--checkpoint={starter}", "--text-encoder=stored:{}", *GENERATE),
    _folder("jworld.generate", "tokenizer", "--checkpoint={starter}", "--image-encoder=siglip:{}", *GENERATE),
    _file("jworld.generate", "image.png", "--checkpoint={theworld}", "--image={}", "--prompt=a", good=("image",)),
    _file("jworld.generate", "batch.jsonl", "--checkpoint={theworld}", "--batch={}", "--out=out.jsonl"),
    _output("jworld.generate", "file", "--checkpoint={starter}", *GENERATE[:-1], "--out={}", name="out.mp4"),
    _output("jworld.generate", "file", "--checkpoint={theworld}", "--prompt=a", "--out={}", name="out.json"),
    _output(
        "jworld.generate",
        "file",
        "--checkpoint={theworld}",
        "--batch={questions.jsonl}",
        "--out={}",
        name="out.jsonl",
    ),
)
_PLAY = (
    _folder("jworld.play.__main__", "starter", "--port=0", "--checkpoint={}", members="config.json"),
    _file("jworld.play.__main__", "image.png", "--port=0", "--checkpoint={starter}", "--image={}", good=("image",)),
    _folder("jworld.play.__main__", "starter/encoders", "--port=0", "--checkpoint={starter}", "--encoders={}"),
    _output("jworld.play.__main__", "folder", "--port=0", "--checkpoint={starter}", "--recordings={}"),
    _folder("jworld.play.view", "starter", "--checkpoint={}", "--keys={keys.json}", members="config.json"),
    _file("jworld.play.view", "keys.json", "--checkpoint={starter}", "--keys={}"),
    _output("jworld.play.view", "file", "--checkpoint={starter}", "--keys={keys.json}", "--output={}", name="out.rrd"),
)
_EVALUATE = (
    _folder("jworld.evaluate", "starter", "--checkpoint={}", members="config.json"),
    _folder(
        "jworld.evaluate",
        "records",
        "--checkpoint={starter}",
        "--records={}",
        "--episodes={episodes}",
        "--output=out",
        members="manifest.json",
    ),
    _folder(
        "jworld.evaluate",
        "evaluation",
        "compare",
        "{}",
        "--output=out",
        members="evaluation.json",
        good=(),
    ),
    _output("jworld.evaluate", "folder", "--checkpoint={starter}", "--output={}"),
    _output("jworld.evaluate", "folder", "compare", "{evaluation}", "--output={}"),
)
_BENCHMARKS = (
    _file("mistakes.benchmark_data", "vsr.jsonl", "--benchmark=vsr", "--data={}", "--images={images}"),
    _folder(
        "mistakes.benchmark_data",
        "images",
        "--benchmark=vsr",
        "--data={vsr.jsonl}",
        "--images={}",
        members="image.png",
        good=("image.png: image",),
    ),
    _file("mistakes.benchmark_data", "spatial.jsonl", "--benchmark=spatial_rgpt", "--data={}", "--images={images}"),
    _file("mistakes.benchmark_data", "tables/val.parquet", "--benchmark=spatial_rgpt", "--data={}"),
    _folder(
        "mistakes.benchmark_data",
        "blink",
        "--benchmark=blink",
        "--data={}",
        members="Counting/val-00000-of-00001.parquet",
    ),
)
_PLAN = (
    _file("jworld.plan", "recipe.py", "--config={}", "--topology=cpu-1", good=("half",)),
    _file("jworld.config", "recipe.py", "--config={}", good=("half",)),
    _folder("jworld.config", "starter", "--config={}", members="config.json"),
    _file("jworld.doctor", "recipe.py", "--config={}", good=("half",)),
)
_PRECOMPUTE = (
    _folder(
        "jworld.precompute.__main__",
        "episodes",
        "--input={}",
        "--output=out",
        members="manifest.json episode_00000/video.mp4 episode_00000/episode.json",
    ),
    _folder(
        "jworld.precompute.__main__",
        "videos",
        "--input={}",
        "--format=videos",
        *VIDEOS,
        members="a.mp4 a.txt",
        good=("a.mp4: folder", *(f"a.txt: {kind}" for kind in CAPTIONS)),
    ),
    _folder(
        "jworld.precompute.__main__",
        "cosmos",
        "--input={}",
        "--format=cosmos",
        *VIDEOS,
        members="videos/a.mp4 metas/a.txt",
        good=tuple(f"metas/a.txt: {kind}" for kind in CAPTIONS),
    ),
    _folder(
        "jworld.precompute.__main__",
        "bridge",
        "--input={}",
        "--format=bridge",
        *VIDEOS,
        members="annotation/train/a.json",
    ),
    _folder("jworld.precompute.__main__", "matrix", "--input={}", "--format=matrix", *VIDEOS, members="index.json"),
    _folder(
        "jworld.precompute.__main__",
        "worldplay",
        "--input={}",
        "--format=worldplay",
        *VIDEOS,
        members="index.json a.json a_actions.json",
    ),
    *(
        _folder(
            "jworld.precompute.__main__",
            f"{form}/set",
            "--input={}",
            f"--format={form}",
            *VIDEOS,
            members=member,
        )
        for form, member in (("webdataset", "000000.tar"), ("parquet", "train.parquet"))
    ),
    _folder(
        "jworld.precompute.__main__",
        "jasmine/set",
        "--input={}",
        "--format=jasmine",
        "--frames-size=64x48",
        "--prompt=a",
        *VIDEOS,
        members="train/data_0000.array_record metadata.json",
    ),
    _folder(
        "jworld.precompute.__main__",
        "rlds/set",
        "--input={}",
        "--format=rlds",
        "--camera=image",
        *VIDEOS,
        members="robot-train.array_record-00000-of-00001 features.json dataset_info.json",
    ),
    _file("jworld.precompute.__main__", "matrix/index.json", "--input={}", "--format=matrix", *VIDEOS),
    _file(
        "jworld.precompute.__main__",
        "embeddings.safetensors",
        "--input={videos}",
        "--format=videos",
        *VIDEOS,
        "--text-embeddings={}",
    ),
    _file(
        "jworld.precompute.__main__",
        "autoencoder.safetensors",
        "--input={videos}",
        "--format=videos",
        *SIZES,
        "--autoencoder={}",
    ),
    *(
        _folder(
            "jworld.precompute.__main__",
            "tokenizer",
            "--input={videos}",
            "--format=videos",
            *VIDEOS,
            f"--{option}={kind}:{{}}",
            members="tokenizer.json" if option == "text-encoder" else "",
        )
        for option, kind in (
            ("text-encoder", "t5-cosmos"),
            ("text-encoder", "qwen2.5-vl"),
            ("glyph-encoder", "byt5-glyph"),
            ("image-encoder", "siglip"),
        )
    ),
    _folder(
        "jworld.precompute.validate",
        "records",
        "{}",
        members="manifest.json autoencoder.safetensors train-00000-of-00001.arrow",
    ),
    _folder(
        "jworld.precompute.encode_text",
        "tokenizer",
        "--text-encoder=t5-cosmos:{}",
        "--prompt=a",
        "--output=out.safetensors",
    ),
    _folder(
        "jworld.precompute.encode_text",
        "cosmos",
        "--text-encoder=hashed-words:16",
        "--input={}",
        "--output=out.safetensors",
        members="metas/a.txt",
        good=tuple(f"metas/a.txt: {kind}" for kind in CAPTIONS),
    ),
)
_IMPORTS = (
    _folder(
        "jworld.systems.cosmos.import_t5",
        "t5",
        "--input={}",
        "--output=out.safetensors",
        members="t5_xxl/a.pickle metas/a.txt",
        good=tuple(f"metas/a.txt: {kind}" for kind in CAPTIONS),
    ),
    _file(
        "jworld.systems.worldplay.import_data",
        "published/index.json",
        "--index={}",
        "--negative-prompt={published/hunyuan_neg_prompt.pt}",
        "--negative-glyph={published/hunyuan_neg_byt5_prompt.pt}",
        "--min-frames=4",
        "--output=out",
    ),
    _folder(
        "jworld.systems.worldplay.import_data",
        "published",
        "--index={}/index.json",
        "--negative-prompt={published/hunyuan_neg_prompt.pt}",
        "--negative-glyph={published/hunyuan_neg_byt5_prompt.pt}",
        "--min-frames=4",
        "--output=out",
        members="clip_0.pt clip_0.json",
    ),
    _file(
        "jworld.systems.worldplay.import_data",
        "published/hunyuan_neg_prompt.pt",
        "--index={published/index.json}",
        "--negative-prompt={}",
        "--negative-glyph={published/hunyuan_neg_byt5_prompt.pt}",
        "--min-frames=4",
        "--output=out",
    ),
    _file(
        "jworld.systems.worldplay.encode_negative",
        "embeddings.safetensors",
        "--text-encoder=stored:{}",
        "--output=out",
    ),
    _folder("jworld.systems.matrix.encode_controls", "tokenizer", "--encoder={}", "--output=out.safetensors"),
)
_CONVERSION = (
    _folder(
        "conversion.__main__",
        "download",
        "import",
        "{}",
        "--output=out",
        members="config.json diffusion_pytorch_model.safetensors",
        # The tensors determine the sizes without it, or a sentence names the value that they do not determine.
        good=tuple(f"config.json: {kind}" for kind in ("empty object", "other object", "infinite number")),
    ),
    _file("conversion.__main__", "download/diffusion_pytorch_model.safetensors", "import", "{}", "--output=out"),
    _file("conversion.__main__", "published/clip_0.pt", "import", "{}", "--output=out"),
    _file("conversion.__main__", "recipe.py", "import", "{download}", "--config={}", "--output=out"),
    _file(
        "conversion.__main__",
        "embeddings.safetensors",
        "import",
        "{download}",
        "--base={}",
        "--output=out",
    ),
    _file("conversion.__main__", "embeddings.safetensors", "fuse", "{download}", "{}", "--output=out"),
    _folder("conversion.__main__", "imported", "export", "{}", "--output=out", members="config.json import.json"),
    _folder("conversion.__main__", "imported", "inspect", "{}", members="config.json import.json"),
    _folder("conversion.__main__", "download", "inspect", "{}", members="diffusion_pytorch_model.safetensors"),
    _folder("conversion.__main__", "imported", "verify", "{}", "{download}", members="config.json import.json"),
    _folder(
        "conversion.__main__",
        "download",
        "verify",
        "{imported}",
        "{}",
        members="diffusion_pytorch_model.safetensors",
    ),
    _output("conversion.__main__", "folder", "export", "{imported}", "--output={}"),
)
_OUTPUTS = (
    _output("jworld.precompute.__main__", "folder", "--input={episodes}", "--output={}"),
    _output(
        "jworld.precompute.encode_text",
        "file",
        "--text-encoder=hashed-words:16",
        "--prompt=a",
        "--output={}",
        name="out.safetensors",
    ),
    _output("jworld.systems.cosmos.import_t5", "file", "--input={t5}", "--output={}", name="out.safetensors"),
    _output(
        "jworld.systems.worldplay.encode_negative",
        "folder",
        "--text-encoder=stored:{embeddings.safetensors}",
        "--output={}",
    ),
    _output("jworld.systems.matrix.encode_controls", "file", "--output={}", name="out.safetensors"),
    _output("conversion.__main__", "folder", "import", "{download}", "--output={}"),
    _output("jworld.plan", "file", "--config={recipe.py}", "--topology=cpu-1", "--json={}", name="out.json"),
    _output("scripts.plot_loss", "file", "{starter}", "--output={}", name="out.png"),
    _output("scripts.animate", "file", "{videos/a.mp4}", "{}", name="out.webp"),
    _output("scripts.train_motion", "file", "--episodes={episodes}", "--output={}", name="out.safetensors"),
    _output("scripts.release_weights", "folder", "--run={starter}", "--output={}"),
    _output("scripts.release_autoencoder", "file", "--run={starter}", "--output={}", name="out.safetensors"),
)
_SCRIPTS = (
    _output("scripts.record_episodes", "folder", "--source=rooms", "--episodes=1", "--frames=5", "--output={}"),
    _folder("scripts.plot_loss", "starter", "{}", "--output=out.png"),
    _file("scripts.animate", "videos/a.mp4", "{}", "out.webp", good=("image",)),
    _folder("scripts.train_motion", "episodes", "--episodes={}", "--output=out.safetensors", members="manifest.json"),
    _folder("scripts.release_weights", "starter", "--run={}", "--output=out", members="config.json"),
    _file("scripts.release_weights", "autoencoder.safetensors", "--run={starter}", "--autoencoder={}", "--output=out"),
    _folder("scripts.release_autoencoder", "starter", "--run={}", "--output=out.safetensors", members="config.json"),
)
SLOTS = (
    *_TRAIN,
    *_GENERATE,
    *_PLAY,
    *_EVALUATE,
    *_PLAN,
    *_PRECOMPUTE,
    *_IMPORTS,
    *_CONVERSION,
    *_BENCHMARKS,
    *_OUTPUTS,
    *_SCRIPTS,
)
#: Names of slots whose tries open models: most of the time of all.
SLOW = frozenset({"jworld.generate --checkpoint", "jworld.evaluate --records"})
