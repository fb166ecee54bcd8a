"""Goldens: what an original implementation gave, on a tiny configuration with random weights.

``NAME.npz`` holds arrays named ``weights/...`` (as the published checkpoint names them), ``inputs/...`` and
``outputs/...``. ``NAME.structure.json`` holds names and shapes of a full-size checkpoint, layers collapsed. Both are
written by the ``make_*.py`` beside them, which run in an environment of their own.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Tensors in memory, as ``wam_jax.weights.mapping.Tensors``."""

    arrays: Mapping[str, np.ndarray]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self.arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]


@dataclasses.dataclass(frozen=True)
class Golden:
    weights: Arrays
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load_golden(name: str) -> Golden:
    parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "inputs": {}, "outputs": {}}
    with np.load(FOLDER / f"{name}.npz") as file:
        for key in file.files:
            part, _, rest = key.partition("/")
            parts[part][rest] = file[key]
    return Golden(Arrays(parts["weights"]), parts["inputs"], parts["outputs"])


def save_golden(name: str, weights: Mapping, inputs: Mapping, outputs: Mapping) -> None:
    groups = {"weights": weights, "inputs": inputs, "outputs": outputs}
    arrays = {f"{group}/{key}": np.asarray(value) for group, tree in groups.items() for key, value in tree.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


def save_structure(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes names and shapes; tensors that differ in their first number only are one line with a list of numbers."""
    rows: dict[str, dict] = {}
    for tensor, shape in shapes.items():
        number = re.search(r"(?<=\.)\d+(?=\.)", tensor)
        pattern = tensor if number is None else f"{tensor[: number.start()]}{{}}{tensor[number.end() :]}"
        row = rows.setdefault(f"{pattern} {list(shape)}", {"name": pattern, "shape": list(shape), "numbers": []})
        row["numbers"] += [] if number is None else [int(number[0])]
    (FOLDER / f"{name}.structure.json").write_text(
        "[\n" + ",\n".join(json.dumps(row) for row in rows.values()) + "\n]\n"
    )


def load_structure(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a full-size checkpoint."""
    shapes = {}
    for row in json.loads((FOLDER / f"{name}.structure.json").read_text()):
        for number in row["numbers"] or [None]:
            shapes[row["name"] if number is None else row["name"].replace("{}", str(number), 1)] = tuple(row["shape"])
    return shapes


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, in units of the largest value wanted."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
