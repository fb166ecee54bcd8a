"""What every command leaves behind: ``report.html`` for a person, ``summary.json`` for a program.

A report is one self-contained page: images are inside it, it runs no script and asks nothing of the network, so it can
be mailed, archived, and opened on a phone.
"""

import base64
import dataclasses
import functools
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
import PIL.Image

from wam_jax.evaluation.statistics import Difference, Rate

REPORT = "report.html"
SUMMARY = "summary.json"
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "mujoco", "mujoco-mjx")
_REPOSITORY = Path(__file__).resolve().parents[2]
_MIME_TYPES = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}


@dataclasses.dataclass(frozen=True)
class _Section:
    """One part of the page: ``kind`` chooses the template block that shows ``content``."""

    kind: str
    heading: str
    content: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image inside the page: its data URI and its size in pixels."""

    source: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Takes a whole row of a grid (films side by side)."""
        return self.width > 1.6 * self.height

    @property
    def small(self) -> bool:
        """Shown larger than it is: keep its pixels sharp. Text in larger images is better smoothed."""
        return self.width < 160


class Report:
    """A page in the making; sections show in the order in which they were added."""

    def __init__(self, title: str, subtitle: str = ""):
        self._title = title
        self._subtitle = subtitle
        self._sections: list[_Section] = []

    def add_text(self, heading: str, text: str) -> None:
        """Paragraphs, divided by blank lines."""
        self._add("text", heading, paragraphs=[part.strip() for part in text.split("\n\n") if part.strip()])

    def add_figures(self, facts: Mapping[str, object], heading: str = "") -> None:
        """The figures a reader looks for first, large: name -> value."""
        self._add("figures", heading, facts=[(name, *_headline(value)) for name, value in facts.items()])

    def add_table(self, heading: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; columns of numbers, rates or differences are set right.

        Raises:
          ValueError: a row has not one cell a column.
        """
        cells = [list(row) for row in rows]
        for row in cells:
            if len(row) != len(header):
                raise ValueError(f"table {heading!r}: row {row} has {len(row)} cells for {len(header)} columns")
        numeric = [_is_numeric([row[column] for row in cells]) for column in range(len(header))]
        body = [[_cell(value) for value in row] for row in cells]
        self._add("table", heading, header=list(header), numeric=numeric, rows=body)

    def add_image(self, heading: str, image: bytes, caption: str = "") -> None:
        """One PNG or WebP, as wide as the page allows."""
        self._add("image", heading, image=_inline(heading, image), caption=caption)

    def add_films(self, heading: str, films: Sequence[tuple[bytes, str]]) -> None:
        """Films (or pictures) with their captions, in a grid."""
        self._add("films", heading, films=[(_inline(heading, film), caption) for film, caption in films])

    def write(self, directory: str | os.PathLike) -> Path:
        """Writes ``report.html`` into ``directory`` (made if absent), whole or not at all; returns its path."""
        page = _template().render(
            title=self._title,
            subtitle=self._subtitle,
            sections=self._sections,
            date=time.strftime("%Y-%m-%d %H:%M %Z"),
            environment=_one_line(environment()),
        )
        return _write_atomically(Path(directory) / REPORT, page)

    def _add(self, kind: str, heading: str, **content: Any) -> None:
        self._sections.append(_Section(kind, heading, content))


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> Path:
    """Writes ``summary`` as sorted JSON together with the ``environment`` it ran in, whole or not at all.

    Args:
      path: the file, or a directory (then ``summary.json`` in it).
      summary: nested mappings and sequences of numbers, strings, arrays, ``Rate`` and ``Difference``.

    Raises:
      ValueError: a number is NaN or infinite; the message names its key.
      TypeError: a value has no form in JSON; the message names its key.
    """
    plain = _plain({**summary, "environment": environment()}, key="")
    return _write_atomically(_summary_path(path), json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """What ``write_summary`` wrote, with its ``environment``.

    Raises:
      FileNotFoundError: there is none.
    """
    return json.loads(_summary_path(path).read_text())


def environment() -> dict[str, Any]:
    """What a result depends on beside its configuration: libraries, devices, machine, and our own commit."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "device_kind": devices[0].device_kind,
        "device_platform": devices[0].platform,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "git_commit": _git_commit(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
    }


def _one_line(facts: Mapping[str, Any]) -> str:
    """The environment as a page's last line."""
    devices = f"{facts['device_count']} × {facts['device_kind']}"
    libraries = ", ".join(f"{name} {facts['versions'][name]}" for name in ("jax", "flax") if name in facts["versions"])
    commit = f"commit {facts['git_commit']}" if facts["git_commit"] else "no commit"
    cores = f"{facts['cpu_count']} CPU cores"
    return " · ".join((devices, cores, facts["platform"], f"python {facts['python']}", libraries, commit))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git_commit() -> str | None:
    """Our commit, ``-dirty`` if the tree differs; None where we are installed rather than checked out."""
    if not (_REPOSITORY / ".git").exists():  # git would answer for whatever repository surrounds site-packages
        return None
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any, key: str) -> Any:
    """``value`` in JSON's own types. ``key`` is its dotted path, for messages."""
    if isinstance(value, Rate | Difference):
        return _plain(value.as_dict(), key)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist(), key)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"summary key {key!r} is {value}; leave it out, or write None for 'not measured'")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"summary key {key!r} is a {type(value).__name__}; give numbers, strings, arrays or mappings")


def _summary_path(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / SUMMARY


def _write_atomically(path: Path, text: str) -> Path:
    """A reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _inline(heading: str, image: bytes) -> _Image:
    mime_type = _MIME_TYPES.get(image[:4])
    if mime_type is None:
        raise ValueError(
            f"section {heading!r}: image starts with {image[:4]!r}; give PNG or WebP bytes (media.picture)"
        )
    width, height = PIL.Image.open(io.BytesIO(image)).size
    return _Image(f"data:{mime_type};base64,{base64.b64encode(image).decode()}", width, height)


def _is_numeric(column: Sequence[object]) -> bool:
    """Whether a column holds numbers only, some of which may be missing."""
    values = [value for value in column if value is not None]
    return bool(values) and all(_is_number(value) for value in values)


def _is_number(value: object) -> bool:
    if isinstance(value, str):  # a number that the caller has formatted
        return value.replace(",", "").lstrip("+-").replace(".", "", 1).isdecimal()
    return isinstance(value, int | float | np.number | Rate | Difference) and not isinstance(value, bool)


def _cell(value: object) -> str:
    """A value as a person reads it: four significant digits, thousands set apart."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(float(value)) >= 10_000 else f"{value:.4g}"
    return "–" if value is None else str(value)


def _headline(value: object) -> tuple[str, str]:
    """A value to show large, and what belongs beside it in small: a rate's interval."""
    if isinstance(value, Rate | Difference):
        estimate, _, interval = str(value).partition(" ")
        return estimate, interval
    return _cell(value), ""


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("wam_jax.evaluation", ".")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(REPORT)
