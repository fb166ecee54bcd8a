"""All four tabletop tasks in one model: reach, lift, push, place.

wam quickstart --config configs/tabletop.py --workdir runs/tabletop
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach", "pick_lift", "push", "place")
    config.demos.episodes = (512, 1024, 1536, 1536)
    config.train.optimizer.steps = 10_000
    return config
