"""One training, put together: which parameters, which loss, which optimizer, on which mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from wam_jax.nn.module import Definition, Params, by_path, paths
from wam_jax.sharding import param_shardings, placed, replicated
from wam_jax.training.optimizer import OptimizerConfig, make_optimizer
from wam_jax.training.partition import Select, everything, subset, union
from wam_jax.training.state import TrainState, start_state, state_shardings
from wam_jax.training.step import LossFn, StepFn, make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """Attributes:

    definition: of the model.
    loss: ``loss(params, frozen, batch, key, step)`` of all its parameters.
    config: of the optimizer.
    mesh: where everything lives.
    seed: of the parameters and of every step's randomness.
    trained: which parameters; where not all are, the step's ``frozen`` is (the other parameters, the loss' frozen).
    accumulate: parts that a batch is worked through in.
    frozen_dtype: of the parameters that are not trained.
    jit: how the step is compiled.
    """

    definition: Definition
    loss: LossFn
    config: OptimizerConfig
    mesh: Mesh
    seed: int
    trained: Select = everything
    accumulate: int = 1
    frozen_dtype: str = "float32"
    jit: Callable[..., Any] = jax.jit

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Of the state."""
        average = self.config.ema > 0
        return state_shardings(self.definition, self.optimizer, self.mesh, self.trained, average)

    @functools.cached_property
    def param_shardings(self) -> Params:
        """Of all parameters."""
        return param_shardings(self.mesh, self.definition.axes(), self.definition.shapes())

    def init_params(self, select: Select = everything) -> Params:
        """Fresh parameters (some of them), created where and as they will be kept.

        No device ever holds the whole of a sharded one, and the compiler leaves out what is not selected.
        """
        like = subset(self.abstract_params(), select)

        def init(key: jax.Array) -> Params:
            drawn = subset(self.definition.init(key), select)
            return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), drawn, like)

        return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(jax.random.key(self.seed))

    def init_state(self) -> TrainState:
        """A fresh state of the parameters that are trained."""

        def start(key: jax.Array) -> TrainState:
            return self._start(subset(self.definition.init(key), self.trained))

        return jax.jit(start, out_shardings=self.shardings)(jax.random.key(self.seed))

    def start_state(self, params: Params) -> TrainState:
        """The state that begins from all these parameters."""
        return jax.jit(self._start, out_shardings=self.shardings)(subset(params, self.trained))

    def frozen_part(self, params: Params) -> Params:
        """The parameters that are not trained."""
        return subset(params, lambda path: not self.trained(path))

    def _start(self, trained: Params) -> TrainState:
        return start_state(trained, self.optimizer, average=self.config.ema > 0)

    @functools.cached_property
    def _partial(self) -> bool:
        return bool(self.frozen_part(self.param_shardings))

    @functools.cached_property
    def step(self) -> StepFn:
        """``make_step``'s."""
        frozen_params = self.frozen_part(self.param_shardings)
        return make_step(
            self.step_loss,
            self.optimizer,
            ema=self.config.ema,
            seed=self.seed,
            mesh=self.mesh,
            shardings=self.shardings,
            frozen_shardings=(frozen_params, replicated(self.mesh)) if frozen_params else None,
            accumulate=self.accumulate,
            jit=self.jit,
        )

    def step_loss(self, trained: Params, frozen: Any, batch: Any, key: jax.Array, step: jax.Array):
        """The loss as the step has it: of the trained parameters, the others being in ``frozen``."""
        if not self._partial:
            return self.loss(trained, frozen, batch, key, step)
        rest, further = frozen
        return self.loss(union(jax.lax.stop_gradient(rest), trained), further, batch, key, step)

    def frozen_argument(self, rest: Params, further: Any) -> Any:
        """What the step takes as ``frozen``: the parameters that are not trained, if any, and what the loss takes."""
        return (rest, further) if self._partial else further

    def acting(self, state: TrainState, rest: Params) -> Params:
        """All parameters, as they act: the state's and those that are not trained."""
        return union(rest, state.acting)

    @property
    def trained_shapes(self) -> Params:
        """Of the parameters that are trained."""
        return subset(self.definition.shapes(), self.trained)

    def abstract_state(self) -> TrainState:
        """The state as ``jax.ShapeDtypeStruct`` with shardings; nothing is allocated."""
        shapes = jax.eval_shape(self._start, subset(self.definition.shapes(), self.trained))
        return jax.tree.map(placed, shapes, self.shardings)

    def abstract_params(self) -> Params:
        """All parameters as ``jax.ShapeDtypeStruct`` with shardings, each in the dtype that it is kept in."""
        shapes, shardings = paths(self.definition.shapes()), paths(self.param_shardings)
        like = {p: placed(x, shardings[p], None if self.trained(p) else self.frozen_dtype) for p, x in shapes.items()}
        return by_path(like)

    def abstract_frozen_part(self) -> Params:
        """Those of them that are not trained."""
        return self.frozen_part(self.abstract_params())
