"""What a finetuning takes over from the model it starts from, what it trains, and what it makes anew."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch.config import ConfigError
from launch.data import Data
from launch.memory import Remedy
from wam_jax import assets, console
from wam_jax.asset_table import ASSETS
from wam_jax.nn.lora import FACTORS, Lora
from wam_jax.nn.module import Definition
from wam_jax.training.losses import wam_loss
from wam_jax.training.partition import matching
from wam_jax.training.restore import define_model
from wam_jax.training.run import Run, is_run, open_run
from wam_jax.training.source import ParamSource, fresh_paths
from wam_jax.training.trainer import Trainer
from wam_jax.weights.files import open_weights
from wam_jax.weights.wan import WanTransformer


def with_normalisation_of(init: Run | None, data: Data) -> Data:
    """The data in the units of the model that training starts from, where both mean the same dimensions."""
    if init is None:
        return data
    same = init.codec.action_size == data.codec.action_size and (init.codec.cumulative == data.codec.cumulative).all()
    if same and init.codec.block == data.codec.block and init.proprio.offset.shape == data.proprio.offset.shape:
        console.log("normalisation: as in config.init")
        return dataclasses.replace(data, codec=init.codec, proprio=init.proprio)
    console.log("normalisation: of this data; actions or proprioception are not those of config.init")
    return data


def open_source(config: ConfigDict, definition: Definition) -> ParamSource | None:
    """Where the model's parameters come from; None: its random start.

    Raises:
      AssetMissing, FileNotFoundError: ``config.init`` is not here.
    """
    if not config.init:
        return None
    if is_run(Path(config.init)):
        return open_run(Path(config.init))
    path = assets.find(config.init)["weights"] if config.init in ASSETS else Path(config.init)
    if not path.exists():
        raise FileNotFoundError(
            f"config.init {config.init!r} is no run, no folder of safetensors and no asset; `wam assets` lists these"
        )
    if config.train.action_expert not in ("new", "interpolated"):
        raise ConfigError(
            f"config.train.action_expert {config.train.action_expert!r} is unknown (has: new, interpolated)"
        )
    return WanTransformer(definition, open_weights(path), config.train.action_expert)


def trained_patterns(config: ConfigDict, definition: Definition, source: ParamSource | None) -> list[str]:
    """Regular expressions of what is trained; empty: everything.

    What the source does not have is trained whatever else is frozen: it starts at random.

    Raises:
      ConfigError: if something is to be frozen at its random start.
    """
    asked = list(config.train.trainable) + ([FACTORS] if config.train.lora.rank else [])
    if not asked:
        return []
    if source is None:
        raise ConfigError(
            "config.train.trainable and config.train.lora freeze parameters at their random start; set config.init"
        )
    fresh = [path for path in fresh_paths(definition, source.shapes()) if not matching(asked)(path)]
    return asked + [re.escape(path) for path in fresh]


def model_remedies(identity: dict[str, Any], trainer: Trainer, source: ParamSource | None) -> list[Remedy]:
    """What saves memory inside the step: recomputing layers; LoRA, where there is a model to adapt."""
    found = []
    model = identity["model"]
    if trainer.definition.bind(trainer.definition.shapes()).spec.remat != "full":
        options = {**model["options"], "remat": "full"}
        changed = define_model({**identity, "model": {**model, "options": options}})
        found.append(Remedy(text="--config.model.options.remat=full", trainer=_with(trainer, changed)))
    if source is not None and not identity["lora"]:
        changed = define_model({**identity, "lora": dataclasses.asdict(Lora(rank=16, alpha=16.0))})
        adapted = dataclasses.replace(_with(trainer, changed), trained=matching([FACTORS]))
        found.append(Remedy(text="--config.train.lora.rank=16", trainer=adapted))
    return found


def _with(trainer: Trainer, definition: Definition) -> Trainer:
    return dataclasses.replace(trainer, definition=definition, loss=wam_loss(definition))
