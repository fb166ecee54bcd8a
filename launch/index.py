"""`wam index`: scans RLDS folders, so that training can read any frame without reading its episode.

LeRobot folders need none: their files say where everything is.
"""

import argparse
import time
from pathlib import Path

from data_pipelines.features import read_dataset_info
from data_pipelines.index import build_index
from wam_jax import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="RLDS folder (with features.json)")
    parser.add_argument("--split", action="append", help="default: every split of the dataset")
    parser.add_argument("--out", help="folder for the index (default: DIR/.wam_index, or the cache if not writable)")


def run(args: argparse.Namespace) -> None:
    rows = []
    for directory in args.directories:
        info = read_dataset_info(directory)
        for split in args.split or info.shards:
            began = time.monotonic()
            report = build_index(directory, split, args.out).report
            seconds = f"{time.monotonic() - began:.1f}"
            rows.append((info.name, split, report.episodes, report.steps, len(report.skipped), seconds))
    console.table("Indexed", ("dataset", "split", "episodes", "steps", "records skipped", "seconds"), rows)
