"""Groups, blocks and what follows from the visibility of a whole spec."""

import dataclasses

import pytest

from wam_jax.wam.layout import Layout
from wam_jax.wam.noise import Coupled
from wam_jax.wam.spec import Interface
from wam_jax.wam.visibility import CHUNK_CAUSAL, FIRST_FRAME_CAUSAL, ISOLATED, Rule, sees_imagined, window
from wam_jax.zoo import SYSTEMS, make_spec

INTERFACE = Interface(
    latent_shape=(4, 4, 2), cameras=2, frame_steps=(0, 2, 4), action_horizon=4, action_size=4, proprio_size=3,
    text_width=5, text_tokens=4,
)  # fmt: skip


def layout(name: str, **changes) -> Layout:
    return Layout(make_spec(name, **changes), INTERFACE)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_blocks_tile_the_data_of_every_stream(name):
    made = layout(name)
    for stream in made.spec.streams:
        if stream.kind in ("register", "understanding"):
            continue
        spans = [made.span(stream, block) for block in made.blocks(stream)]
        if stream.kind not in ("state", "value"):  # one state a block, not one a frame
            assert [i for start, stop in spans for i in range(start, stop)] == list(range(made.data_shape(stream)[0]))
        future = [made.future_span(stream, block) for block in range(1, made.num_blocks + 1)]
        assert [i for start, stop in future for i in range(start, stop)] == list(range(made.future_shape(stream)[0]))


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_context_depends_on_nothing_that_is_predicted(name):
    made = layout(name)
    assert all(g.clean for g in made.context)
    if made.spec.visibility.name.startswith("bidirectional"):
        assert made.context == ()  # the present sees the future being denoised
    else:
        assert any(g.stream == "video" and g.block == 0 for g in made.context)


@pytest.mark.parametrize(
    ("name", "mode", "dropped"),
    [
        ("gigaworld_policy", "policy", ("video",)),
        ("fast_wam", "policy", ("video",)),
        ("fast_wam_joint", "policy", ()),
        ("fast_wam_idm", "policy", ()),
        ("agra", "policy", ("video",)),
        ("x_wam", "policy", ("depth",)),
        ("uwm", "policy", ()),
    ],
)
def test_streams_that_actions_can_do_without(name, mode, dropped):
    assert layout(name).droppable(mode) == dropped


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fast_wam", (("video",), ("action",))),
        ("fast_wam_joint", (("video", "action"),)),
        ("agra", (("video",), ("features", "action"))),
        ("unipi", (("video",), ("action",))),
    ],
)
def test_components_are_what_influences_each_other(name, parts):
    assert layout(name).components == parts


@pytest.mark.parametrize(
    ("name", "expected"), [("dreamzero", True), ("repwam", True), ("lingbot_va", True), ("fast_wam_idm", False)]
)
def test_models_that_see_what_really_came_before_are_autoregressive(name, expected):
    assert layout(name).autoregressive is expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"visibility": CHUNK_CAUSAL & ISOLATED | sees_imagined("action", "video"), "chunk_frames": 1, "history": 1},
            "lets action 1 noisy depend on the true state 1, which is not known yet",
        ),
        (
            {"visibility": FIRST_FRAME_CAUSAL | Rule("cheat", lambda q, k: k.stream == "video")},
            "lets video 1 noisy depend on the true video 1, which is not known yet",
        ),
        ({"chunk_frames": 3}, "2 future frames do not divide into blocks of chunk_frames=3; change data.frame_steps"),
    ],
)  # fmt: skip
def test_layout_that_cannot_be_is_refused(changes, message):
    spec = dataclasses.replace(make_spec("fast_wam"), **changes)
    with pytest.raises(ValueError, match="fast_wam") as error:
        _ = Layout(spec, INTERFACE)
    assert message in str(error.value)


def with_draws(spec, draws):
    streams = tuple(
        dataclasses.replace(s, noise=dataclasses.replace(s.noise, draws=draws)) if s.noise else s for s in spec.streams
    )
    return dataclasses.replace(spec, streams=streams)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: with_draws(make_spec("videovla"), 2), "so draws of it would see each other; set noise.draws=1"),
        (
            lambda: with_draws(make_spec("uwm"), 2),
            "video 0 depends on video 1 noisy, so draws of it would see each other",
        ),
        (
            lambda: dataclasses.replace(make_spec("agra"), visibility=FIRST_FRAME_CAUSAL),
            "lets video 1 noisy depend on the true features 1 noisy, which is not known yet",
        ),
        (lambda: make_spec("dreamzero", history=0), "acts on what came before; set history to 1 or more blocks"),
        (
            lambda: dataclasses.replace(make_spec("repwam"), visibility=CHUNK_CAUSAL & window(1)),
            "block 1 sees nothing of the present; widen its window",
        ),
    ],
)
def test_what_would_be_wrong_in_silence_is_refused(spec, message):
    with pytest.raises(ValueError, match=r"videovla|uwm|agra|dreamzero|repwam") as error:
        Layout(spec(), INTERFACE)
    assert message in str(error.value)


def test_state_at_the_end_of_a_block_does_not_reach_its_actions_through_adaln():
    conditioned = make_spec("lingbot_va", conditions=("text", "state"))
    with pytest.raises(ValueError, match="lets action 1 noisy depend on the true video 1, which is not known yet"):
        Layout(conditioned, INTERFACE)


def test_causal_isolated_actions_need_no_imagined_video():
    spec = dataclasses.replace(
        make_spec("fast_wam"), visibility=CHUNK_CAUSAL & ISOLATED, chunk_frames=1, history=2,
        streams=tuple(s for s in make_spec("fast_wam").streams if s.name != "state"),
    )  # fmt: skip
    assert Layout(spec, INTERFACE).droppable("policy") == ("video",)


def test_streams_that_influence_each_other_are_on_the_same_samples():
    expected = r"streams video, action influence each other, so they need equal noise.batch_share, got \[0.5, 1.0\]"
    with pytest.raises(ValueError, match=expected):
        layout("fast_wam", coupling="mutual", video_batch_share=0.5)


def test_what_runs_once_may_be_seen_by_several_draws_and_sees_none_of_them():
    layout("fast_wam", coupling="action_sees_video", action_draws=2)
    layout("agra", action_draws=2)
    for coupling in ("mutual", "video_sees_action"):
        with pytest.raises(ValueError, match=r"video 1 noisy depends on action 1 noisy, so draws of it would see each"):
            layout("fast_wam", coupling=coupling, action_draws=2)


def test_levels_that_streams_share_are_drawn_equally_often():
    spec = dataclasses.replace(make_spec("fast_wam", coupling="action_sees_video", action_draws=2), noise=Coupled())
    with pytest.raises(ValueError, match=r"noise that streams share needs equal noise.draws, got \[1, 2\]"):
        Layout(spec, INTERFACE)


def test_actions_that_do_not_divide_into_blocks_are_refused():
    with pytest.raises(
        ValueError, match=r"dreamzero: 5 actions do not divide into 2 blocks; change data.action_horizon"
    ):
        Layout(make_spec("dreamzero"), dataclasses.replace(INTERFACE, action_horizon=5))
