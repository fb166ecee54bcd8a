"""What base policy, world model and post-training share: one task, in which the named sphere is to be reached.

All 1,024 episodes are there to be watched; the actions of the first 120 may be looked at.
"""

from ml_collections import ConfigDict

from configs import common

CHUNK = 7  # control steps from one imagined frame to the next; an episode of 28 has four


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach",)
    config.demos.episodes = (1024,)
    config.demos.hold_steps = 16  # so that demonstrations last as long as three chunks
    # What nobody can foresee no world model imagines, and adapters would learn to tell videos apart by it.
    config.demos.action_noise = 0.0
    config.demos.directory = "runs/world2act/data"
    config.data.split = "train[:120]"
    config.data.frame_steps = (0, CHUNK)
    config.evaluation.execute = CHUNK
    return config
