"""Normalisation statistics, from the low-dimensional columns alone: no image is ever decoded for them.

Actions are summarised in the space the model sees, that is after `transforms.accumulate`, over all windows, without
what lies past an episode's end. Several datasets are pooled, each window counting once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from data_pipelines.episodes import EpisodeStore
from data_pipelines.transforms import ActionCodec, Affine, accumulate
from data_pipelines.windows import WindowSpec, take, window_table

Kind = Literal["mean_std", "quantile", "none"]
_BLOCK_WINDOWS = 1 << 16
_QUANTILE_WINDOWS = 1 << 20  # beyond this many windows, quantiles are of an evenly spaced subset
_SMALLEST_SCALE = 1e-6  # a dimension that varies less is constant: its scale becomes 1


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """Of each of ``A`` dimensions: moments, 1% and 99% quantiles, range; and the number of values."""

    mean: Float[np.ndarray, "A"]
    std: Float[np.ndarray, "A"]
    q01: Float[np.ndarray, "A"]
    q99: Float[np.ndarray, "A"]
    min: Float[np.ndarray, "A"]
    max: Float[np.ndarray, "A"]
    count: int

    def affine(self, kind: Kind, leave: Sequence[int] = ()) -> Affine:
        """The normalisation of one kind.

        Args:
          kind: ``mean_std`` to mean 0 and standard deviation 1; ``quantile`` maps the 1% and 99% quantiles to -1 and
            1; ``none`` changes nothing.
          leave: dimensions to leave as they are, such as a binary gripper.

        Raises:
          ValueError: an unknown kind, or a dimension that is not there.
        """
        if kind == "mean_std":
            offset, scale = self.mean, self.std
        elif kind == "quantile":
            offset, scale = (self.q99 + self.q01) / 2, (self.q99 - self.q01) / 2
        elif kind == "none":
            return Affine.identity(len(self.mean))
        else:
            raise ValueError(f"unknown normalisation '{kind}' (has: mean_std, quantile, none)")
        if any(not 0 <= dim < len(offset) for dim in leave):
            raise ValueError(f"cannot leave dimensions {tuple(leave)} alone: there are {len(offset)}")
        offset, scale = offset.copy(), np.where(scale < _SMALLEST_SCALE, np.float32(1), scale)
        offset[list(leave)], scale[list(leave)] = 0, 1
        return Affine(offset, scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Summaries of one dataset or a mixture.

    Attributes:
      action: encoded actions.
      proprio: proprioception.
      cumulative: which action dimensions are encoded as displacements.
      largest_action: magnitude of the largest raw action.
    """

    action: Summary
    proprio: Summary
    cumulative: Bool[np.ndarray, "A"]
    largest_action: Float[np.ndarray, "A"]

    def action_codec(self, kind: Kind, leave: Sequence[int] = (), block: int | None = None) -> ActionCodec:
        """The codec that normalises actions as `Summary.affine` says; ``block`` as these statistics were made for."""
        return ActionCodec(self.cumulative, self.action.affine(kind, leave), self.largest_action, block)

    def proprio_affine(self, kind: Kind, leave: Sequence[int] = ()) -> Affine:
        """The normalisation of proprioception, as `Summary.affine` says."""
        return self.proprio.affine(kind, leave)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; exact."""
        summaries = {"action": self.action, "proprio": self.proprio}
        return {
            "cumulative": self.cumulative.tolist(),
            "largest_action": self.largest_action.tolist(),
            **{
                name: {key: value if key == "count" else value.tolist() for key, value in vars(summary).items()}
                for name, summary in summaries.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Statistics":
        """The inverse of `to_dict`."""
        summaries = {
            name: Summary(
                **{key: np.array(value, np.float32) for key, value in data[name].items() if key != "count"},
                count=data[name]["count"],
            )
            for name in ("action", "proprio")
        }
        return cls(
            cumulative=np.array(data["cumulative"], bool),
            largest_action=np.array(data["largest_action"], np.float32),
            **summaries,
        )


def compute_statistics(
    stores: Sequence[EpisodeStore], spec: WindowSpec, cumulative: Bool[np.ndarray, "A"] | None = None
) -> Statistics:
    """Summarises the actions and the proprioception of ``stores``, pooled.

    Args:
      stores: the datasets.
      spec: which columns, how long a chunk is, and where windows start.
      cumulative: the action dimensions that are encoded as displacements; None is none of them.

    Raises:
      KeyError: a store has no such column.
      ValueError: the stores' sizes differ.
    """
    actions = stack_columns(stores, spec.action_key)
    proprio = stack_columns(stores, spec.proprio_key)
    flags = np.zeros(actions.shape[1], bool) if cumulative is None else np.asarray(cumulative, bool)
    if flags.shape != actions.shape[1:]:
        raise ValueError(f"{len(flags)} cumulative flags for an action of {actions.shape[1]} dimensions")
    return Statistics(
        action=_summarise(_encoded_actions(stores, spec, actions, flags)),
        proprio=_summarise(_blocks(proprio)),
        cumulative=flags,
        largest_action=np.abs(actions).max(0),
    )


def stack_columns(stores: Sequence[EpisodeStore], key: str) -> Float[np.ndarray, "S A"]:
    """One column of several stores, end to end, as float32; ValueError where their sizes differ."""
    columns = [store.lowdim(key) for store in stores]
    columns = [column.reshape(len(column), -1).astype(np.float32) for column in columns]
    sizes = {store.name: column.shape[1] for store, column in zip(stores, columns, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"column '{key}' has different sizes: {sizes}; datasets of one mixture must agree")
    return np.concatenate(columns)


def _blocks(rows: Float[np.ndarray, "S A"]) -> Iterator[tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "M A"]]]:
    """Yields (all values, values for the quantiles) of a block of rows."""
    stride = -(-len(rows) // _QUANTILE_WINDOWS)
    for start in range(0, len(rows), _BLOCK_WINDOWS):
        block = rows[start : start + _BLOCK_WINDOWS]
        yield block, block[::stride]


def _encoded_actions(
    stores: Sequence[EpisodeStore],
    spec: WindowSpec,
    actions: Float[np.ndarray, "S A"],
    cumulative: Bool[np.ndarray, "A"],
) -> Iterator[tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "M A"]]]:
    table = window_table(stores, dataclasses.replace(spec, cameras=(), depth_cameras=()))
    stride = -(-len(table) // _QUANTILE_WINDOWS)
    for start in range(0, len(table), _BLOCK_WINDOWS):
        block = slice(start, start + _BLOCK_WINDOWS)
        rows, valid = take(table.row[block], table.last_row[block], np.arange(spec.action_horizon))
        encoded = accumulate(actions[rows], cumulative)
        yield encoded[valid], encoded[::stride][valid[::stride]]


def _summarise(blocks: Iterator[tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "M A"]]]) -> Summary:
    """Merges blocks exactly, in float64 (Chan, Golub and LeVeque 1979, "Updating formulae", eq. 2.1)."""
    count, mean, squares = 0, np.float64(0), np.float64(0)
    low, high, kept = [], [], []
    for values, subset in blocks:
        wide = values.astype(np.float64)
        difference = wide.mean(0) - mean
        total = count + len(wide)
        squares = squares + ((wide - wide.mean(0)) ** 2).sum(0) + difference**2 * count * len(wide) / total
        mean = mean + difference * len(wide) / total
        count = total
        low.append(values.min(0))
        high.append(values.max(0))
        kept.append(subset)
    quantiles = np.quantile(np.concatenate(kept), (0.01, 0.99), axis=0)
    columns = (mean, np.sqrt(squares / count), *quantiles, np.min(low, 0), np.max(high, 0))
    names = ("mean", "std", "q01", "q99", "min", "max")
    return Summary(**{n: np.asarray(c, np.float32) for n, c in zip(names, columns, strict=True)}, count=count)
