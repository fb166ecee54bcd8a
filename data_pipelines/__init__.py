"""Robot episodes, from the files they came in to ``wam_jax.types.Batch``: nothing converted, no TensorFlow."""
