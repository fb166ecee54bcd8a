"""Stage 1 of RepWAM: video and latent actions from windows whose actions are not looked at.

wam train --config configs/repwam/pretrain.py --workdir runs/repwam/pretrain
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.tokenizer.init = "runs/repwam/tokenizer"
    config.latent_action.init = "runs/repwam/latent_action"
    config.model.options = ConfigDict({"latent_actions": True, "robot_actions": False})
    return config
