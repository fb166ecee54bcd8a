"""`wam bench WHAT`: measurements as ratios in one run or as counts, never as tests."""

import argparse
import importlib
from collections.abc import Sequence

BENCHES = {
    "zoo": "every system: 200 training steps, loss, sampling, a closed loop in MJX, and what each costs",
    "train": "one system's train step: time, achieved FLOP/s, and where the time goes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    for name, text in BENCHES.items():
        child = benches.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f"launch.bench.{name}").add_arguments(child)


def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    importlib.import_module(f"launch.bench.{args.bench}").run(args, list(overrides))
