"""One small model that reaches and lifts what it is told to, from nothing, on two CPU cores.

    wam quickstart

A joint world action model of 1.35M parameters learns from two cameras and a sentence: reach the named sphere among
three, lift the named cube of two. The README has the figures.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach", "pick_lift")
    config.demos.episodes = (768, 1024)
    config.data.weights = (1.0, 1.0)
    config.train.optimizer.steps = 1800
    return config
