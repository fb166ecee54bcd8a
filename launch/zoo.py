"""`wam zoo`: the named systems side by side; one of them as a table and as a picture of who sees whom."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wam_jax import console
from wam_jax.wam.show import coupling, draw_visibility, noise, parameters_by_expert, sampling, spec_rows
from wam_jax.wam.spec import Interface, Spec
from wam_jax.zoo import SYSTEMS, make_spec, published

# What the quickstart's data looks like, with the frames of causal models; for sizes that were not published.
TABLETOP = Interface(
    latent_shape=(8, 8, 8), cameras=2, frame_steps=(0, 4, 8, 12), action_horizon=12, action_size=4, proprio_size=7,
    text_width=384, text_tokens=16,
)  # fmt: skip
COLUMNS = ("system", "size", "streams", "coupling", "visibility", "noise", "sampling", "parameters")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="one system in full")
    show.add_argument("name", help="of a system")
    show.add_argument("--size", help="debug, small, or a published one (default: its first published one)")
    show.add_argument("--picture", type=Path, metavar="FILE", help="draw its visibility (png, svg or pdf)")


def run(args: argparse.Namespace) -> None:
    if args.action is None:
        console.table("The zoo", COLUMNS, [_row(name) for name in SYSTEMS])
        console.log("more of one: wam zoo show NAME --picture FILE")
        return
    spec, interface = sized(args.name, args.size)
    made = SYSTEMS[args.name]
    console.table(f"{args.name}: {made.description}", ("choice", ""), spec_rows(spec, interface))
    if args.picture:
        draw_visibility(spec, interface, args.picture)
        console.log(f"wrote {args.picture}")


def sized(name: str, size: str | None) -> tuple[Spec, Interface]:
    """A system at a size (its first published one by default), with data of a fitting shape."""
    interfaces = SYSTEMS[name].interfaces if name in SYSTEMS else {}
    size = size or next(iter(interfaces), "debug")
    return published(name, size) if size in interfaces else (make_spec(name, size), TABLETOP)


def changed(name: str, size: str, interface: Interface, changes: Mapping[str, Any]) -> tuple[Spec, Interface]:
    """A system at a size with changes: fields of ``Interface``, the rest options of ``make_spec``."""
    ours = {field.name for field in dataclasses.fields(Interface)}
    spec = make_spec(name, size, **{field: value for field, value in changes.items() if field not in ours})
    return spec, dataclasses.replace(interface, **{field: value for field, value in changes.items() if field in ours})


def _row(name: str) -> tuple[str, ...]:
    spec, interface = sized(name, None)
    size = next(iter(SYSTEMS[name].interfaces), "debug")
    counts = parameters_by_expert(spec, interface)
    total = sum(counts.values())
    parts = ", ".join(f"{expert} {_billions(count)}" for expert, count in counts.items() if len(counts) > 2)
    streams = ", ".join(s.name + ("" if s.role != "context" else " (given)") for s in spec.streams)
    modes = sampling(spec.modes[0]) + (f" (+{len(spec.modes) - 1} modes)" if len(spec.modes) > 1 else "")
    return (
        name, size, streams, coupling(spec), str(spec.visibility), noise(spec), modes,
        _billions(total) + (f" ({parts})" if parts else ""),
    )  # fmt: skip


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
