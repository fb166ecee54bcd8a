"""RepWAM on a real humanoid: a Unitree G1 with hands, as a LeRobot dataset. All stages in one run.

    wam train --config configs/repwam/g1.py --config.data.datasets='("DIR",)'

Needs PyAV: pip install -e '.[video]'. Frames are 8 steps apart at 30 a second. The set that the tests use has 8
episodes, all of one task in one place: the last two are held out, and show that it runs rather than how well.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ()
    config.data.datasets = ("../shared/data/g1_lerobot_v21",)
    config.data.split, config.data.validation_split = "train[:6]", "train[6:]"
    config.data.cameras = ("cam_high",)
    config.data.image_size = (96, 128)
    config.data.proprio_key = "observation.state"
    config.data.frame_steps = (0, 8, 16, 24)
    config.data.action_horizon = 24
    config.data.action_block = 8
    config.data.cumulative = (False,) * 26
    config.data.unnormalized = ()
    config.tokenizer.sizes.patch_size = 16
    config.tokenizer.teacher_size = (96, 128)  # 6 x 8 features, as many as latents
    config.model.options.update({"latent_actions": True, "robot_actions": True})
    config.tokenizer.optimizer.steps = config.latent_action.optimizer.steps = 500
    config.tokenizer.loss.adversarial_start = 400
    config.train.optimizer.steps = 200
    config.train.validation_windows = 32
    return config
