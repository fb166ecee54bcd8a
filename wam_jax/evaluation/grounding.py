"""What actions look at, and what they depend on: attention and interventions against masks (AGRA, arXiv 2606.12217).

For any system whose actions attend to video tokens. Positions are those of a frame's tokens, all cameras together, as
``Lens`` has them; a mask says which of them show the hand, the named object or the goal. Interventions change what is
read of some positions, in every frame and layer, and ask how far the actions move (L2 of the normalised chunk, the same
noise). The matched sensitivity ratio compares positions inside the mask with equally many of the background.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wam_jax import console
from wam_jax.wam.lens import Lens

KINDS = ("zero", "mean", "shuffle", "swap")
_LEAST_COVERAGE = 0.02  # of a token's pixels, to be inside a mask
_DRAWS = 4  # of the positions that an intervention changes
_SMALL = 1e-5  # of the actions' own size: moved by less, they were not moved

Act = Callable[[Lens], tuple[Float[Array, "N K A"], Float[Array, "N S L H n"] | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How far actions move when what is read of positions inside the mask is changed, and outside.

    Attributes:
      inside, outside: of each scene, a mean over draws of the positions.
      scale: of the actions themselves, root mean square.
    """

    inside: Float[np.ndarray, "N"]
    outside: Float[np.ndarray, "N"]
    scale: float

    @property
    def moved(self) -> bool:
        """Whether the actions moved at all, beyond rounding."""
        return max(self.inside.mean(), self.outside.mean()) > _SMALL * self.scale

    @property
    def ratio(self) -> float:
        """Mean inside over mean outside; NaN where nothing moved."""
        return float(self.inside.mean() / max(self.outside.mean(), 1e-12)) if self.moved else float("nan")

    def interval(self, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95% of ``ratio``, by a bootstrap over scenes."""
        if not self.moved:
            return float("nan"), float("nan")
        rows = np.random.default_rng(seed).integers(len(self.inside), size=(draws, len(self.inside)))
        ratios = self.inside[rows].mean(1) / np.maximum(self.outside[rows].mean(1), 1e-12)
        low, high = np.quantile(ratios, [0.025, 0.975])
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio if self.moved else None,
            "ci95": list(self.interval()) if self.moved else None,
            "inside": float(self.inside.mean()),
            "outside": float(self.outside.mean()),
            "n": len(self.inside),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding:
    """What was found on one task.

    Attributes:
      parts: names of the masks; the last, "all", is their union.
      area: share of the positions that each part covers.
      in_mask: attention in each part over attention to video at all, by sampling step, layer and head; None: actions
        attend to no video token.
      centroid_error: distance between the centres of attention and of the union mask, in sides of the picture.
      to_video: share of all attention that goes to video.
      sensitivity: by kind of intervention.
    """

    parts: tuple[str, ...]
    area: Float[np.ndarray, "M"]
    in_mask: Float[np.ndarray, "M S L H"] | None
    centroid_error: Float[np.ndarray, "S L H"] | None
    to_video: float
    sensitivity: dict[str, Sensitivity]

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``: attention by layer, a mean over steps and heads, beside the area of the mask."""
        found: dict[str, Any] = {
            "area": dict(zip(self.parts, map(float, self.area), strict=True)),
            "attention_to_video": self.to_video,
            "sensitivity": {kind: result.summary() for kind, result in self.sensitivity.items()},
        }
        if self.in_mask is not None and self.centroid_error is not None:
            by_layer = self.in_mask.mean((1, 3))
            found["attention_in_mask"] = {
                part: None if np.isnan(row).any() else row.tolist()  # a part that no scene shows
                for part, row in zip(self.parts, by_layer, strict=True)
            }
            found["attention_in_mask_best_head"] = float(self.in_mask[-1].mean(0).max())
            found["centroid_error"] = self.centroid_error.mean((0, 2)).tolist()
        return found


def mean_grounding(tasks: Sequence[Grounding]) -> dict[str, float]:
    """The figures that a study compares, means over tasks."""
    found: dict[str, list[float]] = {}
    for task in tasks:
        for kind, result in task.sensitivity.items():
            if result.moved:
                found.setdefault(f"sensitivity_{kind}", []).append(result.ratio)
        if task.in_mask is not None and task.centroid_error is not None:
            found.setdefault("attention_in_mask", []).append(float(np.nanmean(task.in_mask[-1])))
            found.setdefault("centroid_error", []).append(float(np.nanmean(task.centroid_error)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def coverage(masks: Bool[np.ndarray, "N M V H W"], grid: tuple[int, int]) -> Float[np.ndarray, "N M n"]:
    """Share of each token's pixels that a mask covers; tokens by camera, row and column.

    Raises:
      ValueError: if the pictures do not divide into the grid.
    """
    *front, height, width = masks.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(f"pictures of {height} x {width} do not divide into {rows} x {columns} tokens")
    cells = masks.reshape(*front, rows, height // rows, columns, width // columns)
    return cells.mean((-3, -1)).reshape(*front[:2], -1)


def attention_in_mask(
    attention: Float[np.ndarray, "N ... n"], inside: Bool[np.ndarray, "N n"]
) -> Float[np.ndarray, "N ..."]:
    """Share of the attention to these positions that goes to those inside."""
    shape = (len(inside), *[1] * (attention.ndim - 2), -1)
    return (attention * inside.reshape(shape)).sum(-1) / np.maximum(attention.sum(-1), 1e-12)


def centroid_error(
    attention: Float[np.ndarray, "N ... n"], share: Float[np.ndarray, "N n"], grid: tuple[int, int]
) -> Float[np.ndarray, "N ..."]:
    """Distance between the centres of attention and of a mask, in sides of the picture; a mean over the cameras that
    see the mask. NaN for a scene in which none does."""
    rows, columns = grid
    places = np.stack(np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij"), -1)
    places = places.reshape(-1, 2)

    def centres(weights: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... V 2"]:
        by_camera = weights.reshape(*weights.shape[:-1], -1, rows * columns)
        return by_camera @ places / np.maximum(by_camera.sum(-1, keepdims=True), 1e-12)

    between = (1,) * (attention.ndim - 2)
    wanted = centres(share).reshape(len(share), *between, -1, 2)
    distance = np.linalg.norm(centres(attention) - wanted, axis=-1)
    seen = (share.reshape(len(share), -1, rows * columns).sum(-1) > 0).reshape(len(share), *between, -1)
    with np.errstate(invalid="ignore"):
        return np.where(seen, distance, 0).sum(-1) / seen.sum(-1)


def intervention(
    kind: str, chosen: Bool[np.ndarray, "N n"], other: Bool[np.ndarray, "N n"], rng: np.random.Generator
) -> Float[np.ndarray, "N n n"]:
    """The ``Lens.change`` of positions ``chosen``.

    "zero": nothing is read there; "mean": the mean of all positions; "shuffle": the chosen ones in another order;
    "swap": what as many of ``other`` hold.

    Raises:
      ValueError: for another kind.
    """
    count = chosen.shape[1]
    change = np.broadcast_to(np.eye(count, dtype=np.float32), (*chosen.shape, count)).copy()
    for matrix, row, rest in zip(change, chosen, other, strict=True):
        places = np.flatnonzero(row)
        if kind == "zero":
            matrix[places] = 0
        elif kind == "mean":
            matrix[places] = 1 / count
        elif kind == "shuffle":
            matrix[places] = np.eye(count)[rng.permutation(places)]
        elif kind == "swap":
            theirs = rng.permutation(np.flatnonzero(rest))[: len(places)]
            mine = rng.permutation(places)[: len(theirs)]
            matrix[mine] = np.eye(count)[theirs]
        else:
            raise ValueError(f"intervention {kind!r} is unknown (has: {', '.join(KINDS)})")
    return change


def matched(
    inside: Bool[np.ndarray, "N n"], rng: np.random.Generator, spare: bool = False
) -> tuple[Bool[np.ndarray, "N n"], Bool[np.ndarray, "N n"]]:
    """As many random positions inside each mask as outside it: as many as there are on both sides.

    ``spare``: as many again are left outside, for those chosen there to be swapped for.
    """
    chosen = np.zeros((2, *inside.shape), bool)
    for number, row in enumerate(inside):
        sides = np.flatnonzero(row), np.flatnonzero(~row)
        count = min(len(sides[0]), len(sides[1]) // (2 if spare else 1))
        for side, places in enumerate(sides):
            chosen[side, number, rng.permutation(places)[:count]] = True
    return chosen[0], chosen[1]


def diagnose(
    act: Act,
    parts: Sequence[str],
    masks: Bool[np.ndarray, "N M V H W"],
    grid: tuple[int, int],
    seed: int = 0,
    label: str = "look into the model",
) -> Grounding:
    """Attention and interventions of a policy on some scenes.

    Args:
      act: the policy on these scenes, always with the same noise: a lens in, actions and attention out.
      parts, masks: where what is seen.
      grid: rows and columns of a camera's tokens.
      seed: of the positions that interventions choose.
      label: beside the progress bar.
    """
    shares = coverage(np.concatenate([masks, masks.any(1, keepdims=True)], 1), grid)
    inside = shares[:, -1] > _LEAST_COVERAGE
    count = inside.shape[1]
    actions, attention = act(Lens(attention=True, frame_tokens=count))
    plain = np.asarray(actions)
    scale = float(np.sqrt((plain**2).mean()))
    # A scene without a mask, or with nothing else, has no two sides to compare.
    sided = inside.any(1) & ~inside.all(1)
    rng = np.random.default_rng(seed)
    todo = [(kind, draw) for kind in KINDS for draw in range(_DRAWS)]
    moved: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for kind, _ in console.progress(todo, label):
        mine, theirs = matched(inside, rng, spare=kind == "swap")
        # Background is swapped for other background, so that nothing of the mask comes into play.
        changes = intervention(kind, mine, ~inside, rng), intervention(kind, theirs, ~inside & ~theirs, rng)
        moved[kind].append(np.stack([_distance(act(Lens(change=jnp.asarray(change)))[0], plain) for change in changes]))
    sensitivity = {
        kind: Sensitivity(inside=found[0][sided], outside=found[1][sided], scale=scale)
        for kind, found in ((kind, np.mean(rows, 0)) for kind, rows in moved.items())
    }
    in_mask = error = None
    share_of_video = 0.0
    if attention is not None:
        seen = np.asarray(attention)
        share_of_video = float(seen.sum(-1).mean())
        part_inside = np.moveaxis(shares > _LEAST_COVERAGE, 1, 0)
        shown = [attention_in_mask(seen, row)[row.any(1)] for row in part_inside]
        nowhere = np.full(seen.shape[1:-1], np.nan)
        in_mask = np.stack([found.mean(0) if len(found) else nowhere for found in shown])
        error = centroid_error(seen, shares[:, -1], grid)[inside.any(1)].mean(0)
    return Grounding(
        parts=(*parts, "all"),
        area=(shares > _LEAST_COVERAGE).mean((0, 2)),
        in_mask=in_mask,
        centroid_error=error,
        to_video=share_of_video,
        sensitivity=sensitivity,
    )


def heat(act: Act, count: int, scenes: int) -> Float[np.ndarray, "N n"]:
    """How far actions move when one position reads as nothing, position by position."""
    plain = np.asarray(act(Lens())[0])
    found = []
    for place in range(count):
        alone = np.zeros((scenes, count), bool)
        alone[:, place] = True
        change = jnp.asarray(intervention("zero", alone, ~alone, np.random.default_rng(0)))
        found.append(_distance(act(Lens(change=change))[0], plain))
    return np.stack(found, 1)


def _distance(actions: Float[Array, "N K A"], plain: Float[np.ndarray, "N K A"]) -> Float[np.ndarray, "N"]:
    return np.linalg.norm((np.asarray(actions) - plain).reshape(len(plain), -1), axis=1)


def acting(
    look: Callable[[Any, Any, jax.Array, Lens], tuple[Array, Array | None]], params: Any, observation: Any, seed: int
) -> Act:
    """A policy's ``look`` at some observations, compiled once for each kind of lens."""
    run = jax.jit(look)
    return lambda lens: run(params, observation, jax.random.key(seed), lens)
