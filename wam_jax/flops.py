"""How many floating-point operations a function takes, counted from its jaxpr: the same on every backend.

XLA's own ``cost_analysis()["flops"]`` counts the body of a loop once, so a trunk that is scanned over 30 layers looks
like one layer (tests/test_flops.py shows it). It also depends on what the backend fused.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition being two.

    Elementwise work, reductions and normalisation are not counted: beside the matrix multiplications of a transformer
    they are under a hundredth, and they do not run on the matrix units.

    Attributes:
      matmul: in ``dot_general``, 2 * batch * m * n * k.
      convolution: in ``conv_general_dilated``, 2 * outputs * (kernel positions * input channels of a group); products
        with padding and with the zeros of a dilation count, too.
      unbounded_loops: ``while`` loops, whose number of turns the jaxpr does not tell; each counts as one turn.
    """

    matmul: int = 0
    convolution: int = 0
    unbounded_loops: int = 0

    @property
    def total(self) -> int:
        return self.matmul + self.convolution

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.matmul + other.matmul,
            self.convolution + other.convolution,
            self.unbounded_loops + other.unbounded_loops,
        )

    def times(self, turns: int) -> "Flops":
        """The same work, done ``turns`` times by the same loops."""
        return Flops(self.matmul * turns, self.convolution * turns, self.unbounded_loops)


def count_flops(function: Callable[..., Any], *abstract_args: Any) -> Flops:
    """Operations of one call, over all devices together; nothing is computed, compiled or allocated.

    What is recomputed in a backward pass (``jax.checkpoint``) counts, because it is done. The operands of an
    automatically partitioned program count once however they are sharded: work that the partitioner would repeat on
    several devices is not seen.

    Args:
      function: anything that ``jax.make_jaxpr`` can trace, a jitted function included (one with compiler options is
        not: take ``jaxpr_flops`` of its trace).
      abstract_args: its arguments, arrays or ``jax.ShapeDtypeStruct``.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*abstract_args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> Flops:
    """As ``count_flops``, of what was traced already."""
    return sum((_equation_flops(equation) for equation in jaxpr.eqns), Flops())


def _equation_flops(equation: JaxprEqn) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Flops(matmul=_matmul_flops(equation))
    if name == "conv_general_dilated":
        return Flops(convolution=_convolution_flops(equation))
    parts = [jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if name == "cond":
        return max(parts, key=lambda part: part.total)
    work = sum(parts, Flops())
    if name == "while":
        return work + Flops(unbounded_loops=1) if work.total else work
    return work.times(_turns(name, params))


def _turns(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs the jaxpr inside it, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # shapes inside are one device's, along the axes that are manual
        manual = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
        return math.prod(params["mesh"].shape[axis] for axis in manual)
    if name == "pallas_call":  # the kernel is the work of one cell of its grid
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    return 1  # pjit, remat, custom_jvp_call, custom_vjp_call, …


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _matmul_flops(equation: JaxprEqn) -> int:
    (left_contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in left_contracted)


def _convolution_flops(equation: JaxprEqn) -> int:
    kernel = _shape(equation.invars[1])
    output_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * _size(equation.outvars[0]) * (math.prod(kernel) // output_channels)


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
