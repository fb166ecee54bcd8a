"""One training step: pure, and the same for every model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from wam_jax.nn.module import Params
from wam_jax.sharding import batch_sharding, replicated, use_mesh
from wam_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]
# params, frozen, batch, key, step
LossFn = Callable[[Params, Any, Any, jax.Array, Int[Array, ""]], tuple[Float[Array, ""], Metrics]]
StepFn = Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]  # state, frozen, batch


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema: float,
    seed: int,
    mesh: Mesh,
    shardings: TrainState,
    frozen_shardings: Any = None,
    accumulate: int = 1,
    jit: Callable[..., Any] = jax.jit,
) -> StepFn:
    """``state, metrics = step(state, frozen, batch)``, jitted; the state's buffers are reused.

    The step's randomness is ``fold_in(seed, step)``, so a resumed run draws what an uninterrupted one would have drawn.

    Args:
      loss_fn: of the trained parameters.
      optimizer: of these.
      ema: decay of the moving average; 0 keeps none, and the state then has none.
      seed: of the run.
      mesh: of all devices.
      shardings: of the state.
      frozen_shardings: of ``frozen``, whatever the loss needs that is not trained; default: replicated.
      accumulate: a batch is worked through in so many parts, one after the other, for less memory. The loss is the mean
        of theirs: that of the batch, but for what counts samples itself (masks, ``batch_share``).
      jit: how it is compiled; a loss that steps the simulator needs ``sim.compilation.jit``.
    """

    def step(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with use_mesh(mesh):  # activations are cut as parameters are, and attention knows its platform
            metrics, grads = _gradients(loss_fn, state.params, frozen, batch, key, state.step, accumulate)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = update_ema(state.ema, params, state.step, ema) if ema else {}
        metrics = {"gradient_norm": optax.global_norm(grads), **metrics}
        return TrainState(state.step + 1, params, average, moments), metrics

    return jit(
        step,
        in_shardings=(shardings, frozen_shardings or replicated(mesh), batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _gradients(
    loss_fn: LossFn, params: Params, frozen: Any, batch: Any, key: jax.Array, step: Int[Array, ""], parts: int
) -> tuple[Metrics, Params]:
    """Metrics with the loss, and gradients; means over the parts of the batch."""

    def one(batch: Any, key: jax.Array) -> tuple[Metrics, Params]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, key, step)
        return {"loss": loss, **metrics}, grads

    if parts == 1:
        return one(batch, key)
    # Every part takes each parts-th sample, so that a device's samples stay on it.
    cut = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], cut), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, one(*part)), None), zeros, (cut, keys))
    return jax.tree.map(lambda x: x / parts, total)


def update_ema(average: Params, params: Params, step: Array, decay: float) -> Params:
    """Moving average whose decay grows from 0.1 to ``decay``, so that the random start is soon forgotten."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: kept * a + (1 - kept) * p, average, params)
