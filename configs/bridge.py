"""The same model on real robot data: BridgeData (WidowX), or any RLDS folder with its keys.

    wam train --config configs/bridge.py --config.data.datasets='("DIR",)'

``DIR`` is the folder that holds features.json. The set that the tests use has 25 episodes of 10 steps: enough to show
that the path works, too little to mean much, and the report says so. Its ``val`` split repeats the training episodes,
so the last fifth of the training split is held out instead.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.datasets = ("../shared/data/bridge_rlds/bridge_dataset/1.0.0",)
    config.data.split = "train[:80%]"
    config.data.validation_split = "train[80%:]"
    config.data.cameras = ("image_0", "image_1")
    config.data.proprio_key = "state"
    config.data.frame_steps = (0, 4)
    config.data.action_horizon = 6
    config.data.cumulative = (True, True, True, True, True, True, False)
    config.data.normalization = "quantile"
    config.data.unnormalized = (6,)
    config.data.precompute_latents = False
    config.tokenizer.optimizer.steps = 400
    config.train.optimizer.steps = 600
    config.train.validation_windows = 32
    return config
