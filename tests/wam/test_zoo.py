"""Published sizes have the published numbers of parameters, by shape evaluation alone; all systems print and draw."""

import jax
import numpy as np
import pytest

from launch.zoo import TABLETOP, sized
from wam_jax.nn.module import define
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.show import draw_visibility, parameters_by_expert, parameters_of_expert, spec_rows
from wam_jax.zoo import SYSTEMS, make_spec, published


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("wan", "2.1-1.3b", 1_418_996_800),
        ("wan", "2.2-5b", 4_999_787_712),
        ("fast_wam", "5b", 4_999_787_712 + 1_020_900_366),
        ("gigaworld_policy", "5b", 5_000_000_000),  # Wan 2.2 and small action maps
    ],
)
def test_totals_are_the_published_ones(name, size, expected):
    assert sum(parameters_by_expert(*published(name, size)).values()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("name", "size", "expert", "expected"),
    [
        ("fast_wam", "5b", "video", 4_999_787_712),
        ("fast_wam", "5b", "action", 1_020_900_366),
        ("motus", "8b", "action", 641_527_822),
    ],
)
def test_experts_are_the_published_ones(name, size, expert, expected):
    assert parameters_of_expert(*published(name, size), expert) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_counts_by_expert_add_up(name, size):
    spec = make_spec(name, size)
    shapes = define(lambda rngs: WorldActionModel(spec, TABLETOP, rngs)).shapes()
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    assert sum(parameters_by_expert(spec, TABLETOP).values()) == total


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_prints_as_a_table(name):
    spec, interface = sized(name, None)
    rows = dict(spec_rows(spec, interface))
    assert rows["visibility"] == str(spec.visibility)
    assert {f"stream {s.name}" for s in spec.streams} | {f"mode {m.name}" for m in spec.modes} <= set(rows)
    assert int(rows["tokens"].split("sees ")[1].split("%")[0]) <= 100


def test_a_picture_of_the_visibility_is_written(tmp_path):
    spec, interface = sized("dreamzero", "debug")
    draw_visibility(spec, interface, tmp_path / "deep" / "picture.png")
    assert (tmp_path / "deep" / "picture.png").read_bytes()[:4] == bytes([0x89]) + b"PNG"


def test_the_video_that_is_trained_first_is_a_part_of_the_whole():
    parts, whole = (
        dict(jax.tree.leaves_with_path(define(lambda rngs, spec=spec: WorldActionModel(spec, TABLETOP, rngs)).shapes()))
        for spec in (make_spec("agra", actions=False), make_spec("agra"))
    )
    assert 0 < len(parts) < len(whole)
    assert all(whole[path].shape == x.shape for path, x in parts.items())


@pytest.mark.parametrize(("options", "expected"), [({}, 0.25), ({"actions": False}, 1.0), ({"shared_pass": True}, 1.0)])
def test_agra_denoises_all_of_a_batch_but_beside_actions_with_a_pass_of_their_own(options, expected):
    spec = make_spec("agra", video_batch_share=0.25, **options)
    assert spec.stream("video").noise.batch_share == expected


def test_bridged_experts_draw_and_count_the_features_pass():
    rows = dict(spec_rows(make_spec("agra"), TABLETOP))
    assert rows["stream features"].endswith("data of video")
    assert "action reads spread layers of video" in rows["coupling"]
    assert rows["mode policy"] == "action (4); features at noise; actions need no video"
