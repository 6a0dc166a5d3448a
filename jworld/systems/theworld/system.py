"""TheWorld: Gemma-3 with world tokens; model, batch, loss and session from one config."""

import pathlib
from typing import ClassVar

import jax
import ml_collections
import numpy as np
import PIL.Image
import rich.console
from flax import nnx

from jworld.data import records
from jworld.data.conversations import batches, image_files
from jworld.data.conversations.dataset import Conversations, RunEncoders
from jworld.evaluation import results
from jworld.models.cosmos import flops as cosmos_flops
from jworld.models.gemma3 import flops
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers.attention import Causal, Mask, SlidingWindow
from jworld.models.layers.flops import Sizes, trained_share, training
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.models.theworld.model import TheWorld as TheWorldModel
from jworld.parallel import axes
from jworld.systems import adapters, asking, base, described
from jworld.systems.theworld import answering, objective, original, world_steps
from jworld.systems.theworld.evaluation import held_out, report
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors, hub_folders, indices

#: Keys of `config.model` that are not fields of Gemma-3.
_OTHER = ("world", "lora", "frozen_dtype", world_steps.PREDICTOR)


class TheWorld(base.BaseSystem[TheWorldModel, RunEncoders]):
    """Model, batch, loss and session of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    sample_name: ClassVar[str] = "answers"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        run_config.require_path(config, "data.records")
        gemma = self.read(
            Gemma3Config, "model", {key: value for key, value in config.model.items() if key not in _OTHER}
        )
        world = self.read(WorldConfig, "model.world") if config.model.get("world") is not None else None
        predictor = world_steps.section(config, world)
        if predictor is not None:
            self._sections[f"model.{world_steps.PREDICTOR}"] = predictor
        try:
            self.model_config = TheWorldConfig(gemma=gemma, world=world, predictor=predictor)
        except ValueError as error:
            raise errors.UserError(f"config.model: {error}") from error
        self.objective = self.read(objective.ObjectiveConfig, "loss")
        self.sample = self.read(answering.SampleConfig, "sample.rollout")
        self.data = Conversations(config, image_tokens=gemma.image_tokens)
        self._sections |= self.data.sections()
        self.lora = self.read_lora()
        self._trainable, self._frozen_dtype = config.optimizer.trainable, config.model.get("frozen_dtype")
        self._questions = config.sample.questions
        self._check_fit()

    @staticmethod
    def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """See `SystemType`: the hyper-parameters of the predictor of world steps."""
        return world_steps.completed(config)

    @classmethod
    def listed(cls, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """See `SystemType`: without the predictor's folder, the keys of a model without world steps."""
        try:
            return world_steps.completed(config)
        except errors.UserError:
            alone = config.copy_and_resolve_references()
            with alone.unlocked():
                alone.model.world.steps = 0
            return alone

    @staticmethod
    def recipe_from_json(path: pathlib.Path) -> str | None:
        """See `SystemType`."""
        return original.recipe(path)

    @property
    def evaluation_flags(self) -> frozenset[str]:
        """See `System`."""
        return frozenset({"--benchmark", "--data", "--images", "--split", "--limit", "--batch", "--scoring"})

    @property
    def parts(self) -> dict[str, pathlib.Path]:
        """See `System`: the predictor of world steps."""
        world = self.model_config.world
        return {} if world is None or world.steps == 0 else {world_steps.PREDICTOR: hub_folders.find(world.predictor)}

    @property
    def clip(self) -> batches.ClipConfig:
        """Settings of an example."""
        return self.data.clip

    def _check_fit(self) -> None:
        gemma, world, clip = self.model_config.gemma, self.model_config.world, self.clip
        if not gemma.vision_layers and clip.images:
            raise errors.UserError(
                f"config.data.clip.images is {clip.images}, expected 0: the model has no vision tower "
                "(config.model.vision_layers is 0)"
            )
        if not gemma.vision_layers and world is not None:
            raise errors.UserError("config.model.world is set, expected None for a model without a vision tower")
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
        """See `System`; parameters that do not train get `config.model.frozen_dtype`, if set."""
        model = adapters.adapted(TheWorldModel(self.model_config, rngs=rngs), self.lora, rngs=rngs)
        if self._frozen_dtype is not None:
            is_trained = train_state.path_filter(self._trainable)
            for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
                if not is_trained(path, leaf):
                    leaf.set_value(leaf[...].astype(self._frozen_dtype))
        return model

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""
        return batches.spec(self.clip, global_batch)

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`; nothing is random."""
        assert isinstance(model, TheWorldModel)
        return objective.loss(model, batch, self.objective)

    @property
    def fused_tokens(self) -> int:
        """Tokens of the longest sequence of the language model, including the world and its brackets."""
        world = self.model_config.world
        return self.clip.max_tokens + (0 if world is None else world.tokens + 2)

    def step_tokens(self, global_batch: int) -> int:
        """See `System`; all sequences count with the largest length."""
        return global_batch * self.fused_tokens

    def step_flops(self, global_batch: int, sizes: Sizes | None = None) -> float:
        """See `System`; the formula is in `models/gemma3/flops.py`.

        All sequences count with the largest length. Forward and backward pass count; recomputation, the autoencoder and
        the optimizer do not. The predictor of world steps, and a vision tower that does not train, have only forward
        passes.
        """
        gemma, clip = self.model_config.gemma, self.clip
        text = flops.text_flops(gemma, tokens=self.fused_tokens, predictions=clip.max_tokens)
        image, trained = flops.vision_flops(gemma), trained_share(sizes, "vision")
        images = clip.slots * (training(image, trained) if trained else image.total)
        return global_batch * (training(text, trained_share(sizes, "language")) + images + self._prediction_flops())

    def _prediction_flops(self) -> float:
        """Return the operations of the world steps of one image."""
        world, predictor = self.model_config.world, self.model_config.predictor
        if world is None or predictor is None:
            return 0.0
        one = cosmos_flops.forward_flops(
            predictor, frames=world.frames, height=world.side, width=world.side, text_tokens=1
        )
        # The solver evaluates the network once more at the end.
        return (world.predictor_steps + 1) * one.total

    def attention_calls(self) -> list[base.AttentionCall]:
        """See `System`: text layers of both kinds, and the vision tower."""
        gemma, tokens = self.model_config.gemma, self.fused_tokens
        masks: dict[str, Mask] = {"sliding": SlidingWindow(gemma.window), "full": Causal()}
        calls = [
            base.AttentionCall(
                name=f"text, {kind} layers",
                implementation=gemma.attention,
                mask=masks[kind],
                key_mask=True,
                lengths=(tokens, tokens),
                heads=gemma.num_heads,
                head_dim=gemma.head_dim,
                dtype=gemma.dtype,
            )
            for kind in dict.fromkeys(gemma.kinds)
        ]
        if not gemma.vision_layers:
            return calls
        vision = base.AttentionCall(
            name="vision tower",
            implementation=gemma.attention,
            lengths=(gemma.patches**2, gemma.patches**2),
            heads=gemma.vision_heads,
            head_dim=gemma.vision_width // gemma.vision_heads,
            dtype=gemma.dtype,
        )
        return [*calls, vision]

    def prompts(self, encoders: RunEncoders) -> answering.Prompts:
        """Return the preprocessing of questions."""
        return answering.Prompts(encoders.tokenizer, clip=self.clip, multiple=self.sample.prompt_multiple)

    def session(self, model: TheWorldModel, encoders: RunEncoders) -> answering.Session:
        """See `TextSystem`."""
        return answering.Session(model, self.prompts(encoders), chosen=self.sampling())

    def generation(self, model: TheWorldModel, mesh: jax.sharding.Mesh) -> described.Generation:
        """See `PlannedSystem`: a prompt of the largest length of training, with as many images."""
        spec = self.batch_spec(1)
        names = ("tokens", "mask", *(("pixel_values", "world_pixels", "has_world") if self.clip.slots else ()))
        batch = {name: axes.described(spec[name].shape, spec[name].dtype) for name in names if name in spec}
        frames = answering.all_frames(model) if "world_pixels" in batch else 0
        return described.Generation(
            network=answering.answer_programs(model, batch, frames=frames, sampling=self.sampling()),
            decoding=iter(()),
            autoencoder=(),
            unit="tokens",
            per_chunk=1,
            chunk=f"answers of up to {self.sample.max_tokens} tokens to prompts of {self.clip.max_tokens} tokens with "
            f"{self.clip.slots} image(s)",
        )

    def sampling(self, seed: int = 0) -> asking.Sampling:
        """See `TextSystem`."""
        return self.sample.sampling(seed)

    @property
    def flag_keys(self) -> dict[str, str]:
        """See `TextSystem`."""
        names = ("temperature", "top_k", "top_p", "max_tokens", "stop")
        return {f"--{name.replace('_', '-')}": f"sample.rollout.{name}" for name in names}

    def answers(self, model: TheWorldModel, encoders: RunEncoders, *, frames: int | None = None) -> answering.Answers:
        """See `TextSystem`; `frames` of the world are used: None for all, 1 for the image alone, 0 for none."""
        return answering.Answers(model, self.prompts(encoders), frames=frames)

    def make_sample(
        self, model: TheWorldModel, encoders: RunEncoders, config: ml_collections.ConfigDict
    ) -> results.Answers:
        """See `System`: answers to `config.sample.questions` held-out questions."""
        source = self.data.source("val")
        rows = [source[number].opening for number in indices.evenly(len(source), self._questions)]
        images = [[image_files.read(place, source.directory) for place in row.places] for row in rows]
        answers = self.answers(model, encoders)(images, [row.turns for row in rows], max_tokens=self.sample.max_tokens)
        return results.Answers(
            rows=[
                {"question": row.text, "answer": answer, "truth": row.truth}
                for answer, row in zip(answers, rows, strict=True)
            ],
            images=[list(map(np.asarray, own)) for own in images],
        )

    def sample_prompt(
        self,
        model: TheWorldModel,
        encoders: RunEncoders,
        config: ml_collections.ConfigDict,
        prompt: results.Prompt,
    ) -> results.Answers:
        """See `System`: the answer to a question about the image, or about those of the first held-out question."""
        if prompt.image is None:
            source = self.data.source("val")
            images = [image_files.read(place, source.directory) for place in source[0].opening.places]
        else:
            images = [PIL.Image.fromarray(prompt.image)]
        (answer,) = self.answers(model, encoders)([images], [prompt.text], max_tokens=self.sample.max_tokens)
        return results.Answers(
            rows=[{"question": prompt.text, "answer": answer}], images=[list(map(np.asarray, images))]
        )

    def check_evaluation(self, options: results.Options) -> None:
        """See `System`."""
        report.check(self.data, options)

    def evaluate(
        self,
        model: TheWorldModel,
        encoders: RunEncoders,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """See `System`: accuracy on held-out conversations and their loss, or accuracy on a benchmark.

        A model with a world also answers without it, and one with world steps also with the image alone.
        """
        world = self.model_config.world
        if world is None:
            ways = {"answers": 0}
        else:
            ways = {"with world steps": world.frames} if world.steps else {}
            ways |= {"with world": 1, "without": 0}
        answers = {name: self.answers(model, encoders, frames=frames) for name, frames in ways.items()}
        scoring = report.ORIGINAL if world is not None and world.original else report.SOUND
        found = report.evaluate(
            answers, self.data, options, console, max_tokens=self.sample.max_tokens, scoring=scoring
        )
        if options.benchmark is not None:
            return found
        return report.with_losses(found, held_out.measure(model, self.data, ways, self.objective))
