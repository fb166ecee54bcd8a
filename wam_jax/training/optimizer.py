"""AdamW under a warm-up and a cosine."""

import dataclasses

import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Attributes:

    steps: length of the schedule.
    learning_rate: its peak, after ``warmup`` steps; the cosine ends at ``final_share`` of it.
    b2: decay of the second moment.
    clip: the gradient's global norm is scaled down to this.
    ema: decay of the parameters' moving average, reached gradually.
    """

    steps: int
    learning_rate: float = 3e-3
    warmup: int = 100
    final_share: float = 0.02
    b2: float = 0.98
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.99


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate by step. The warm-up takes at most a tenth of the training."""
    warmup = max(1, min(config.warmup, config.steps // 10))
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / warmup,  # not 0: the first step counts, too
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
        end_value=config.learning_rate * config.final_share,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(make_schedule(config), b2=config.b2, weight_decay=config.weight_decay),
    )
