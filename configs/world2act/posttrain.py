"""The policy learns from what the world model imagines.

wam posttrain --config configs/world2act/posttrain.py
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.init = "runs/world2act/base"
    config.posttrain.method = "residual"
    config.posttrain.world = "runs/world2act/world"
    config.posttrain.adapters.position = (3, 4, 5)  # the commanded hand's, in metres
    config.posttrain.adapters.unit = 0.025
    config.posttrain.adapters.hidden = (3,)  # the gripper: the residual leaves it to the base
    # To reach is a matter of centimetres, and starts are farther apart: a mean over the picture would tell them apart.
    config.posttrain.adapters.options.pool = "where"
    config.posttrain.adapters.elsewhere = 4
    # Half of a batch is what the base does: it is that which is to be told apart. (The study's arm "shown" has none.)
    config.posttrain.adapters.own_episodes = 1024
    config.posttrain.adapters.batch_size = 64
    # Through convolutions of its own it learns to see too slowly. (The study's arm "own_eyes" has these.)
    config.posttrain.residual.options.sees = "base"
    config.posttrain.windows = 1
    config.posttrain.optimizer.steps = 600
    config.posttrain.trajectories = 1024
    config.train.save_every = 100
    return config
