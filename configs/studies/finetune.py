"""Does starting from a model of other tasks help, when a new task has 50 demonstrations?

    wam quickstart
    wam study configs/studies/finetune.py --config.base.init=runs/quickstart

Arms: the same system from its random start, finetuned in full, finetuned with LoRA. All have the same demonstrations,
tokenizer, steps and batch, and are judged on the same episodes. The task (push gave 5% at 300 steps) and the number of
steps were chosen by looking at one full finetuning on other episodes; learning rates are the usual ones of each kind.
"""

from ml_collections import ConfigDict

from configs import common, finetune


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.base = finetune.get_config()
    config.base.train.score.every = 0
    config.base.evaluation.films = 0
    config.seeds = (0, 1, 2)
    config.arms = ConfigDict(
        {
            "scratch": {
                "init": "",
                "model.name": "fast_wam",
                "model.options": common.get_config().model.options.to_dict(),
                "train.optimizer.learning_rate": 3e-3,
            },
            "full": {},
            "lora": {"train.lora.rank": 16, "train.optimizer.learning_rate": 3e-3},
        },
        allow_dotted_keys=True,
    )
    config.compare = (("full", "scratch"), ("lora", "scratch"), ("lora", "full"))
    return config
