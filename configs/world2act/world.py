"""The world model: video and words, no robot.

wam train --config configs/world2act/world.py --workdir runs/world2act/world

UniPi's video stream learns from all episodes, its inverse dynamics (which is not used) from those with actions. `wam
imagine runs/world2act/world --task pick_lift` says how far it drifts.
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.unlabelled = "train[400:]"
    # One window is a whole episode: from window to window, a picture of this size blurs.
    config.data.frame_steps = (0, 8, 16, 24)
    config.model = ConfigDict({"name": "unipi", "size": "debug", "options": ConfigDict({"context_noise": 0.05})})
    config.train.optimizer.steps = 1200
    return config
