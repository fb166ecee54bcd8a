"""Named systems: each is a table over the same trunk. `wam zoo` prints them side by side.

A new one is a new file here: a function ``(size, **options) -> Spec`` under ``@system``.
"""

import importlib
import pkgutil

from wam_jax.zoo.registry import SYSTEMS, System, make_spec, published

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["SYSTEMS", "System", "make_spec", "published"]
