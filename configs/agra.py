"""AGRA: hidden video tokens of the pass that actions read are aligned to a frozen vision encoder.

    wam train --config configs/agra.py
    wam evaluate runs/agra --grounding --robustness

`--config.alignment.variant=none` is its base; frozen, shared and video are the paper's others (arXiv 2606.12217).
Demonstrations hold out some combinations of colour and shape, and one shape altogether, for `--robustness`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach", "pick_lift")
    config.demos.episodes = (400, 400)
    config.demos.directory = "runs/agra_data"
    config.demos.object_shapes = ConfigDict({"red": ("cube", "cylinder"), "green": ("cube",), "blue": ("cylinder",)})
    config.data.frame_steps = (0, 6, 12)
    config.alignment.variant = "action_condition"
    config.alignment.teacher_size = (128, 128)  # 8 x 8 features; a token covers four
    config.model.name = "agra"
    config.model.options = ConfigDict(
        {
            "noise": "logit_normal",
            "action_draws": 4,
            "action_layers": 3,  # each reads one of the video's three
            "video_loss_weight": 0.3,
            "context_noise": 0.05,
        }
    )
    config.train.optimizer.steps = 2000
    config.train.batch_size = 32
    return config
