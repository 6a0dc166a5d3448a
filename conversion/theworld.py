"""Keys of TheWorld: Gemma-3, the projection of the world, and the autoencoder (`cosmos_vae`, names of diffusers)."""

from conversion import gemma3, wan_vae
from conversion.engine import TRANSPOSED, Rule
from jworld.models.theworld.config import TheWorldConfig, WorldConfig

AUTOENCODER = "cosmos_vae."
_PROJECTION = "world_projector.projection"


def rules(cfg: TheWorldConfig, style: str) -> tuple[Rule, ...]:
    """The table for a model of these sizes; `style` is a key of `gemma3.STYLES`."""
    table = gemma3.rules(cfg.gemma, gemma3.STYLES[style])
    return table if cfg.world is None else (*table, *_projection(cfg.world), *_autoencoder(cfg.world))


def _projection(world: WorldConfig) -> list[Rule]:
    layers = {"": "output"} if world.projection == "linear" else {".0": "hidden", ".2": "output"}
    return [
        rule
        for number, name in layers.items()
        for rule in (
            Rule(f"{_PROJECTION}{number}.weight", f"world/{name}/kernel", TRANSPOSED),
            Rule(f"{_PROJECTION}{number}.bias", f"world/{name}/bias"),
        )
    ]


def _autoencoder(world: WorldConfig) -> list[Rule]:
    table = wan_vae.diffusers(world.autoencoder())
    return [Rule(AUTOENCODER + rule.source, "autoencoder/" + rule.target, rule.layout, rule.part) for rule in table]
