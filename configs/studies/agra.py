"""Does aligning what actions read make them look at the right things, and hold up where things look otherwise?

    wam study configs/studies/agra.py

The five variants of AGRA (arXiv 2606.12217), which finds the action-condition pass best, most of all on unseen
combinations. What is asked is whether it succeeds more often than "none"; all else is looked at beside that. All arms
start from the same training on the video of all demonstrations ("before"), as the paper's do from a video model, and
learn to act from a quarter of them. Both passes read the same tokens of the present, so the variants differ in the two
future frames alone. In all arms the future is denoised, and where it is aligned, aligned, on all of the batch.
"""

from ml_collections import ConfigDict

from configs import agra

VIDEO_STEPS = 1000


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = agra.get_config()
    config.base.alignment.variant = "none"
    config.base.evaluation.films = 0
    # Few demonstrations, not few steps, keep the base from succeeding always: with 400 of each task it goes from .24 at
    # 600 steps to .75 at 800, which would tell arms apart by when they get there. With 80: .41, with 160: .71. (Of
    # "none", by --config.base.data.split, ...optimizer.steps, --config.seeds="(77,)" and ...evaluation.seed=77.)
    config.base.data.split = "train[:100]"
    config.base.train.optimizer.steps = 1000
    config.base.train.batch_size = 32
    config.base.evaluation.episodes = 64  # of each task, at each seed
    config.base.evaluation.robustness_episodes = 32
    config.base.evaluation.robustness_strengths = (2 / 3,)
    config.base.evaluation.seed = 4000  # looked at by nothing before
    config.seeds = (0, 1, 2)
    config.grounding = config.robustness = True
    video = {
        "alignment.variant": "none",
        "data.split": "train",
        "model.options.actions": False,
        "train.optimizer.steps": VIDEO_STEPS,
    }
    config.arms = ConfigDict(
        {
            variant: {"alignment.variant": variant, "before": video}
            for variant in ("frozen", "none", "shared", "video", "action_condition")
        },
        allow_dotted_keys=True,
    )
    others = ("none", "frozen", "shared", "video")
    config.compare = tuple(("action_condition", other) for other in others)
    return config
