"""What `wam bench zoo` trains every system on: the quickstart's reach task, with depth and value, in short blocks.

    wam bench zoo

Each system at its debug size for 200 steps: enough to see that it learns, what it costs, and that it acts.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach",)
    config.demos.episodes = (512,)
    config.demos.depth = True
    config.data.depth_cameras = ("front_depth", "wrist_depth")
    config.data.value_discount = 0.97
    config.data.frame_steps = (0, 4, 8, 12)
    config.model.options = ConfigDict({})
    config.train.batch_size = 16
    config.train.optimizer.steps = 200
    config.train.optimizer.warmup = 20
    config.evaluation.episodes = 64  # and as many held-out windows
    config.evaluation.batch_size = 64
    return config
