"""Finds a named system, at a named size."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wam_jax.wam.spec import Interface, Spec
from wam_jax.zoo.sizes import DEBUG, SMALL, Size


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the zoo.

    Attributes:
      make: ``make(size, **options) -> Spec``; its docstring names the paper, what is kept and what differs.
      sizes: by name; "debug" trains on the quickstart's data on a CPU, "small" on a GPU.
      interfaces: what the data looks like at each published size.
    """

    make: Callable[..., Spec]
    sizes: Mapping[str, Size]
    interfaces: Mapping[str, Interface]

    @property
    def description(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.make) or "").splitlines()[0]


SYSTEMS: dict[str, System] = {}


def system(published: Mapping[str, Size], interfaces: Mapping[str, Interface]):
    """Decorator: registers a function ``(size, **options) -> Spec`` under its name, at its published sizes and ours."""
    sizes = {"debug": DEBUG, "small": SMALL, **published}

    def register(make: Callable[..., Spec]) -> Callable[..., Spec]:
        SYSTEMS[make.__name__] = System(make, sizes, interfaces)
        return make

    return register


def make_spec(name: str, size: str = "debug", **changes: Any) -> Spec:
    """The named spec.

    Args:
      name: of a system.
      size: one of its sizes.
      changes: options of the system's function, fields of ``Size``, or fields of ``Spec``.

    Raises:
      ValueError: for an unknown name, size or change; says what there is.
    """
    found = _get(SYSTEMS, name, "model", "the zoo", "model.name")
    numbers = _get(found.sizes, size, "size", f"the sizes of {name}", "model.size")
    options = set(inspect.signature(found.make).parameters) - {"size"}
    sized, fields = ({f.name for f in dataclasses.fields(kind)} for kind in (Size, Spec))
    if unknown := sorted(set(changes) - options - sized - fields):
        known = sorted(options | sized | fields)
        raise ValueError(f"model {name!r} has no {unknown[0]!r}{_near(unknown[0], known)} (has: {', '.join(known)})")
    numbers = dataclasses.replace(numbers, **{k: _frozen(v) for k, v in changes.items() if k in sized})
    spec = found.make(numbers, **{k: v for k, v in changes.items() if k in options})
    own = {k: _frozen(v) for k, v in changes.items() if k in fields - sized - options}
    return dataclasses.replace(spec, **own)


def published(name: str, size: str) -> tuple[Spec, Interface]:
    """A system at a published size, with data of about the shape it was published for.

    Raises:
      ValueError: if there is no such size.
    """
    found = _get(SYSTEMS, name, "model", "the zoo", "model.name")
    return make_spec(name, size), _get(found.interfaces, size, "size", f"the published sizes of {name}", "--size")


def _get(table: Mapping, name: str, what: str, where: str, field: str):
    if name not in table:
        hint = _near(name, table)
        raise ValueError(f"{what} {name!r} is not in {where}{hint} (has: {', '.join(sorted(table))}); set {field}")
    return table[name]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
