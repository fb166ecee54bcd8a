"""Improving a policy after its training, with what a world model expects (World2Act, arXiv 2603.10422)."""
