"""Layers: parameter declarations (flax.nnx) and the pure functions that use them."""
