"""Stage 0 of RepWAM, second part: latent actions between the tokenizer's frames.

wam train --config configs/repwam/latent_action.py
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.until = "latent_action"
    config.tokenizer.init = "runs/repwam/tokenizer"
    return config
