"""A policy that was trained on few demonstrations learns from what a world model imagines.

    wam posttrain --config configs/world2act.py --config.init=runs/quickstart --workdir runs/world2act

World2Act (arXiv 2603.10422). The quickstart's model is both policy and world model; `config.posttrain.world` names
another one, which may have seen far more video than the policy has seen actions.
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("pick_lift",)
    config.demos.episodes = (400,)
    config.posttrain.method = "residual"
    config.evaluation.execute = 8  # as far as imagined frames are apart
    config.train.save_every = 100
    return config
