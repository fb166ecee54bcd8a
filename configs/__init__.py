"""Experiments: one ``get_config()`` a file."""
