"""Success rates with honest intervals, and paired differences between two policies on the same episodes."""

import dataclasses
import math
import statistics

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

Shares = Bool[np.ndarray, "S N"] | Float[np.ndarray, "S N"]  # by seed, of an episode: success, or a share of its tries
_Z = statistics.NormalDist().inv_cdf(0.975)


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial rate (Wilson 1927; Newcombe 1998, Stat. Med. 17:857, method 3).

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage near 0 and 1.

    Raises:
      ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} episodes is not a rate; run at least one episode")
    return _score_interval(successes / n, n, statistics.NormalDist().inv_cdf((1 + confidence) / 2))


def _score_interval(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's, of ``n`` independent episodes."""
    z2 = quantile**2
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    margin = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if rate == 0 else center - margin  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if rate == 1 else center + margin
    return low, high


@dataclasses.dataclass(frozen=True)
class Rate:
    """A success rate and its 95% interval. As text: ``.98 [.95, .99]``, with a third digit where two would claim 1."""

    successes: int
    n: int

    def __post_init__(self):
        wilson_interval(self.successes, self.n)  # refuses what is not a rate, where it is made

    @property
    def rate(self) -> float:
        return self.successes / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.n)

    def as_dict(self) -> dict[str, object]:
        """For ``summary.json``."""
        return {"rate": self.rate, "ci95": list(self.ci95), "successes": self.successes, "n": self.n}

    def __str__(self) -> str:
        return _share_text(self.rate, *self.ci95)


def _share_text(*values: float) -> str:
    """A share and its interval, with a third digit where two would claim 0 or 1."""
    digits = 3 if any(0 < value < 1 and round(value, 2) in (0, 1) for value in values) else 2
    share, low, high = (f"{value:.{digits}f}".removeprefix("0") for value in values)
    return f"{share} [{low}, {high}]"


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean of shares and its 95% interval. As text: ``.52 [.41, .63]``."""

    mean: float
    ci95: tuple[float, float]
    n: int

    def as_dict(self) -> dict[str, object]:
        """For ``summary.json``."""
        return {"mean": self.mean, "ci95": list(self.ci95), "n": self.n}

    @property
    def rate(self) -> float:
        """As of a ``Rate``."""
        return self.mean

    def __str__(self) -> str:
        return _share_text(self.mean, *self.ci95)


def mean_share(shares: Float[np.ndarray, "N"]) -> Mean:
    """The mean of what share of its tries each episode succeeds at, with Wilson's interval of as many episodes.

    Shares scatter less than successes of the same mean do, so the interval is rather too wide.
    """
    return Mean(float(shares.mean()), wilson_interval(float(shares.sum()), shares.size), shares.size)


def ranking(score: Float[np.ndarray, "N"], success: Bool[np.ndarray, "N"], draws: int = 2000) -> Mean | None:
    """How well a score tells successes from failures: the chance that it is higher for a success (area under the ROC).

    .5 is chance; the interval is a bootstrap over episodes. None: all episodes ended alike.
    """
    success = np.asarray(success, bool)
    if success.all() or not success.any():
        return None
    order = np.sign(score[success][:, None] - score[~success]) / 2 + 0.5
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(size, size=(draws, size)) for size in order.shape)
    low, high = np.quantile([order[np.ix_(a, b)].mean() for a, b in zip(rows, columns, strict=True)], [0.025, 0.975])
    return Mean(float(order.mean()), (float(low), float(high)), success.size)


def seeds_mean(shares: Shares) -> Mean:
    """Success over seeds and episodes, for a new training and new episodes: Wilson's interval of as many independent
    episodes as would scatter as much, with Student's quantile."""
    mean, (error, quantile) = float(shares.mean()), _crossed_error(shares)
    scatter = mean * (1 - mean)
    independent = min(scatter / error**2, shares.size) if error and scatter else shares.shape[1]
    return Mean(mean, _score_interval(mean, independent, quantile), shares.size)


def seeds_difference(a: Shares, b: Shares) -> "Difference":
    """Mean success of ``a`` minus that of ``b``, paired by seed and episode, for a new training and new episodes.

    Raises:
      ValueError: the two do not have the same seeds and episodes.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} are not paired; run both on the same episodes")
    difference = a.astype(np.float64) - b
    mean, (error, quantile) = float(difference.mean()), _crossed_error(difference)
    return Difference(mean, (max(mean - quantile * error, -1.0), min(mean + quantile * error, 1.0)), difference.size)


def _crossed_error(values: Shares) -> tuple[float, float]:
    """Standard error of a mean over seeds and episodes that are crossed, and Student's 97.5% quantile.

    Seeds differ, episodes differ, and every seed meets the same episodes: the mean's variance is that of the seeds'
    means and that of the episodes' means, less what is in both (Cameron, Gelbach and Miller 2011); degrees of freedom
    are Satterthwaite's (1946). Three seeds that scatter leave two, and the quantile is 4.3: a percentile bootstrap
    would be the range of the three, which misses the truth in a quarter of all studies. Of one seed: of the episodes.
    """
    values = np.asarray(values, np.float64)
    seeds, episodes = values.shape
    by_seed, by_episode = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    parts = [(by_episode.var(ddof=1) / episodes, episodes - 1)] if episodes > 1 else []
    if seeds > 1:
        rest, free = values - by_seed - by_episode + values.mean(), (seeds - 1) * (episodes - 1)
        parts += [
            (by_seed.var(ddof=1) / seeds, seeds - 1),
            (-(rest**2).sum() / max(free, 1) / values.size, max(free, 1)),
        ]
    variance = max([sum(part for part, _ in parts), *(part for part, _ in parts)])
    if variance <= 0:
        return 0.0, _Z
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    return math.sqrt(variance), float(special.stdtrit(freedom, 0.975))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of two rates and its 95% interval. As text: ``+.12 [+.01, +.23]``."""

    difference: float
    ci95: tuple[float, float]
    n: int

    @property
    def significant(self) -> bool:
        """Whether the 95% interval leaves out zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0

    def as_dict(self) -> dict[str, object]:
        """For ``summary.json``."""
        return {"difference": self.difference, "ci95": list(self.ci95), "n": self.n}

    def __str__(self) -> str:
        difference, low, high = (f"{value:+.2f}".replace("0.", ".") for value in (self.difference, *self.ci95))
        return f"{difference} [{low}, {high}]"


def paired_difference(a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"]) -> Difference:
    """Success of ``a`` minus success of ``b``, episode i of both being the same episode, with its 95% interval.

    Newcombe's square-and-add interval (Newcombe 1998, Stat. Med. 17:2635, method 10): Wilson limits of either rate,
    combined with the correlation of the pairs. It needs no discordant pair, and never leaves [-1, 1].

    Raises:
      ValueError: the two do not have the same number of episodes, or none.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} are not paired; run both on the same episodes")
    rate_a, rate_b = Rate(int(a.sum()), a.size), Rate(int(b.sum()), b.size)
    (low_a, high_a), (low_b, high_b) = rate_a.ci95, rate_b.ci95
    correlation = _paired_correlation(a, b)

    def combine(margin_a: float, margin_b: float) -> float:
        return math.sqrt(max(margin_a**2 - 2 * correlation * margin_a * margin_b + margin_b**2, 0.0))

    difference = rate_a.rate - rate_b.rate
    low = difference - combine(rate_a.rate - low_a, high_b - rate_b.rate)
    high = difference + combine(high_a - rate_a.rate, rate_b.rate - low_b)
    return Difference(difference, (low, high), a.size)


def _paired_correlation(a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"]) -> float:
    """Phi coefficient of the 2 x 2 table, with Newcombe's continuity correction where it is positive."""
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - a.size / 2, 0.0)
    margins = int(a.sum()) * int((~a).sum()) * int(b.sum()) * int((~b).sum())
    return product / math.sqrt(margins) if margins else 0.0
