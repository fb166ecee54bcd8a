"""Parts of a parameter tree, by the paths of its arrays: what is trained and what is frozen."""

import re
from collections.abc import Callable, Sequence

from wam_jax.nn.module import Params, by_path, paths

Select = Callable[[str], bool]  # the path of an array, as "trunk/blocks/video/ffn/up/kernel", is in the part


def everything(path: str) -> bool:
    """The part that is the whole."""
    return True


def matching(patterns: Sequence[str]) -> Select:
    """The paths that one of the regular expressions matches as a whole.

    Raises:
      ValueError: for an expression that is none.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ValueError(f"{patterns} holds no regular expression: {error}") from None
    return lambda path: any(pattern.fullmatch(path) for pattern in compiled)


def subset(params: Params, select: Select) -> Params:
    """The part of the tree whose paths are selected."""
    return by_path({path: value for path, value in paths(params).items() if select(path)})


def union(first: Params, second: Params) -> Params:
    """Two parts as one tree."""
    return by_path(paths(first) | paths(second))
