"""What base policy, world model and post-training share: one task, in which the named cube is to be lifted.

All 1,024 episodes are there to be watched; the actions of the first 400 may be looked at.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("pick_lift",)
    config.demos.episodes = (1024,)
    # What nobody can foresee no world model imagines, and adapters would learn to tell videos apart by it.
    config.demos.action_noise = 0.0
    config.demos.directory = "runs/world2act/data"
    config.data.split = "train[:400]"
    config.evaluation.execute = 8  # as far as imagined frames are apart
    return config
