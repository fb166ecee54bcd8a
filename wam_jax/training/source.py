"""Where a training starts from: a run or an export (``run.Run``), or a Wan transformer (``weights.wan``)."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from wam_jax import console
from wam_jax.nn.module import Definition, Params, paths
from wam_jax.training.partition import subset, union
from wam_jax.training.trainer import Trainer

Shapes = Mapping[str, tuple[int, ...]]


class ParamSource(Protocol):
    """Parameters by path: their shapes at once, then those that are wanted, where they are wanted."""

    def shapes(self) -> Shapes: ...

    def load(self, like: Params) -> Params: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Parameters that a training starts from.

    Attributes:
      params: all of them, on their devices.
      loaded: paths that came from the source.
      fresh: paths that are newly initialised: the source has none, or one of another shape.
      unused: paths of the source that went nowhere.
    """

    params: Params
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def log(self) -> None:
        """Says what was loaded and what was not."""
        console.log(f"started from {len(self.loaded)} arrays; {len(self.fresh)} new, {len(self.unused)} left out")
        for what, names in (("new", self.fresh), ("left out", self.unused)):
            for name in names:
                console.log(f"  {what}: {name}")


def start_from(source: ParamSource, trainer: Trainer) -> Start:
    """Fills the model from a source; what it lacks, or has in another shape, starts fresh.

    Raises:
      ValueError: if nothing fits: the source is of another model.
    """
    wanted, there = paths(trainer.definition.shapes()), source.shapes()
    fresh = set(fresh_paths(trainer.definition, there))
    loaded = [path for path in wanted if path not in fresh]
    if not loaded:
        raise ValueError(
            f"config.init has none of the model's {len(wanted)} arrays (it has {', '.join(sorted(there)[:3])}, ...); "
            "name a checkpoint of the same system in config.init"
        )
    params = source.load(subset(trainer.abstract_params(), lambda path: path not in fresh))
    if fresh:
        params = union(params, trainer.init_params(lambda path: path in fresh))
    return Start(
        params=params,
        loaded=tuple(loaded),
        fresh=tuple(sorted(fresh)),
        unused=tuple(sorted((there.keys() - wanted.keys()) | (there.keys() & fresh))),
    )


def fresh_paths(definition: Definition, there: Shapes) -> list[str]:
    """The parameters that a source lacks or has in another shape."""
    return [path for path, leaf in paths(definition.shapes()).items() if there.get(path) != tuple(leaf.shape)]
