"""`wam doctor`: what this machine has, what is missing, and the command that gets it."""

import argparse

from wam_jax import assets, console
from wam_jax.evaluation.report import environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> None:
    del args
    facts = environment()
    rows = [(name, value) for name, value in facts.items() if not isinstance(value, dict)]
    rows += [(name, version) for name, version in facts.get("versions", {}).items()]
    console.table("Environment", ("what", "found"), rows)
    weights = [(asset.name, asset.state, asset.licence, asset.install) for asset in assets.status()]
    console.table("Pretrained weights", ("asset", "state", "licence", "how to get it"), weights)
