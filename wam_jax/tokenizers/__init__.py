"""Tokenizers: pixels to latents and back."""
