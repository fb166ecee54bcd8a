"""How to compile a program that steps MJX."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# Two precautions against XLA's CPU backend; other platforms ignore the options.
# - Its newer code generator recomputes a kinematic chain joint by joint: a step of the arm took a thousand times longer
#   (jax-ml/jax#33761, google-deepmind/mujoco#2957; gone, with its option, in jax 0.12).
# - One thread for Eigen's matrix products: batched programs on two cores have been seen to wait for ever with every
#   thread idle. The cause that was found is mended in physics.py; this costs little and narrows what is left.
COMPILER_OPTIONS: dict[str, bool] = {"xla_cpu_multi_thread_eigen": False}
if jax.__version_info__ < (0, 12):
    COMPILER_OPTIONS["xla_cpu_use_fusion_emitters"] = False


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """``jax.jit`` with ``COMPILER_OPTIONS``: use it for the outermost function around resets, steps and rollouts.

    Args:
      options: passed on to ``jax.jit``.

    Raises:
      ValueError: (by jax, when called) inside another ``jax.jit``; options belong to the outermost.
    """
    return functools.wraps(function)(jax.jit(function, compiler_options=COMPILER_OPTIONS, **options))
