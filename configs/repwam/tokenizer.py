"""Stage 0 of RepWAM: the visual tokenizer, aligned to a frozen vision encoder.

    wam train --config configs/repwam/tokenizer.py

`--config.tokenizer.loss.alignment=0.0` is ViTok, its twin without a teacher.
"""

from ml_collections import ConfigDict

from configs.repwam import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.until = "tokenizer"
    return config
