"""Plan of a step on a topology, and the bounds that follow from it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from jworld.planning.collectives import Traffic
from jworld.utils import hardware


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Cost of one config on one topology. Bytes are those of one chip, operations those of all chips together.

    Attributes:
      topology, chips, chip: name as given, number of chips, key of `hardware.CHIPS` (None for virtual devices).
      mesh, global_batch, remat, accumulate: of the config, with all sizes of the mesh resolved.
      parameters, optimizer, ema, batch, gradients: bytes of these parts.
      compiled: whether the program was compiled; else all later fields except `useful_flops` and `flops` are None or
        empty.
      temporaries: bytes of a step in addition to the state and the batch, gradients included.
      peak: peak memory in bytes.
      start: peak memory before the first step in bytes: of reading the weights of another run, or of drawing them; None
        if that needs a compiler.
      limit: memory of a chip in bytes; None for virtual devices.
      problem: reason for a failed compilation.
      tokens: of one step, as the system counts them.
      useful_flops: of one step by formula, without recomputation and optimizer; None if a system has no formula.
      flops: products of one step as traced, with recomputation and optimizer.
      xla_flops: the compiler's own count, with the body of a loop once; None for absent GPUs.
      loops: `flops` over the same count with bodies once; the compiler's count times this has its loops unrolled.
      memory_traffic: estimated bytes between a chip and its memory in one step; None if the program cannot be parsed.
      collectives: traffic that a chip sends in one step.
      needed: what it must send at least, see `needed.of`.
      compile_seconds: time of the compilation.
    """

    topology: str
    chips: int
    chip: str | None
    mesh: dict[str, int]
    global_batch: int
    remat: str
    accumulate: int
    parameters: int
    optimizer: int
    ema: int
    batch: int
    gradients: int
    compiled: bool
    tokens: int
    useful_flops: float | None
    flops: float
    loops: float
    limit: int | None = None
    temporaries: int | None = None
    peak: int | None = None
    start: int | None = None
    problem: str | None = None
    xla_flops: float | None = None
    memory_traffic: int | None = None
    collectives: tuple[Traffic, ...] = ()
    needed: tuple[Traffic, ...] = ()
    compile_seconds: float = 0.0

    @property
    def state(self) -> int:
        """Bytes that stay in memory between steps."""
        return self.parameters + self.optimizer + self.ema

    @property
    def least(self) -> int:
        """Lower bound of a step's memory in bytes: the state, one gradient and the batch."""
        return self.state + self.gradients + self.batch

    @property
    def fits(self) -> bool | None:
        """True if the peak is below the limit, False if not, None if unknown."""
        if self.limit is None:
            return None
        if self.problem is not None or self.least > self.limit:
            return False
        return None if self.peak is None else max(self.peak, self.start or 0) <= self.limit

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        for name in ("collectives", "needed"):
            values[name] = [row._asdict() for row in getattr(self, name)]
        bounds = roofline(self)
        values["fits"] = self.fits
        values["bounds"] = None if bounds is None else bounds._asdict()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        fields = {field.name for field in dataclasses.fields(cls)}
        rows = {name: tuple(Traffic(**row) for row in values[name]) for name in ("collectives", "needed")}
        return cls(**{name: value for name, value in values.items() if name in fields} | rows)


class Bounds(NamedTuple):
    """Lower bounds of a step's time in seconds, by resource, and the speeds that follow.

    Attributes:
      compute: all products at the chip's peak, recomputation and optimizer included.
      memory: `Plan.memory_traffic` at the memory's bandwidth; None if the program cannot be parsed.
      network: the bytes of all collectives over all links of a chip, without those of `outside`; None in the same case.
      outside: bytes between chips that no fast link joins, over the network of a chip; None in the same case, or if
        links join all chips.
      step: the largest of the four, as if they overlapped perfectly.
      tokens_per_second, examples_per_second: upper bounds.
      utilization: upper bound of the share of useful operations in the chips' peak; None without a formula.
    """

    compute: float
    memory: float | None
    network: float | None
    outside: float | None
    step: float
    tokens_per_second: float
    examples_per_second: float
    utilization: float | None


def roofline(plan: Plan) -> Bounds | None:
    """Compute the bounds of a plan; None for virtual devices."""
    if plan.chip is None:
        return None
    chip = hardware.CHIPS[plan.chip]
    compute = plan.flops / (plan.chips * chip.flops)
    memory = None if plan.memory_traffic is None else plan.memory_traffic / chip.hbm_bandwidth
    network = outside = None
    if plan.memory_traffic is not None:
        network, outside = network_seconds(plan.collectives, chip)
    step = max(bound for bound in (compute, memory, network, outside) if bound is not None)
    useful = None if plan.useful_flops is None else plan.useful_flops / (plan.chips * chip.flops) / step
    return Bounds(compute, memory, network, outside, step, plan.tokens / step, plan.global_batch / step, useful)


def network_seconds(rows: Sequence[Traffic], chip: hardware.Chip) -> tuple[float, float | None]:
    """Return the seconds that collectives take at least on the links of a chip, and on its network.

    The latter is None if nothing is sent there.
    """
    outside = sum(row.outside for row in rows)
    on_links = (sum(row.sent for row in rows) - outside) / chip.ici_bandwidth
    if not outside or chip.network_bandwidth is None:
        return on_links, None
    return on_links, outside / chip.network_bandwidth
