"""The world model: video and words, no robot.

wam train --config configs/world2act/world.py

Wan's transformer, small. `wam imagine runs/world2act/world --task reach` says how far it drifts.
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.split = "train"
    # One window is a whole episode: from window to window, a picture of this size blurs.
    config.data.frame_steps = tuple(common.CHUNK * number for number in range(4))
    # It is asked about starts alone; most of all windows begin where the hand is nearly there.
    config.data.starts = common.CHUNK
    config.model = ConfigDict({"name": "wan", "size": "debug"})
    config.model.options = ConfigDict({"video_steps": 12, "guidance": 2.0})
    config.train.batch_size = 32
    config.train.optimizer.steps = 2000
    return config
