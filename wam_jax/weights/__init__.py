"""Published checkpoints: restricted readers of their files, and maps from their tensors to our parameter trees."""
