"""All four tabletop tasks in one model: reach, lift, push, place.

wam quickstart --config configs/tabletop.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach", "pick_lift", "push", "place")
    config.demos.episodes = (768, 896, 896, 896)
    config.train.optimizer.steps = 6500
    return config
