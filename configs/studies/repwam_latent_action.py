"""Does video without actions help where demonstrations are few, and do latent actions make more of it?

    wam study configs/studies/repwam_latent_action.py

360 episodes of each task are video alone, 40 are labelled. RepWAM (arXiv 2606.13674) finds two stages (latent actions,
then the robot's) better than pretraining without them, and predicting both at once worse. All arms see as many labelled
windows; "demonstrations" sees nothing else, "joint" has the steps of both stages, half of each batch labelled. Latents
are TAEF2's (`wam assets`): of those in repwam_tokenizer.py the best to act on, so that there is success to tell apart.
Less than half of configs/repwam's steps a stage, and half its batch: three arms have the steps of two stages, at three
seeds.
"""

from ml_collections import ConfigDict

from configs.repwam import common

STEPS = 600  # of each stage


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = common.get_config()
    config.base.tokenizer.name = "taef2"
    config.base.data.split = "train[:40]"
    config.base.train.optimizer.steps = STEPS
    config.base.train.batch_size = 32
    config.base.train.validation_windows = 64  # of each task; TAEF2's decoder is slow
    config.base.evaluation.films = 0
    config.base.evaluation.episodes = 48  # of each task, at each seed
    config.base.evaluation.seed = 3000  # not that on which the training was tuned
    config.seeds = (0, 1, 2)
    video = {"data.unlabelled": "train[40:]"}
    config.arms = ConfigDict(
        {
            "demonstrations": {},
            "video": {"before": {**video, "model.options.robot_actions": False}},
            "two_stage": {
                "before": {**video, "model.options.robot_actions": False, "model.options.latent_actions": True}
            },
            "joint": {
                **video,
                "data.weights": (1.0, 1.0, 1.0, 1.0),  # labelled reach and lift, then the videos of both
                "model.options.latent_actions": True,
                "train.optimizer.steps": 2 * STEPS,
            },
        },
        allow_dotted_keys=True,
    )
    config.compare = (
        ("two_stage", "joint"),
        ("two_stage", "video"),
        ("joint", "video"),
        ("two_stage", "demonstrations"),
        ("joint", "demonstrations"),
        ("video", "demonstrations"),
    )
    return config
