"""Recipe of the toy system that `toy_train.py` registers; it trains in seconds on CPUs."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.system, config.seed, config.steps, config.global_batch, config.init_from = "toy", 0, 9, 8, ""
    config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    config.model = {}
    config.data = {"threads": 1, "prefetch": 1, "records": ""}
    config.optimizer = {
        "name": "muon",
        "trainable": "blocks/.*",
        "learning_rate": 0.01,
        "schedule": "constant",
        "ema_decay": 0.9,
    }
    config.loss = {}
    config.checkpoint = {"interval": 3, "max_to_keep": 10, "step": -1}
    config.log = {"interval": 1}
    config.sample = {}
    return config.lock()
