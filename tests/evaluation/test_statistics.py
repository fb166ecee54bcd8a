"""Intervals agree with published values, and behave at the ends."""

import itertools

import numpy as np
import pytest

from wam_jax.evaluation.statistics import (
    Difference,
    Rate,
    mean_share,
    paired_difference,
    ranking,
    seeds_difference,
    seeds_mean,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_equals_published_values(successes, n, interval):
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-5)
    low, high = interval
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_narrows_with_episodes_and_widens_with_confidence():
    widths = [np.diff(wilson_interval(9 * n, 10 * n))[0] for n in (1, 4, 16, 64)]
    assert all(wide > narrow for wide, narrow in itertools.pairwise(widths))
    low, high = wilson_interval(18, 20, confidence=0.99)
    assert low < wilson_interval(18, 20)[0] < 0.9 < wilson_interval(18, 20)[1] < high


def test_wilson_interval_covers_the_truth_as_often_as_it_says():
    truth, n = 0.95, 100
    draws = np.random.default_rng(0).binomial(n, truth, size=4000)
    intervals = {count: wilson_interval(count, n) for count in np.unique(draws).tolist()}
    covered = np.mean([intervals[count][0] <= truth <= intervals[count][1] for count in draws.tolist()])
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (5, 4), (-1, 4)])
def test_impossible_rates_are_refused(successes, n):
    message = rf"^{successes} successes of {n} episodes is not a rate; run at least one episode$"
    with pytest.raises(ValueError, match=message):
        Rate(successes, n)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Rate(98, 100), ".98 [.93, .99]"),
        (Rate(95, 100), ".95 [.89, .98]"),
        (Rate(255, 256), ".996 [.978, .999]"),  # two digits would say 1.00
        (Rate(5, 5), "1.00 [.57, 1.00]"),
        (Rate(0, 5), ".00 [.00, .43]"),
    ],
)
def test_rate_as_text(rate, text):
    assert str(rate) == text


def outcomes(both: int, only_a: int, only_b: int, neither: int):
    """Paired outcomes with these counts."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize(
    ("counts", "difference", "interval"),
    [
        ((36, 12, 2, 0), 0.200, (0.0569, 0.3404)),  # Newcombe 1998, Stat. Med. 17:2635, method 10
        ((14, 5, 0, 22), 0.122, (0.011, 0.226)),  # Altman et al., Statistics with Confidence (2000), table 6.2
        ((1, 1, 7, 12), -0.286, (-0.507, -0.026)),  # Fagerland et al. 2014, Stat. Med. 33:2850, Bentur's data
    ],
)
def test_paired_difference_equals_published_values(counts, difference, interval):
    measured = paired_difference(*outcomes(*counts))
    assert measured.difference == pytest.approx(difference, abs=5e-4)
    assert measured.ci95 == pytest.approx(interval, abs=5e-4)
    assert measured.n == sum(counts)
    assert measured.significant


def test_paired_difference_changes_sign_with_the_order():
    a, b = outcomes(20, 9, 3, 8)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.difference == -back.difference
    assert forth.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))


def test_pairing_narrows_the_interval_of_agreeing_policies():
    a, b = outcomes(45, 6, 4, 45)
    shuffled = np.random.default_rng(0).permutation(b)
    paired, unpaired = paired_difference(a, b).ci95, paired_difference(a, shuffled).ci95
    assert paired[1] - paired[0] < 0.6 * (unpaired[1] - unpaired[0])


def test_equal_policies_do_not_differ_but_doubt_remains():
    a = np.ones(20, bool)
    measured = paired_difference(a, a)
    assert measured.difference == 0
    assert measured.ci95[0] < 0 < measured.ci95[1]
    assert not measured.significant


def test_unpaired_outcomes_are_refused():
    message = r"^outcomes of shapes \(3,\) and \(4,\) are not paired; run both on the same episodes$"
    with pytest.raises(ValueError, match=message):
        paired_difference(np.ones(3, bool), np.ones(4, bool))


def test_difference_as_text():
    assert str(Difference(0.12, (0.008, 1.0), 10)) == "+.12 [+.01, +1.00]"
    assert str(Difference(-0.25, (-0.5, 0.0), 10)) == "-.25 [-.50, +.00]"


def test_a_score_that_tells_successes_from_failures_ranks_them():
    success = np.arange(200) % 2 == 0
    rng = np.random.default_rng(0)
    assert ranking(success.astype(float), success).mean == 1
    assert ranking(-success.astype(float), success).mean == 0
    assert ranking(np.zeros(200), success).mean == 0.5  # all alike
    blind = ranking(rng.normal(size=200), success)
    assert blind.ci95[0] < 0.5 < blind.ci95[1]
    some = ranking(rng.normal(size=200) + success, success)
    assert some.mean == pytest.approx(0.76, abs=0.06)  # Φ(1 / √2)
    assert some.ci95[0] > 0.5
    assert ranking(np.arange(200.0), np.ones(200, bool)) is None


def test_an_arm_does_not_differ_from_itself():
    rows = np.random.default_rng(0).random((3, 100)) < 0.5
    found = seeds_difference(rows, rows)
    assert (found.difference, found.ci95) == (0.0, (0.0, 0.0))
    assert not found.significant


def test_pairs_of_seeds_and_episodes_narrow_the_interval():
    """The same difference of rates, on the same or on other episodes."""
    rng = np.random.default_rng(0)
    hard = rng.random((3, 400)) < 0.5
    better = hard | (rng.random((3, 400)) < 0.2)
    apart = np.stack([rng.permutation(row) for row in better])
    paired, unpaired = (seeds_difference(arm, hard) for arm in (better, apart))
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.ci95[1] - paired.ci95[0] < 0.8 * (unpaired.ci95[1] - unpaired.ci95[0])


def test_where_only_seeds_differ_the_interval_is_students():
    """Of three differences, .1, .2 and .3: the standard error .0577, times 4.303."""
    episodes = np.ones((1, 50))
    found = seeds_difference(np.array([[0.1], [0.2], [0.3]]) * episodes, 0 * np.ones((3, 1)) * episodes)
    np.testing.assert_allclose(found.ci95, (0.2 - 0.2484, 0.2 + 0.2484), atol=1e-4)


def test_where_only_episodes_differ_seeds_do_not_narrow_the_interval():
    episodes = (np.arange(200) % 2 == 0)[None]
    for seeds in (1, 3):
        low, high = seeds_mean(np.repeat(episodes, seeds, 0)).ci95
        np.testing.assert_allclose((low, high), wilson_interval(100, 200), atol=2e-3)


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_episodes"), [(1, 0.0, 0.3), (3, 0.0, 0.0), (3, 0.15, 0.0), (3, 0.05, 0.3)]
)
def test_intervals_over_seeds_cover_the_truth_as_often_as_they_say(seeds, of_seeds, of_episodes):
    """Studies in which trainings, episodes or both differ: at three seeds a bootstrap's cover 83% of the third kind."""
    rng, studies, held = np.random.default_rng(0), 400, np.zeros(2)
    for _ in range(studies):
        ease = rng.normal(0, of_episodes, (1, 64))
        a, b = (
            rng.random((seeds, 64)) < np.clip(mean + rng.normal(0, of_seeds, (seeds, 1)) + ease, 0, 1)
            for mean in (0.5, 0.4)
        )
        (low, high), (least, most) = seeds_difference(a, b).ci95, seeds_mean(a).ci95
        held += low <= 0.1 <= high, least <= 0.5 <= most
    assert (held >= 0.92 * studies).all()


def test_success_always_or_never_leaves_doubt_of_as_many_episodes():
    assert seeds_mean(np.zeros((3, 50), bool)).ci95 == wilson_interval(0, 50)
    assert seeds_mean(np.ones((3, 50), bool)).ci95 == wilson_interval(50, 50)


def test_other_episodes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(1, 3\) and \(1, 4\) are not paired"):
        seeds_difference(np.zeros((1, 3), bool), np.zeros((1, 4), bool))


def test_shares_of_tries_have_the_interval_of_as_many_episodes():
    assert mean_share(np.array([0.5, 0.5, 1.0, 0.0])).ci95 == wilson_interval(2, 4)
