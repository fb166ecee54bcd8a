"""A table that does not fit together is refused, and the message names the field."""

import dataclasses

import pytest

from wam_jax.wam.visibility import COUPLINGS
from wam_jax.zoo import make_spec


def replaced_stream(spec, stream, **changes):
    return tuple(dataclasses.replace(s, **changes) if s.name == stream else s for s in spec.streams)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda spec: {"streams": replaced_stream(spec, "state", name="depth")},
            "joint_mot: stream 'depth' is unknown (has: video, state, action)",
        ),
        (
            lambda spec: {"streams": replaced_stream(spec, "state", expert="language")},
            "joint_mot: stream 'state' names expert 'language' (has: video, action)",
        ),
        (
            lambda spec: {"experts": tuple(dataclasses.replace(e, conditions=("depth",)) for e in spec.experts)},
            "joint_mot: expert 'video': ['depth'] are not conditions (has: text, state)",
        ),
        (lambda spec: {"head_dim": 5}, "joint_mot: head_dim must be even for rotary positions, got 5"),
        (lambda spec: {"remat": "half"}, "joint_mot: remat 'half' is unknown (has: none, full)"),
        (
            lambda spec: {"visibility": COUPLINGS["mutual"]},
            "joint_mot: streams video, action see each other, so they need equal noise.draws and "
            "noise.batch_share, got [(1, 0.5), (2, 1.0)]",
        ),
    ],
    ids=["stream", "expert", "condition", "head_dim", "remat", "draws"],
)
def test_what_does_not_fit_is_named(tiny, changes, message):
    spec = tiny.spec()
    with pytest.raises(ValueError, match="joint_mot") as error:
        dataclasses.replace(spec, **changes(spec))
    assert str(error.value) == message


def test_clean_context_has_no_noise(tiny):
    with pytest.raises(ValueError, match="joint_mot: stream 'state' is clean context; it is not denoised"):
        tiny.spec().noise("state")


def test_streams_that_see_each_other_are_one_component(tiny):
    assert tiny.spec().components == (("video",), ("action",))
    assert tiny.spec(coupling="mutual").component("action") == ("video", "action")


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("uwm", {}, "model 'uwm' is not in the zoo (has: joint_mot); set model.name"),
        ("joint_mot", {"width": 3}, "model 'joint_mot': joint_mot() got an unexpected keyword argument 'width'"),
        ("joint_mot", {"coupling": "loose"}, "coupling 'loose' is unknown (has: isolated, action_sees_video"),
    ],
)
def test_zoo_names_what_it_does_not_have(name, sizes, message):
    with pytest.raises(ValueError, match=r"is not in the zoo|unexpected|is unknown") as error:
        make_spec(name, **sizes)
    assert str(error.value).startswith(message)
