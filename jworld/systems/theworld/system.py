"""TheWorld: Gemma-3 that reads the world; model, batch, loss and session from one config."""

import pathlib
from typing import Any, ClassVar

import jax
import ml_collections
import rich.console
from flax import nnx

from jworld.data import records
from jworld.data.conversations import batches, image_files
from jworld.data.conversations.dataset import Conversations, RunEncoders
from jworld.evaluation import results
from jworld.models.cosmos import flops as cosmos_flops
from jworld.models.gemma3 import flops
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.models.theworld.model import TheWorld as TheWorldModel
from jworld.systems import adapters
from jworld.systems.theworld import answering, objective, world_steps
from jworld.systems.theworld.evaluation import report
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors, files, indices

#: Keys of `config.model` that are no fields of Gemma-3.
_OTHER = ("world", "lora", "frozen_dtype", world_steps.PREDICTOR)


class TheWorld:
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    sample_name: ClassVar[str] = "answers"
    #: Options of `python -m jworld.evaluate` that mean nothing here.
    unused_options: ClassVar[tuple[str, ...]] = ("--episodes", "--revisits")
    #: It answers in text: `python -m jworld.generate` prints tokens.
    makes_text: ClassVar[bool] = True

    def __init__(self, config: ml_collections.ConfigDict):
        gemma = {key: value for key, value in config.model.items() if key not in _OTHER}
        told = config.model.get("world")
        world = None if told is None else run_config.section(WorldConfig, told, "model.world")
        self.model_config = TheWorldConfig(
            gemma=run_config.section(Gemma3Config, gemma, "model"),
            world=world,
            predictor=world_steps.section(config, world),
        )
        self.objective = run_config.section(objective.ObjectiveConfig, config.loss, "loss")
        self.sample = run_config.section(answering.SampleConfig, config.sample.rollout, "sample.rollout")
        self.lora = adapters.section(config)
        self._trainable, self._frozen_dtype = config.optimizer.trainable, config.model.get("frozen_dtype")
        self.data = Conversations(config, image_tokens=self.model_config.gemma.image_tokens)
        self._questions = config.sample.questions
        self._check_fit()

    @staticmethod
    def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """See `systems.completed`."""
        return world_steps.completed(config)

    @property
    def parts(self) -> dict[str, pathlib.Path]:
        """See `systems.parts`."""
        world = self.model_config.world
        return {} if world is None or world.steps == 0 else {world_steps.PREDICTOR: pathlib.Path(world.predictor)}

    def sections(self) -> dict[str, Any]:
        """The parts of the config that this system reads, by name, with every default filled in."""
        world, predictor = self.model_config.world, self.model_config.predictor
        return {
            "model": self.model_config.gemma,
            **({} if world is None else {"model.world": world}),
            **({} if predictor is None else {f"model.{world_steps.PREDICTOR}": predictor}),
            "loss": self.objective,
            "sample.rollout": self.sample,
            **self.data.sections(),
            **({} if self.lora is None else {"model.lora": self.lora}),
        }

    @property
    def clip(self) -> batches.ClipConfig:
        """What one example is."""
        return self.data.clip

    def _check_fit(self) -> None:
        gemma, world, clip = self.model_config.gemma, self.model_config.world, self.clip
        if clip.image_size != gemma.image_size:
            raise errors.UserError(
                f"config.data.clip.image_size is {clip.image_size}, but config.model.image_size is {gemma.image_size}"
            )
        if world is not None and clip.world_size != world.image_size:
            raise errors.UserError(
                f"config.data.clip.world_size is {clip.world_size}, but config.model.world.image_size is "
                f"{world.image_size}"
            )
        if self._frozen_dtype not in (None, "bfloat16", "float32"):
            raise errors.UserError(
                f"config.model.frozen_dtype is {self._frozen_dtype!r}, expected bfloat16, float32 or None"
            )

    def init(self, rngs: nnx.Rngs) -> TheWorldModel:
        """The model; parameters that do not train are of `config.model.frozen_dtype`, where that says one."""
        model = adapters.adapted(TheWorldModel(self.model_config, rngs=rngs), self.lora, rngs=rngs)
        if self._frozen_dtype is not None:
            is_trained = train_state.path_filter(self._trainable)
            for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
                if not is_trained(path, leaf):
                    leaf.set_value(leaf[...].astype(self._frozen_dtype))
        return model

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """What one training batch holds: name -> shape, dtype, logical axes."""
        return batches.spec(self.clip, global_batch)

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scalar float32 loss and further metrics; nothing is random."""
        assert isinstance(model, TheWorldModel)
        return objective.loss(model, batch, self.objective)

    @property
    def fused_tokens(self) -> int:
        """Tokens of the longest sequence that the language model reads, world and brackets among them."""
        world = self.model_config.world
        return self.clip.max_tokens + (0 if world is None else world.tokens + 2)

    def step_tokens(self, global_batch: int) -> int:
        """Tokens in one training step, if all sequences are of the longest."""
        return global_batch * self.fused_tokens

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """Useful floating-point operations of one training step, by the formula of `models/gemma3/flops.py`.

        Forward and backward pass of sequences of the longest; recomputation, the autoencoder and the optimizer are left
        out. The predictor of world steps has forward passes alone, and so has the vision tower where it is not
        trained. Without `sizes` all other weights count as trained.
        """
        gemma, clip = self.model_config.gemma, self.clip
        text = flops.text_flops(gemma, tokens=self.fused_tokens, predictions=clip.max_tokens)
        image, seen = flops.vision_flops(gemma), trained_share(sizes, "vision")
        images = clip.images * (training(image, seen) if seen else image.total)
        return global_batch * (training(text, trained_share(sizes, "language")) + images + self._prediction_flops())

    def _prediction_flops(self) -> float:
        """Of the world steps of one picture."""
        world, predictor = self.model_config.world, self.model_config.predictor
        if world is None or predictor is None:
            return 0.0
        one = cosmos_flops.forward_flops(
            predictor, frames=world.frames, height=world.side, width=world.side, text_tokens=1
        )
        # The solver asks once more at the end.
        return (world.predictor_steps + 1) * one.total

    def prompts(self, kept: RunEncoders) -> answering.Prompts:
        """Questions as the model reads them."""
        return answering.Prompts(kept.tokenizer, clip=self.clip, multiple=self.sample.prompt_multiple)

    def session(self, model: TheWorldModel, kept: RunEncoders) -> answering.Session:
        """A conversation about images."""
        return answering.Session(model, self.prompts(kept), max_tokens=self.sample.max_tokens)

    def answers(self, model: TheWorldModel, kept: RunEncoders, *, frames: int | None = None) -> answering.Answers:
        """Answers by the batch, from all `frames` of the world, or 1 for the image alone, or 0 without the world."""
        return answering.Answers(model, self.prompts(kept), frames=frames)

    def sample_answers(
        self, model: TheWorldModel, kept: RunEncoders, folder: pathlib.Path, console: rich.console.Console
    ) -> None:
        """Print the answers to some held-out questions, and write them to answers.json in `folder`."""
        source = self.data.source("val")
        rows = [source[number] for number in indices.evenly(len(source), self._questions)]
        seen = [[image_files.read(place, source.directory) for place in row.places] for row in rows]
        asked = [row.turns[0].text for row in rows]
        said = self.answers(model, kept)(seen, asked, max_tokens=self.sample.max_tokens)
        entries = [
            {"question": question, "answer": answer, "truth": row.turns[1].text}
            for question, answer, row in zip(asked, said, rows, strict=True)
        ]
        for entry in entries:
            console.print(f"{entry['question']} -> {entry['answer']} (truth: {entry['truth']})", markup=False)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / f"{self.sample_name}.json", entries)
        console.print(f"wrote {folder / self.sample_name}.json")

    def evaluate(
        self,
        model: TheWorldModel,
        kept: RunEncoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """Accuracy on questions about held-out walks, or on a benchmark.

        A model with a world answers also without, one with world steps also with the image alone.
        """
        world = self.model_config.world
        if world is None:
            ways = {"answers": 0}
        else:
            ways = {"with world steps": world.frames} if world.steps else {}
            ways |= {"with world": 1, "without": 0}
        answers = {name: self.answers(model, kept, frames=frames) for name, frames in ways.items()}
        return report.evaluate(answers, self.data, options, console)

    def check_sampling(self, mesh: jax.sharding.Mesh) -> None:
        """Every mesh serves: what does not divide stays whole."""
