"""Plan of generation on a topology, chunk by chunk, and the bounds that follow from it."""

import dataclasses
from typing import Any, NamedTuple

from jworld.planning.collectives import Traffic
from jworld.planning.plans import network_seconds
from jworld.utils import hardware


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one program. Bytes are those of one chip.

    Attributes:
      name: what it does.
      runs: calls per chunk; 0 for a program that runs once per video or answer.
      peak: peak memory in bytes during the call, with everything that stays in memory.
      flops: products of one call on all chips together.
      share: part of `flops` that one chip computes; more than 1 / chips where chips repeat each other's work.
      memory_traffic: estimated bytes between a chip and its memory in one call; None if the program cannot be parsed.
      collectives: traffic that a chip sends in one call.
    """

    name: str
    runs: int
    peak: int
    flops: float
    share: float = 1.0
    memory_traffic: int | None = None
    collectives: tuple[Traffic, ...] = ()

    @property
    def sent(self) -> int:
        """Bytes that a chip sends in one call."""
        return sum(row.sent for row in self.collectives)

    def seconds(self, chip: hardware.Chip) -> float:
        """Return a lower bound of one call's time: the largest of arithmetic, memory traffic and both networks."""
        on_links, outside = network_seconds(self.collectives, chip)
        traffic = (self.memory_traffic or 0) / chip.hbm_bandwidth
        return max(self.flops * self.share / chip.flops, traffic, on_links, outside or 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """Cost of generation of one video, or of one answer. Bytes are those of one chip.

    Attributes:
      topology, available, chip: name as given, number of chips, key of `hardware.CHIPS` (None for virtual devices).
      mesh: sizes of the mesh; its chips may be fewer than `available`.
      unit: what is generated, "frames" or "tokens".
      per_chunk: number of them in a chunk after the first.
      chunk: description of what a chunk is made from.
      quantize: type of quantized weights, or None.
      weights, autoencoder: bytes of the network's weights and of those of the autoencoder.
      cache, decoder_cache: bytes that stay in memory between calls: the KV cache, and the cache of a streaming decoder.
      start: peak memory while the weights are read, in bytes.
      programs: those that were compiled, in order.
      limit: memory of a chip in bytes; None for virtual devices.
      problem: reason for a failed compilation.
      compile_seconds: time of the compilations.
    """

    topology: str
    available: int
    chip: str | None
    mesh: dict[str, int]
    unit: str
    per_chunk: int
    chunk: str
    weights: int
    autoencoder: int
    start: int
    quantize: str | None = None
    cache: int = 0
    decoder_cache: int = 0
    programs: tuple[Cost, ...] = ()
    limit: int | None = None
    problem: str | None = None
    compile_seconds: float = 0.0

    @property
    def peak(self) -> int | None:
        """Peak memory in bytes; None if a program was not compiled."""
        return None if self.problem else max(self.start, *(cost.peak for cost in self.programs))

    @property
    def fits(self) -> bool | None:
        """True if the peak is below the limit, False if not, None for virtual devices."""
        if self.limit is None:
            return None
        return self.peak is not None and self.peak <= self.limit

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**dataclasses.asdict(cost), "collectives": [row._asdict() for row in cost.collectives]}
            for cost in self.programs
        ]
        bounds = roofline(self)
        own = {"peak": self.peak, "fits": self.fits, "bounds": None if bounds is None else bounds._asdict()}
        return dataclasses.asdict(self) | {"programs": rows} | own

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "GenerationPlan":
        fields = {field.name for field in dataclasses.fields(cls)}
        programs = tuple(
            Cost(**{**row, "collectives": tuple(Traffic(**entry) for entry in row["collectives"])})
            for row in values["programs"]
        )
        return cls(**{name: value for name, value in values.items() if name in fields} | {"programs": programs})


class Bounds(NamedTuple):
    """Bounds of generation at the published peaks of the chips.

    Attributes:
      start: seconds that the programs before the first chunk take at least.
      chunk: seconds that a chunk takes at least.
      per_second: frames or tokens per second at most.
    """

    start: float
    chunk: float
    per_second: float


def roofline(plan: GenerationPlan) -> Bounds | None:
    """Compute the bounds of a plan; None for virtual devices and failed compilations."""
    if plan.chip is None or plan.problem is not None:
        return None
    chip = hardware.CHIPS[plan.chip]
    chunk = sum(cost.runs * cost.seconds(chip) for cost in plan.programs)
    start = sum(cost.seconds(chip) for cost in plan.programs if cost.runs == 0)
    return Bounds(start, chunk, plan.per_chunk / chunk)
