"""A trained tokenizer as files: ``tokenizer.json`` says what it is, ``tokenizer.safetensors`` holds its arrays."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from wam_jax.tokenizers.latent_action import FrozenLatentActions, LatentActionConfig, define_latent_actions
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights, write_safetensors

CONFIG, STEM, KEY = "tokenizer.json", "tokenizer", "tokenizer_key"
_KINDS: dict[str, tuple[Any, Any, Any]] = {
    "visual": (FrozenTokenizer, TokenizerConfig, define_tokenizer),
    "latent_action": (FrozenLatentActions, LatentActionConfig, define_latent_actions),
}

Saved = FrozenTokenizer | FrozenLatentActions


class TokenizerMissing(FileNotFoundError):
    """A folder holds no trained tokenizer of the kind that was asked for."""


def save(folder: Path, tokenizer: Saved, latents_of: str | None = None) -> None:
    """Writes a tokenizer over what the folder holds.

    ``latents_of``, for latent actions: the key of the visual tokenizer whose latents they were learned on.
    """
    kind = next(name for name, (frozen, *_) in _KINDS.items() if isinstance(tokenizer, frozen))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # written last, it says that the arrays are complete
    (folder / f"{STEM}.safetensors").unlink(missing_ok=True)
    arrays = {"params": tokenizer.params, "mean": tokenizer.mean, "std": tokenizer.std}
    write_safetensors(folder, mapping.export(mapping.own_names(arrays), arrays), stem=STEM)
    described = {"kind": kind, "config": dataclasses.asdict(tokenizer.config)}
    if latents_of is not None:
        described[KEY] = latents_of
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def is_saved(folder: Path) -> bool:
    """Whether the folder holds a complete tokenizer."""
    return (folder / CONFIG).is_file()


def latents_of(folder: Path) -> str | None:
    """The key that was saved with latent actions; None: they were saved without one."""
    return json.loads((folder / CONFIG).read_text()).get(KEY)


def load(folder: Path, kind: str) -> Saved:
    """A tokenizer that ``save`` wrote: "visual" or "latent_action".

    Raises:
      TokenizerMissing: there is none, or one of the other kind.
      UnreadableWeights, WeightsMismatch: the file of arrays is damaged, or another tokenizer's.
    """
    if not is_saved(folder):
        raise TokenizerMissing(f"{folder} holds no trained {kind} tokenizer ({CONFIG}); train one with: wam train")
    described = json.loads((folder / CONFIG).read_text())
    if described["kind"] != kind:
        raise TokenizerMissing(f"{folder} holds a {described['kind']} tokenizer, not a {kind} one")
    frozen, config_type, define = _KINDS[kind]
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in described["config"].items()}
    config = config_type(**fields)
    checkpoint = open_weights(folder / f"{STEM}.safetensors")
    size = jax.ShapeDtypeStruct(checkpoint.shapes()["mean"], jnp.float32)
    like = {"params": define(config).shapes(), "mean": size, "std": size}
    return frozen(**mapping.load(mapping.own_names(like), like, checkpoint), config=config)
