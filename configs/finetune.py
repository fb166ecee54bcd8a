"""A model that reaches and lifts learns to place a cube on a plate, from 50 demonstrations.

    wam quickstart
    wam train --config configs/finetune.py --config.init=runs/quickstart

It starts from any run or export (`config.init`); system, tokenizer and normalisation are those of the start. LoRA:
``--config.train.lora.rank=16 --config.train.optimizer.learning_rate=3e-3``. The README compares both
with a training from scratch (configs/studies/finetune.py).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("place",)
    config.demos.episodes = (50,)
    config.model.name = ""  # that of config.init; options are added to its own
    config.model.options = ConfigDict({})
    config.train.batch_size = 32
    config.train.optimizer.steps = 800
    config.train.optimizer.learning_rate = 2e-3
    config.train.optimizer.warmup = 50
    config.train.save_every = 400
    config.train.score.every = 400
    return config
