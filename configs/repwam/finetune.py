"""Stage 3 of RepWAM: a new task from few demonstrations (in the paper 50, for 500 steps).

    wam train --config configs/repwam/finetune.py
    wam evaluate runs/repwam/finetune

Everything is kept and trained on; the tokenizer is that of the stages before.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.init = "runs/repwam/adapt"
    config.demos.tasks = ("place",)
    config.demos.episodes = (50,)
    config.demos.directory = ""
    config.model.name = ""
    config.train.optimizer.steps = 500
    config.train.optimizer.learning_rate = 1e-3  # a third of what the stages before begin with
    return config
