"""Stage 1 of RepWAM: video and latent actions.

wam train --config configs/repwam/pretrain.py

No action is predicted. Those of the episodes that stage 2 adapts to decide the normalisation; others are never read.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.split, config.data.unlabelled = "train[:80]", "train[80:]"
    config.tokenizer.init = "runs/repwam/tokenizer"
    config.latent_action.init = "runs/repwam/latent_action"
    config.train.optimizer.steps = 1000
    config.model.options.update({"latent_actions": True, "robot_actions": False})
    return config
