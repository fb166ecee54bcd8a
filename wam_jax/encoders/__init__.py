"""Frozen foundation models that condition a WAM: definitions, and weights mapped from their public checkpoints."""
