"""World Action Models in JAX: models that predict how a scene evolves together with the actions that make it so."""

__version__ = "0.1.0"
