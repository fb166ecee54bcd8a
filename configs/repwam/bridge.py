"""RepWAM on real robot data: BridgeData (WidowX), as RLDS. Tokenizer, latent actions and model in one run.

    wam train --config configs/repwam/bridge.py --config.data.datasets='("DIR",)'

The report has reconstructions, maps of latents beside the teacher's features, latent actions over the pictures that
they explain, and imagined beside real futures, all on held-out episodes. The set that the tests use has 25 episodes of
10 steps, too little to mean much; its ``val`` split repeats the training episodes, so the last fifth is held out.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ()
    config.data.datasets = ("../shared/data/bridge_rlds/bridge_dataset/1.0.0",)
    config.data.split, config.data.validation_split = "train[:80%]", "train[80%:]"
    config.data.cameras = ("image_0", "image_1")
    config.data.proprio_key = "state"
    config.data.frame_steps = (0, 4, 8)
    config.data.action_horizon = 8
    config.data.cumulative = (True, True, True, True, True, True, False)
    config.data.normalization = "quantile"
    config.data.unnormalized = (6,)
    config.model.options.update({"latent_actions": True, "robot_actions": True})
    config.tokenizer.optimizer.steps = config.latent_action.optimizer.steps = 500
    config.tokenizer.loss.adversarial_start = 400
    config.train.optimizer.steps = 200
    config.train.validation_windows = 32
    return config
