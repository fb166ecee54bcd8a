"""Stage 2 of RepWAM: the pretrained model learns the robot's own actions from few demonstrations.

    wam train --config configs/repwam/adapt.py
    wam evaluate runs/repwam/adapt

The action stream's maps start anew; everything else is kept.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.init = "runs/repwam/pretrain"
    config.data.split = "train[:80]"
    config.model.name = ""
    config.train.optimizer.steps = 1000
    config.model.options.update({"latent_actions": False, "robot_actions": True})
    return config
