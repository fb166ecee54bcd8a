"""A run as plain files that other tools read: safetensors, the configuration, the statistics, a model card.

  model.safetensors (or shards and an index)   every parameter that acts, named by its path with dots
  tokenizer.safetensors                         a tokenizer of ours and the statistics of its latents
  config.json                                   what a checkpoint knows: system, sizes, normalisation, configuration
  README.md                                     the model card

``run.open_run`` reads such a folder like a run. An adapter (LoRA) is written as PEFT names it:
``adapter_model.safetensors`` and ``adapter_config.json``.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from jax.sharding import SingleDeviceSharding

from wam_jax.nn.module import Params, by_path, paths
from wam_jax.tokenizers.visual import FrozenTokenizer
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.training.run import CONFIG, MODEL, TOKENIZER, CheckpointRun, Run
from wam_jax.training.state import TrainState
from wam_jax.weights import mapping
from wam_jax.weights.files import write_safetensors

_SHARD_BYTES = 5 * 10**9


def export_safetensors(run: Run, folder: Path, dtype: str = "float32") -> None:
    """Writes the whole model, its tokenizer, configuration, statistics and card.

    Raises:
      FileExistsError: if the folder holds an export already.
    """
    params, tokenizer = _all_params(run, dtype), run.tokenizer()
    write_safetensors(folder, mapping.export(mapping.own_names(params), params), _SHARD_BYTES, stem=MODEL)
    if isinstance(tokenizer, FrozenTokenizer):
        arrays = {"params": tokenizer.params, "mean": tokenizer.mean, "std": tokenizer.std}
        write_safetensors(folder, mapping.export(mapping.own_names(arrays), arrays), _SHARD_BYTES, stem=TOKENIZER)
    meta = {**run.meta, "identity": {**run.identity, "lora": None, "trainable": None}, "step": run.step}
    (folder / CONFIG).write_text(json.dumps(meta, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(run, params))


def export_run(run: Run, folder: Path) -> None:
    """Writes a run folder with one checkpoint that acts; the inverse of ``export_safetensors``.

    It holds no optimizer and no data position: it can be evaluated and finetuned, not resumed.

    Raises:
      FileExistsError: if the folder is a run already.
    """
    if (folder / "checkpoints").exists():
        raise FileExistsError(f"{folder} already is a run; choose another folder or remove it")
    state = TrainState(jnp.asarray(run.step, jnp.int32), _all_params(run, "float32"), {}, ())
    meta = {**run.meta, "identity": {**run.identity, "lora": None, "trainable": None}}
    checkpoints = Checkpoints(folder / "checkpoints")
    tokenizer = run.tokenizer()
    checkpoints.save(max(run.step, 1), state, None, tokenizer if tokenizer.saved else None, meta)
    checkpoints.close()


def export_adapter(run: Run, folder: Path) -> None:
    """Writes LoRA's factors, layer by layer, under the names and shapes of PEFT; and what was trained beside them.

    Raises:
      CheckpointError: if the run has none.
    """
    lora = run.lora
    if lora is None or not isinstance(run, CheckpointRun):
        raise CheckpointError("this run was not adapted with LoRA; export it with --format safetensors")
    factors, beside = run.factors(), run.beside_factors()
    write_safetensors(folder, _peft(factors | beside), _SHARD_BYTES, stem="adapter_model")
    adapted, saved = (sorted({_module(path) for path in found}) for found in (factors, beside))
    config = {
        "peft_type": "LORA", "task_type": None, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "target_modules": adapted, "modules_to_save": saved or None,
        "base_model_name_or_path": run.meta["config"]["init"],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _peft(trained: dict[str, jax.Array]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values: A as [rank, inputs] and B as [outputs, rank], layer by layer; what is no factor, as it is."""
    for path, value in trained.items():
        name = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}.get(path.split("/")[-1])
        if name is None:
            yield f"base_model.model.{path.replace('/', '.')}", np.asarray(value)
            continue
        for layer, factor in enumerate(np.asarray(value).reshape(-1, *value.shape[-2:])):
            yield f"base_model.model.{_module(path, layer)}.{name}", np.ascontiguousarray(factor.T)


def _module(path: str, layer: int | None = None) -> str:
    """The dotted name of the module that a parameter is of, with the number of its layer."""
    module = path.rsplit("/", 1)[0]
    numbered = module if layer is None else re.sub(r"^(trunk/blocks/[^/]+)", rf"\1/{layer}", module)
    return numbered.replace("/", ".")


def _all_params(run: Run, dtype: str) -> Params:
    here = SingleDeviceSharding(jax.devices()[0])
    like = {path: jax.ShapeDtypeStruct(shape, dtype, sharding=here) for path, shape in run.shapes().items()}
    return run.load(by_path(like))


_CARD = jinja2.Template(
    """---
library_name: wam_jax
tags: [robotics, world-action-model]
---
# {{ model.name }} ({{ model.size }})

A World Action Model: it predicts how a scene will look and the actions that make it so. {{ parameters }} parameters,
{{ step }} training steps{% if init %}, started from `{{ init }}`{% endif %}.

| | |
|---|---|
{% for name, value in rows -%}
| {{ name }} | {{ value }} |
{% endfor %}
Actions are normalised by `identity.codec` in `config.json`, proprioception by `identity.proprio`.

    wam evaluate FOLDER
    wam train --config configs/finetune.py --config.init=FOLDER
""",
    keep_trailing_newline=True,
)


def model_card(run: Run, params: Params) -> str:
    """What a stranger must know to use it, as markdown."""
    config, interface = run.meta["config"], run.identity["interface"]
    rows = [
        ("data", ", ".join(config["demos"]["tasks"]) or ", ".join(map(str, config["data"]["datasets"]))),
        ("cameras", ", ".join(config["data"]["cameras"])),
        ("pictures", " x ".join(map(str, run.identity["tokenizer"]["image_size"]))),
        ("frames at control steps", ", ".join(map(str, interface["frame_steps"]))),
        ("actions", f"{interface['action_horizon']} a chunk, of {interface['action_size']} numbers"),
        ("proprioception", f"{interface['proprio_size']} numbers"),
        ("text", f"{interface['text_width']} wide token features"),
        ("normalisation", config["data"]["normalization"]),
    ]
    count = sum(array.size for array in paths(params).values())
    return _CARD.render(
        model=run.identity["model"],
        parameters=f"{count / 1e6:.2f}M",
        step=run.step,
        init=config.get("init", ""),
        rows=rows,
    )
