"""What actions look at, and what they depend on: attention and interventions against masks (AGRA, arXiv 2606.12217).

For any system whose actions attend to video tokens. Positions are those of a frame's tokens, all cameras together, as
``Lens`` has them; a mask says which of them show the hand, the named object or the goal. Interventions change what is
read of some positions, in every frame and layer, and ask how far the actions move (L2 of the normalised chunk, the same
noise). The matched sensitivity ratio compares positions inside the mask with equally many of the same camera's
background, changed together; token by token, they are changed one at a time. Masks are of now, so attention counts
where it goes to the present frame.
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
TOKEN_KINDS = ("zero", "mean", "swap")  # that single positions can be changed by
_LEAST_COVERAGE = 0.02  # of a token's pixels, to be inside a mask
_DRAWS = 4  # of the positions that an intervention changes
# What counts as rounding: this share of the actions' own norm, or so many times what a change of nothing moves them.
_SMALL, _ROUNDINGS = 1e-5, 3

Act = Callable[[Lens], tuple[Float[Array, "N K A"], Float[Array, "N S L H n"] | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How far actions move when what is read of positions inside the mask is changed, and outside.

    Attributes:
      inside, outside: of each scene that has both sides, a mean over draws of the positions.
      floor: moved by less than this, actions moved by rounding alone.
    """

    inside: Float[np.ndarray, "N"]
    outside: Float[np.ndarray, "N"]
    floor: float

    @property
    def moved(self) -> bool:
        """Whether the actions moved at all, beyond rounding."""
        return self.inside.size > 0 and bool(max(self.inside.mean(), self.outside.mean()) > self.floor)

    @property
    def ratio(self) -> float:
        """Mean inside over mean outside, which counts as the floor where it is less; NaN where nothing moved."""
        return float(self.inside.mean() / max(self.outside.mean(), self.floor)) if self.moved else float("nan")

    def interval(self, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95% of ``ratio``, by a bootstrap over scenes."""
        if not self.moved:
            return float("nan"), float("nan")
        rows = np.random.default_rng(seed).integers(len(self.inside), size=(draws, len(self.inside)))
        ratios = self.inside[rows].mean(1) / np.maximum(self.outside[rows].mean(1), self.floor)
        low, high = np.quantile(ratios, [0.025, 0.975])
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio if self.moved else None,
            "ci95": list(self.interval()) if self.moved else None,
            "inside": float(self.inside.mean()) if self.inside.size else None,
            "outside": float(self.outside.mean()) if self.outside.size else None,
            "n": len(self.inside),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding:
    """What was found on one task.

    Attributes:
      parts: names of the masks; the last, "all", is their union.
      area: share of the positions that each part covers, in scenes that show it, as ``in_mask`` is.
      in_mask: attention in each part over attention to the present frame at all, by sampling step, layer and head;
        None: actions do not attend to it. NaN of a part that no scene shows.
      centroid_error: distance between the centres of attention and of the union mask, in sides of the picture.
      to_video: share of all attention that goes to the present frame.
      sensitivity: by kind of intervention, such as "zero", and "zero, token by token" where that was asked for.
    """

    parts: tuple[str, ...]
    area: Float[np.ndarray, "M"]
    in_mask: Float[np.ndarray, "M S L H"] | None
    centroid_error: Float[np.ndarray, "S L H"] | None
    to_video: float
    sensitivity: dict[str, Sensitivity]

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``: attention by layer, a mean over steps and heads, beside the area of the mask; for the
        union mask also every step, layer and head. None of what no scene shows."""
        found: dict[str, Any] = {
            "area": dict(zip(self.parts, map(float, self.area), strict=True)),
            "attention_to_video": self.to_video,
            "sensitivity": {kind: result.summary() for kind, result in self.sensitivity.items()},
        }
        if self.in_mask is not None and self.centroid_error is not None:
            by_layer = zip(self.parts, self.in_mask.mean((1, 3)), strict=True)
            found["attention_in_mask"] = {part: None if np.isnan(row).any() else row.tolist() for part, row in by_layer}
            found["attention_in_mask_best_head"] = _listed(self.in_mask[-1].mean(0).max())
            found["attention_in_mask_by_step_layer_head"] = _listed(self.in_mask[-1])
            found["centroid_error"] = _listed(self.centroid_error.mean((0, 2)))
            found["centroid_error_by_step_layer_head"] = _listed(self.centroid_error)
        return found


def _listed(values: Any) -> Any:
    """Nested lists, None for NaN."""
    return np.where(np.isnan(values), np.array(None), values).tolist()


def mean_grounding(tasks: Sequence[Grounding]) -> dict[str, float]:
    """The figures that a study compares, means over tasks; of ratios the geometric mean.

    Only those that every task has: models are to be compared by means over the same tasks.
    """
    by_task = [_figures(task) for task in tasks]
    shared = [name for name in dict.fromkeys(n for row in by_task for n in row) if all(name in row for row in by_task)]
    means = {}
    for name in shared:
        values = np.array([row[name] for row in by_task])
        with np.errstate(divide="ignore"):  # a ratio of 0 makes a mean of 0
            means[name] = float(np.exp(np.log(values).mean()) if name.startswith("sensitivity") else values.mean())
    return means


def _figures(task: Grounding) -> dict[str, float]:
    """Of one task, as far as there are any."""
    found = {f"sensitivity_{kind}": result.ratio for kind, result in task.sensitivity.items()}
    if task.in_mask is not None and task.centroid_error is not None:
        found["attention_in_mask"] = float(task.in_mask[-1].mean())
        found["mask_area"] = float(task.area[-1])  # what attention spread evenly would have in it
        found["centroid_error"] = float(task.centroid_error.mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}


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
    kind: str,
    chosen: Bool[np.ndarray, "N n"],
    other: Bool[np.ndarray, "N n"],
    rng: np.random.Generator,
    cameras: int = 1,
) -> Float[np.ndarray, "N n n"]:
    """The ``Lens.change`` of positions ``chosen``.

    "zero": nothing is read there; "mean": the mean of all positions; "shuffle": the chosen ones in another order;
    "swap": what as many of ``other`` of the same camera hold.

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
            for camera in np.split(np.arange(count), cameras):
                mine, theirs = (rng.permutation(camera[side[camera]]) for side in (row, rest))
                pairs = min(len(mine), len(theirs))
                matrix[mine[:pairs]] = np.eye(count)[theirs[:pairs]]
        else:
            raise ValueError(f"intervention {kind!r} is unknown (has: {', '.join(KINDS)})")
    return change


def matched(
    inside: Bool[np.ndarray, "N n"], rng: np.random.Generator, cameras: int = 1, spare: bool = False
) -> tuple[Bool[np.ndarray, "N n"], Bool[np.ndarray, "N n"]]:
    """Of each camera, as many random positions inside a mask as outside it: as many as there are on both sides.

    ``spare``: as many again are left outside, for those chosen there to be swapped for.
    """
    chosen = np.zeros((2, *inside.shape), bool)
    for number, row in enumerate(inside):
        for camera in np.split(np.arange(row.size), cameras):
            sides = camera[row[camera]], camera[~row[camera]]
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
    token_kinds: Sequence[str] = (),
) -> Grounding:
    """Attention and interventions of a policy on some scenes.

    Args:
      act: the policy on these scenes, always with the same noise: a lens in, actions and attention out.
      parts, masks: where what is seen.
      grid: rows and columns of a camera's tokens.
      seed: of the positions that interventions choose.
      label: beside the progress bar.
      token_kinds: out of ``TOKEN_KINDS``, by which positions are also changed one at a time; each kind takes as many
        calls of ``act`` as a frame has tokens.
    """
    shares = coverage(np.concatenate([masks, masks.any(1, keepdims=True)], 1), grid)
    inside = shares[:, -1] > _LEAST_COVERAGE
    scenes, count = inside.shape
    actions, attention = act(Lens(attention=True, present=True, frame_tokens=count))
    plain = _unchanged(act, scenes, count)
    size = np.linalg.norm(plain.reshape(scenes, -1), axis=1).mean()
    floor = float(max(_SMALL * size, _ROUNDINGS * _distance(actions, plain).mean(), 1e-12))
    in_mask = error = None
    share_of_video = 0.0
    by_part = np.moveaxis(shares > _LEAST_COVERAGE, 1, 0)
    if attention is not None:
        seen = np.asarray(attention)
        share_of_video = float(seen.sum(-1).mean())
        shown = [attention_in_mask(seen, part)[part.any(1)] for part in by_part]
        nowhere = np.full(seen.shape[1:-1], np.nan)
        errors = centroid_error(seen, shares[:, -1], grid)[inside.any(1)]
        in_mask = np.stack([found.mean(0) if len(found) else nowhere for found in shown])
        error = errors.mean(0) if len(errors) else nowhere
    return Grounding(
        parts=(*parts, "all"),
        area=np.array([part[part.any(1)].mean() if part.any() else 0.0 for part in by_part]),
        in_mask=in_mask,
        centroid_error=error,
        to_video=share_of_video,
        sensitivity=_sensitivity(act, inside, masks.shape[2], plain, floor, seed, label, token_kinds),
    )


def _sensitivity(
    act: Act,
    inside: Bool[np.ndarray, "N n"],
    cameras: int,
    plain: Float[np.ndarray, "N K A"],
    floor: float,
    seed: int,
    label: str,
    token_kinds: Sequence[str],
) -> dict[str, Sensitivity]:
    """By kind of intervention."""
    # A picture without a mask, or with nothing else, has no two sides to compare.
    by_camera = inside.reshape(len(inside), cameras, -1)
    two_sides = np.logical_and(by_camera.any(2), np.logical_not(by_camera.all(2)))
    sided = two_sides.any(1)
    rng = np.random.default_rng(seed)
    todo = [(kind, draw) for kind in KINDS for draw in range(_DRAWS)]
    moved: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for kind, _ in console.progress(todo, label):
        mine, theirs = matched(inside, rng, cameras, spare=kind == "swap")
        # Background is swapped for other background, so that nothing of the mask comes into play.
        spare = ~inside & ~theirs
        sides = (mine, ~inside), (theirs, spare)
        changes = [intervention(kind, chosen, other, rng, cameras) for chosen, other in sides]
        moved[kind].append(np.stack([_distance(act(Lens(change=jnp.asarray(change)))[0], plain) for change in changes]))
    found = {kind: np.mean(rows, 0)[:, sided] for kind, rows in moved.items()}
    for kind in token_kinds:
        name = f"{kind}, token by token"
        single = heat(act, inside.shape[1], len(inside), kind, f"{label}: {name}", ~inside, cameras)
        parts = single.reshape(by_camera.shape)
        means = [_mean(_mean(parts, side), two_sides) for side in (by_camera, np.logical_not(by_camera))]
        found[name] = np.stack(means)[:, sided]
    return {kind: Sensitivity(inside=mine, outside=theirs, floor=floor) for kind, (mine, theirs) in found.items()}


def _mean(values: Float[np.ndarray, "*N n"], chosen: Bool[np.ndarray, "*N n"]) -> Float[np.ndarray, "*N"]:
    """Over those that are chosen; 0 where none is."""
    return (values * chosen).sum(-1) / np.maximum(chosen.sum(-1), 1)


def heat(
    act: Act,
    count: int,
    scenes: int,
    kind: str = "zero",
    label: str = "token by token",
    other: Bool[np.ndarray, "N n"] | None = None,
    cameras: int = 1,
) -> Float[np.ndarray, "N n"]:
    """How far actions move when one position is changed, position by position; ``other``: what is swapped in, if any.

    Raises:
      ValueError: for a kind that is not one of ``TOKEN_KINDS``.
    """
    if kind not in TOKEN_KINDS:
        raise ValueError(f"single tokens cannot be changed by {kind!r} (can be by: {', '.join(TOKEN_KINDS)})")
    plain, rng = _unchanged(act, scenes, count), np.random.default_rng(0)
    found = []
    for place in console.progress(range(count), label):
        alone = np.broadcast_to(np.arange(count) == place, (scenes, count))
        rest = ~alone if other is None else other & ~alone
        change = jnp.asarray(intervention(kind, alone, rest, rng, cameras))
        found.append(_distance(act(Lens(change=change))[0], plain))
    return np.stack(found, 1)


def _unchanged(act: Act, scenes: int, count: int) -> Float[np.ndarray, "N K A"]:
    """Actions under a change of nothing: by the program that interventions run in, which rounds as they do."""
    same = np.broadcast_to(np.eye(count, dtype=np.float32), (scenes, count, count))
    return np.asarray(act(Lens(change=jnp.asarray(same)))[0])


def _distance(actions: Float[Array, "N K A"], plain: Float[np.ndarray, "N K A"]) -> Float[np.ndarray, "N"]:
    return np.linalg.norm((np.asarray(actions) - plain).reshape(len(plain), -1), axis=1)


def acting(
    look: Callable[[Any, Any, jax.Array, Lens], tuple[Array, Array | None]], params: Any, observation: Any, seed: int
) -> Act:
    """A policy's ``look`` at some observations, compiled once for each kind of lens."""
    run = jax.jit(look)
    return lambda lens: run(params, observation, jax.random.key(seed), lens)
