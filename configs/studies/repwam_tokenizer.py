"""Which latents should a world action model predict: aligned to a vision encoder, of raw pixels, or reconstructing?

    wam study configs/studies/repwam_tokenizer.py

RepWAM (arXiv 2606.13674) finds aligned latents (RepViTok) better to act on than those of the same autoencoder without
alignment (ViTok) and than a published reconstruction autoencoder's. All arms have the same system, data and steps; the
first two the same autoencoder and tokenizer training, but for alignment.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = common.get_config()
    config.base.evaluation.films = 0
    config.base.evaluation.episodes = 128  # of each task, at each seed
    config.base.evaluation.seed = 3000  # not that on which the training was tuned
    config.seeds = (0, 1, 2)
    config.arms = ConfigDict(
        {
            "repvitok": {},
            "vitok": {"tokenizer.loss.alignment": 0.0},
            "taef2": {"tokenizer.name": "taef2"},
        },
        allow_dotted_keys=True,
    )
    config.compare = (("repvitok", "vitok"), ("repvitok", "taef2"), ("vitok", "taef2"))
    return config
