"""Optimizers under a warm-up and a schedule: AdamW, Muon, Adafactor; learning rates that differ from layer to layer."""

import dataclasses
import re
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wam_jax.nn.module import Params, by_path, paths
from wam_jax.training.compact import scale_by_compact_adam

Method = Literal["adamw", "muon", "adafactor"]
Moments = Literal["float32", "bfloat16", "float8"]
Decay = Literal["cosine", "linear", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Attributes:

    steps: length of the schedule.
    method: "adamw"; "muon" (matrices of the layers; AdamW for the rest); "adafactor" (factored second moment alone).
    learning_rate: its peak, after ``warmup`` steps; the decay ends at ``final_share`` of it.
    decay: how it falls after the warm-up: "cosine", "linear" or "constant" (not at all).
    b2: decay of AdamW's second moment.
    moments: how AdamW's moments are kept: 8, 4 or 2 bytes a parameter.
    clip: the gradient's global norm is scaled down to this.
    layer_decay: the rate of each layer is that of the layer above times this; of what comes before the layers, too.
    rates: (regular expression, factor): the rate of parameters whose path the expression matches whole is scaled.
    ema: decay of the parameters' moving average, reached gradually.
    """

    steps: int
    method: Method = "adamw"
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: Decay = "cosine"
    final_share: float = 0.02
    b2: float = 0.98
    weight_decay: float = 0.0
    moments: Moments = "float32"
    clip: float = 1.0
    layer_decay: float = 1.0
    rates: tuple[tuple[str, float], ...] = ()
    ema: float = 0.99

    def __post_init__(self):
        for field, kind in (("method", Method), ("moments", Moments), ("decay", Decay)):
            value, choices = getattr(self, field), get_args(kind)
            if value not in choices:
                raise ValueError(f"optimizer.{field} {value!r} is unknown (has: {', '.join(choices)})")
        if self.moments != "float32" and self.method != "adamw":
            raise ValueError(f"optimizer.moments {self.moments!r} is AdamW's; {self.method} has float32 moments only")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate by step. The warm-up takes at most a tenth of the training."""
    warmup = max(1, min(config.warmup, config.steps // 10))
    rest, peak, end = max(config.steps - warmup, 1), config.learning_rate, config.learning_rate * config.final_share
    falls = {
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_share),
        "linear": optax.linear_schedule(peak, end, rest),
        "constant": optax.constant_schedule(peak),
    }
    rises = optax.linear_schedule(peak / warmup, peak, warmup)  # not from 0: the first step counts, too
    return optax.join_schedules([rises, falls[config.decay]], [warmup])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, the method, then the factors of single parameters."""
    parts = [optax.clip_by_global_norm(config.clip), _method(config)]
    if config.layer_decay != 1.0 or config.rates:
        parts.append(_scale_updates(config))
    return optax.chain(*parts)


def _method(config: OptimizerConfig) -> optax.GradientTransformation:
    schedule = make_schedule(config)
    if config.method == "muon":
        return optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,  # updates as large as AdamW's (Moonlight, arXiv 2502.16982): one rate serves both
        )
    if config.method == "adafactor":
        return optax.chain(
            optax.adafactor(multiply_by_parameter_scale=False),
            optax.scale(-1),  # it ends in a sign of its own
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
    adam = optax.scale_by_adam(b2=config.b2)
    return optax.chain(
        adam if config.moments == "float32" else scale_by_compact_adam(b2=config.b2, dtype=config.moments),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _matrices(params: Params) -> Params:
    """Muon's matrices: the kernels inside the trunk's stacks [layers, inputs, outputs]; None for all else."""

    def numbers(keys: tuple, _: Any) -> Any:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return optax.contrib.MuonDimensionNumbers(-2, -1) if _stacked(path) and path.endswith("kernel") else None

    return jax.tree_util.tree_map_with_path(numbers, params)


def _scale_updates(config: OptimizerConfig) -> optax.GradientTransformation:
    """Each update times its parameter's factor. After the method, so that it is the learning rate that is scaled."""

    def update(updates: Any, state: Any, params: Any = None):
        flat = paths(updates)
        for pattern, _ in config.rates:
            if not any(re.fullmatch(pattern, path) for path in flat):
                raise ValueError(
                    f"optimizer.rates {pattern!r} matches no parameter that is trained; one is {min(flat)!r}"
                )
        depth = max((value.shape[0] for path, value in flat.items() if _stacked(path)), default=0)
        scaled = {
            path: value * jnp.asarray(rate_factor(config, path, value.shape, depth), value.dtype)
            for path, value in flat.items()
        }
        return by_path(scaled), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


_AFTER = r"/(head|diffusion)/|^projectors/"


def rate_factor(config: OptimizerConfig, path: str, shape: tuple[int, ...], depth: int) -> np.ndarray:
    """What a parameter's learning rate is multiplied by; broadcasts over the parameter.

    Layer-wise decay after BEiT (arXiv 2106.08254): factor d^(N - 1 - l) for layer l of a stack of N, d^N before the
    layers, 1 for what comes after them (heads, of diffusion too, and projectors).

    Args:
      path, shape: of the parameter.
      depth: layers of the deepest stack.
    """
    named = float(np.prod([factor for pattern, factor in config.rates if re.fullmatch(pattern, path)]))
    if _stacked(path):
        layers = config.layer_decay ** np.arange(shape[0] - 1, -1, -1.0)
        return named * layers.reshape(-1, *(1 for _ in shape[1:]))
    return np.array(named if re.search(_AFTER, path) else named * config.layer_decay**depth)


def _stacked(path: str) -> bool:
    return path.startswith("trunk/blocks/")
