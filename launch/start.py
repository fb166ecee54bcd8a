"""What a finetuning takes over from the model it starts from, what it trains, and what it makes anew."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.alignment import check_alignment, unfrozen_patterns
from launch.config import ConfigError, to_plain
from launch.data import Data
from launch.memory import Remedy
from launch.tokenizers import check_tokenizers
from wam_jax import assets, console
from wam_jax.asset_table import ASSETS
from wam_jax.nn.lora import FACTORS
from wam_jax.nn.module import Definition, paths
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.partition import everything, matching
from wam_jax.training.restore import define_model
from wam_jax.training.run import Run, is_run, open_run
from wam_jax.training.source import ParamSource, fresh_paths
from wam_jax.training.trainer import Trainer
from wam_jax.weights.files import open_weights
from wam_jax.weights.wan import WanTransformer
from wam_jax.zoo import make_spec


def check_start(config: ConfigDict, directory: Path, starts: bool = False) -> None:
    """Finds what is wrong with ``config.init``, ``model`` and ``alignment`` before any work is done in ``directory``.

    ``starts``: ``config.init`` is filled in later.

    Raises:
      ConfigError: no system is named, and what training starts from does not tell it; or a tokenizer is not here.
      ValueError: the system, its size or one of its options is unknown; or a layer or projector of the alignment.
      AssetMissing, FileNotFoundError: ``config.init`` is not here.
    """
    if is_run(directory):  # it goes on with what it has
        return
    check_tokenizers(config)
    _locate(config.init)
    if not config.model.name and not (config.init and is_run(Path(config.init))):
        raise ConfigError(
            "config.model.name is empty, which means: that of the run in config.init; name a run there, or a system"
        )
    model = described_model(config, open_run(Path(config.init)) if config.init and is_run(Path(config.init)) else None)
    check_alignment(config, make_spec(model["name"], model["size"], **model["options"]), starts)


def described_model(config: ConfigDict, init: Run | None) -> dict[str, Any]:
    """The system: the config's, or the start's with the config's options added."""
    model = to_plain(config.model)
    if init is not None and not config.model.name:
        of_init = init.identity["model"]
        model = {**of_init, "options": {**of_init["options"], **model["options"]}}
    if config.alignment.variant == "shared":
        model["options"]["shared_pass"] = True
    return model


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
    path = _locate(config.init)
    if path is None:
        return None
    if is_run(path):
        return open_run(path)
    if config.train.action_expert not in ("new", "interpolated"):
        raise ConfigError(
            f"config.train.action_expert {config.train.action_expert!r} is unknown (has: new, interpolated)"
        )
    return WanTransformer(definition, open_weights(path), config.train.action_expert)


def _locate(init: str) -> Path | None:
    """Where ``config.init`` is; None where it is empty."""
    if not init:
        return None
    path = assets.find(init)["weights"] if init in ASSETS else Path(init)
    if not path.exists():
        raise FileNotFoundError(
            f"config.init {init!r} is no run, no folder of safetensors and no asset; `wam assets` lists these"
        )
    return path


def trained_patterns(config: ConfigDict, definition: Definition, source: ParamSource | None) -> list[str]:
    """Regular expressions of what is trained; empty: everything.

    What the source does not have is trained whatever else is frozen: it starts at random.

    Raises:
      ConfigError: if something is to be frozen at its random start.
    """
    trainable = list(config.train.trainable)
    if config.alignment.variant == "frozen":
        if trainable:
            raise ConfigError(
                "config.alignment.variant='frozen' says what is trained; leave config.train.trainable empty"
            )
        trainable = unfrozen_patterns(definition.bind(definition.shapes()).spec)
    asked = trainable + ([FACTORS] if config.train.lora.rank else [])
    if not asked:
        return []
    if source is None:
        raise ConfigError(
            "config.train.trainable, config.train.lora and config.alignment.variant='frozen' freeze parameters at "
            "their random start; set config.init"
        )
    have = paths(definition.shapes())
    for pattern in asked:
        if not any(map(matching([pattern]), have)):
            near = difflib.get_close_matches(pattern, have, n=1, cutoff=0.0)
            raise ConfigError(f"config.train.trainable {pattern!r} matches no parameter; one is {near[0]!r}")
    fresh = [path for path in fresh_paths(definition, source.shapes()) if not matching(asked)(path)]
    return asked + [re.escape(path) for path in fresh]


def model_trainer(config: ConfigDict, definition: Definition, mesh: Mesh, trained: Sequence[str]) -> Trainer:
    """The training of a model that ``config.train`` describes; ``trained``: patterns, all parameters without any."""
    return Trainer(
        definition=definition,
        loss=wam_loss(definition),
        config=OptimizerConfig(**config.train.optimizer),
        mesh=mesh,
        seed=config.seed,
        trained=matching(trained) if trained else everything,
        accumulate=config.train.accumulate,
        frozen_dtype=config.train.frozen_dtype,
    )


def model_remedies(
    config: ConfigDict, identity: dict[str, Any], trainer: Trainer, source: ParamSource | None
) -> list[Remedy]:
    """What saves memory inside the step: recomputing layers; LoRA, where there is a model to adapt."""
    found = []
    model = identity["model"]
    if trainer.definition.bind(trainer.definition.shapes()).spec.remat != "full":
        options = {**model["options"], "remat": "full"}
        changed = define_model({**identity, "model": {**model, "options": options}}, training=True)
        found.append(Remedy(text="--config.model.options.remat=full", trainer=_with(trainer, changed)))
    if source is not None and not identity["lora"]:
        adapted = config.copy_and_resolve_references()
        adapted.train.lora.rank = 16
        changed = define_model({**identity, "lora": to_plain(adapted.train.lora)}, training=True)
        trained = matching(trained_patterns(adapted, changed, source))
        lora = dataclasses.replace(_with(trainer, changed), trained=trained)
        found.append(Remedy(text="--config.train.lora.rank=16", trainer=lora))
    return found


def _with(trainer: Trainer, definition: Definition) -> Trainer:
    return dataclasses.replace(trainer, definition=definition, loss=wam_loss(definition))
