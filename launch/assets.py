"""`wam assets`: which pretrained weights are here, intact or not, and the one command that gets each."""

import argparse
import dataclasses
import json

from wam_jax import assets, console

COLUMNS = ("asset", "what it is", "state", "size", "licence", "how to get it")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="of assets (default: all)")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints the states; nothing is downloaded.

    Raises:
      AssetCorrupt: after the table, where an asset is corrupt.
    """
    found = assets.status(args.names, args.verify)
    if args.json:
        print(json.dumps([dataclasses.asdict(status) for status in found], indent=2))
    else:
        console.table("Pretrained weights", COLUMNS, [_row(status) for status in found])
        console.log(
            "not verified: here, but no sha256 of it is registered; "
            "your own copies: $WAM_ASSETS/NAME with the files as their source has them"
        )
        for status in found if args.names else ():
            if status.state == "missing":
                print(status.install)  # again, in one line
    if corrupt := [status for status in found if status.state == "corrupt"]:
        raise assets.AssetCorrupt("; ".join(f"{bad.name} is corrupt ({bad.reason}): {bad.install}" for bad in corrupt))


def _row(status: assets.Status) -> tuple[str, ...]:
    state = f"{status.state}: {status.reason}" if status.reason else status.state
    return status.name, status.what, state, _size(status), status.licence, status.install


def _size(status: assets.Status) -> str:
    if status.size is None:
        return "?"
    return f"{status.size / 1e9:.2f} GB" if status.size >= 1e9 else f"{status.size / 1e6:.0f} MB"
