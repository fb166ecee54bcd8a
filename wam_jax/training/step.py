"""One training step: pure, and the same for every model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from wam_jax.nn.module import Params
from wam_jax.sharding import batch_sharding, replicated, use_mesh
from wam_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[Params, Any, Any, jax.Array], tuple[Float[Array, ""], Metrics]]  # params, frozen, batch, key
StepFn = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]  # state, frozen, batch


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema: float,
    seed: int,
    mesh: Mesh,
    shardings: TrainState,
) -> StepFn:
    """``state, metrics = step(state, frozen, batch)``, jitted; the state's buffers are reused.

    ``frozen`` is whatever the loss needs that is not trained (a tokenizer), replicated.

    The step's randomness is ``fold_in(seed, step)``, so a resumed run draws what an uninterrupted one would have drawn.
    """

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with use_mesh(mesh):  # activations are cut as parameters are, and attention knows its platform
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, frozen, batch, key)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = update_ema(state.ema, params, state.step, ema)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads), **metrics}
        return TrainState(state.step + 1, params, average, moments), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, replicated(mesh), batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def update_ema(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Moving average whose decay grows from 0.1 to ``decay``, so that the random start is soon forgotten."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, average, params)
