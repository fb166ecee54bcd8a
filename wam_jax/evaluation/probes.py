"""Linear probes: what can be read off latents by a linear map, such as where an object is or which one it is.

Ridge regression in closed form on standardised features; its penalty is chosen on a part of the fitted set that is held
out, and what is reported is measured on another set. Everything is float64 numpy, and pure in its arguments.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from einops import reduce
from jaxtyping import Float, Int, Shaped

PENALTIES = tuple(10.0**power for power in range(-6, 5))  # a sample, of weights of standardised features
_VALIDATION_SHARE = 0.2
_CONSTANT = 1e-9  # of a feature's largest magnitude: a standard deviation below it is rounding


@dataclasses.dataclass(frozen=True)
class PositionProbe:
    """How well positions are read, on the test set.

    Attributes:
      r2: share of the targets' variance (all dimensions together) that is explained; below 0 is worse than their mean.
      mean_error: mean Euclidean distance between prediction and target, in the targets' units.
      mean_error_of_constant: that of always predicting the mean of the fitted set.
      penalty: the chosen one, of ``PENALTIES``.
      n_fit, n_test: samples.
    """

    r2: float
    mean_error: float
    mean_error_of_constant: float
    penalty: float
    n_fit: int
    n_test: int

    def as_dict(self) -> dict[str, float]:
        """For ``summary.json``."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ClassProbe:
    """How well classes are read, on the test set.

    Attributes:
      accuracy: share of samples whose class is read right. A class that the fitted set lacks is always read wrong.
      majority_accuracy: that of always naming the most frequent class of the fitted set.
      penalty: the chosen one, of ``PENALTIES``.
      classes: how many the fitted set has.
      n_fit, n_test: samples.
    """

    accuracy: float
    majority_accuracy: float
    penalty: float
    classes: int
    n_fit: int
    n_test: int

    def as_dict(self) -> dict[str, float]:
        """For ``summary.json``."""
        return dataclasses.asdict(self)


def flattened(latents: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N D"]:
    """Latents as one vector a sample: what is where can be read."""
    return np.asarray(latents).reshape(len(latents), -1)


def pooled(latents: Float[np.ndarray, "N *more h w C"]) -> Float[np.ndarray, "N D"]:
    """Latents averaged over their grid, frames and cameras side by side: what is there can be read, hardly where."""
    return flattened(reduce(np.asarray(latents), "... h w c -> ... c", "mean"))


def probe_positions(
    features: Float[np.ndarray, "N D"],
    positions: Float[np.ndarray, "N E"],
    test_features: Float[np.ndarray, "M D"],
    test_positions: Float[np.ndarray, "M E"],
    groups: Int[np.ndarray, "N"] | None = None,
    seed: int = 0,
) -> PositionProbe:
    """Reads positions (or any real targets) off features by ridge regression.

    Args:
      features, positions: what is fitted. A fifth of its groups choose the penalty, by squared error; then all are
        fitted.
      test_features, test_positions: what is reported on.
      groups: which samples belong together, as the frames of an episode do: they are not divided. None: each is alone.
      seed: of the division.

    Raises:
      ValueError: features and targets do not match, there are fewer than two groups, or the test targets are constant.
    """
    _check(features, positions, test_features, test_positions, groups)
    spread = np.sum((test_positions - test_positions.mean(0)) ** 2)
    if not spread > 0:
        raise ValueError(f"all {len(test_positions)} test targets are equal: there is no variance to explain")
    penalty = _choose_penalty(features, positions, groups, seed)
    error = _Ridge(features, positions).predict(test_features, penalty) - test_positions
    return PositionProbe(
        r2=float(1 - np.sum(error**2) / spread),
        mean_error=float(np.linalg.norm(error, axis=-1).mean()),
        mean_error_of_constant=float(np.linalg.norm(test_positions - positions.mean(0), axis=-1).mean()),
        penalty=penalty,
        n_fit=len(features),
        n_test=len(test_features),
    )


def probe_classes(
    features: Float[np.ndarray, "N D"],
    labels: Shaped[np.ndarray, "N"],
    test_features: Float[np.ndarray, "M D"],
    test_labels: Shaped[np.ndarray, "M"],
    groups: Int[np.ndarray, "N"] | None = None,
    seed: int = 0,
) -> ClassProbe:
    """Reads classes off features by ridge regression of their indicators; the largest names the class.

    Args: as of ``probe_positions``; labels are integers or text.

    Raises:
      ValueError: features and labels do not match, there are fewer than two groups, or only one class.
    """
    _check(features, labels, test_features, test_labels, groups)
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"all {len(labels)} labels are {classes[0].item()!r}: there is nothing to tell apart")
    indicators = np.eye(len(classes))[index]
    penalty = _choose_penalty(features, indicators, groups, seed)
    named = classes[_Ridge(features, indicators).predict(test_features, penalty).argmax(-1)]
    return ClassProbe(
        accuracy=float(np.mean(named == test_labels)),
        majority_accuracy=float(np.mean(test_labels == classes[counts.argmax()])),
        penalty=penalty,
        classes=len(classes),
        n_fit=len(features),
        n_test=len(test_features),
    )


def linear_reader(
    features: Float[np.ndarray, "N D"], targets: Float[np.ndarray, "N E"], seed: int = 0
) -> Callable[[Float[np.ndarray, "M D"]], Float[np.ndarray, "M E"]]:
    """Reads targets off features, by the same ridge regression as the probes."""
    ridge, penalty = _Ridge(features, targets), _choose_penalty(features, targets, None, seed)
    return lambda found: ridge.predict(found, penalty)


class _Ridge:
    """Ridge regression for every penalty from one singular value decomposition; the intercept is not penalised."""

    def __init__(self, features: Float[np.ndarray, "N D"], targets: Float[np.ndarray, "N E"]):
        x = np.asarray(features, np.float64)
        self.center, spread = x.mean(0), x.std(0)
        constant = spread <= _CONSTANT * np.abs(x).max(0)
        self.scale = np.where(constant, np.inf, spread)  # what does not vary here is not looked at elsewhere
        self.mean = np.asarray(targets, np.float64).mean(0)
        u, self.values, self.directions = np.linalg.svd((x - self.center) / self.scale, full_matrices=False)
        self.aligned = u.T @ (targets - self.mean)
        self.count = len(x)

    def predict(self, features: Float[np.ndarray, "M D"], penalty: float) -> Float[np.ndarray, "M E"]:
        """Minimises mean squared error + penalty · |weights|²."""
        gain = self.values / (self.values**2 + self.count * penalty)
        x = (np.asarray(features, np.float64) - self.center) / self.scale
        return x @ (self.directions.T @ (gain[:, None] * self.aligned)) + self.mean


def _choose_penalty(
    features: Float[np.ndarray, "N D"],
    targets: Float[np.ndarray, "N E"],
    groups: Int[np.ndarray, "N"] | None,
    seed: int,
) -> float:
    """The penalty of the least squared error on a fifth of the groups, when the rest is fitted."""
    groups = np.arange(len(features)) if groups is None else groups
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    held_out = np.isin(groups, names[: max(round(_VALIDATION_SHARE * len(names)), 1)])
    ridge = _Ridge(features[~held_out], targets[~held_out])
    errors = [np.sum((ridge.predict(features[held_out], p) - targets[held_out]) ** 2) for p in PENALTIES]
    return PENALTIES[int(np.argmin(errors))]


def _check(
    features: Float[np.ndarray, "N D"],
    targets: Shaped[np.ndarray, "N ..."],
    test_features: Float[np.ndarray, "M D"],
    test_targets: Shaped[np.ndarray, "M ..."],
    groups: Int[np.ndarray, "N"] | None,
) -> None:
    for name, x, y in (("fitted", features, targets), ("test", test_features, test_targets)):
        if x.ndim != 2 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"{name} features {x.shape} and targets {y.shape} do not match; give [N, D] and one target a row"
            )
    if features.shape[1] != test_features.shape[1] or targets.shape[1:] != test_targets.shape[1:]:
        raise ValueError(
            f"what is fitted ({features.shape}, {targets.shape}) and what is tested ({test_features.shape}, "
            f"{test_targets.shape}) are not of one kind; take both from one model"
        )
    if groups is not None and groups.shape != (len(features),):
        raise ValueError(f"groups {groups.shape} are not one a sample; give [{len(features)}]")
    count = len(features if groups is None else np.unique(groups))
    if count < 2:
        raise ValueError(f"{count} group cannot be divided to choose a penalty; give two or more")
