"""The quickstart with everything cut short: every stage runs, nothing is learned. For CI and for trying a change.

wam quickstart --config configs/smoke.py
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.demos.episodes = (32, 32)
    config.demos.validation_episodes = 8
    config.tokenizer.optimizer.steps = 20
    config.train.optimizer.steps = 20
    config.train.validation_windows = 32
    config.evaluation.episodes = 16
    config.evaluation.batch_size = 16
    config.evaluation.films = 2
    return config
