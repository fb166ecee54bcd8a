"""A table that does not fit together is refused, and the message names the field and the way out."""

import dataclasses

import pytest

from wam_jax.wam.noise import StreamNoise
from wam_jax.wam.spec import Bridge, Mode, Move, Stage
from wam_jax.zoo import SYSTEMS, make_spec, published


def stream(spec, of, **changes):
    return {"streams": tuple(dataclasses.replace(s, **changes) if s.name == of else s for s in spec.streams)}


def expert(spec, of, **changes):
    return {"experts": tuple(dataclasses.replace(e, **changes) if e.name == of else e for e in spec.experts)}


def mode(*moves, **fields):
    stages = (Stage(moves=moves, **({"solver": fields.pop("solver")} if "solver" in fields else {})),)
    return {"modes": (Mode(name="policy", stages=stages, **fields),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda s: stream(s, "state", kind="smell"),
            "stream 'state': kind 'smell' is unknown (has: video, depth, flow",
        ),
        (
            lambda s: stream(s, "state", expert="language"),
            "stream 'state': names expert 'language' (has: video, action)",
        ),
        (lambda s: stream(s, "state", role="guess"), "stream 'state': role 'guess' is unknown (has: context, denoised"),
        (lambda s: stream(s, "action", noise=None), "stream 'action': role 'denoised' needs noise"),
        (lambda s: stream(s, "state", noise=StreamNoise()), "stream 'state': role 'context' has no noise"),
        (
            lambda s: stream(s, "action", head="gaussian"),
            "stream 'action': head 'gaussian' is unknown (has: linear, diff",
        ),
        (
            lambda s: stream(s, "action", data_of="audio"),
            "stream 'action': data_of names 'audio' (has: video, state, act",
        ),
        (lambda s: stream(s, "state", name="video"), "streams 'video' appear twice; give each a name of its own"),
        (
            lambda s: expert(s, "video", conditions=("depth",)),
            "expert 'video': ['depth'] are not conditions (has: text",
        ),
        (
            lambda s: expert(s, "action", attention_of="video"),
            "expert 'action': attention_of='video' shares weights, so",
        ),
        (
            lambda s: expert(s, "action", attention_of="action"),
            "expert 'action': attention_of names 'action'; it must be",
        ),
        (lambda s: expert(s, "action", layers=2), "expert 'action': layers=2 differs from num_layers=3; only branches"),
        (
            lambda s: expert(s, "action", bridge=Bridge(source="video", layers=9)),
            "expert 'action': bridge.layers 9 is unknown (has: spread, parallel, 0 to 2)",
        ),
        (
            lambda s: expert(s, "action", branch_of="video"),
            "expert 'action': branches off, so layers must be between 1",
        ),
        (lambda s: mode(Move("smell")), "mode 'policy': 'smell' is not generated (has: video, action)"),
        (lambda s: mode(Move("action"), solver="rk4"), "mode 'policy': solver 'rk4' is unknown (has: euler, heun)"),
        (lambda s: mode(Move("action"), given=("action",)), "mode 'policy': 'action' is given, so it cannot be moved"),
        (lambda s: {"head_dim": 5}, "head_dim must be even for rotary positions, got 5"),
        (lambda s: {"remat": "half"}, "remat 'half' is unknown (has: none, dots, attention, full)"),
        (lambda s: {"chunk_frames": 0}, "chunk_frames must be 1 or more, or None for a future in one block, got 0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    spec = make_spec("fast_wam")
    with pytest.raises(ValueError, match="fast_wam: ") as error:
        dataclasses.replace(spec, **changes(spec))
    assert str(error.value).startswith(f"fast_wam: {message}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_spec("uvm"), "model 'uvm' is not in the zoo; did you mean 'uwm'? (has: agra, "),
        (
            lambda: make_spec("uwm", "huge"),
            "size 'huge' is not in the sizes of uwm (has: base, debug, small); set model.size",
        ),
        (lambda: make_spec("uwm", widht=3), "model 'uwm' has no 'widht'"),
        (
            lambda: make_spec("fast_wam", coupling="loose"),
            "coupling 'loose' is unknown (has: isolated, action_sees_video",
        ),
        (lambda: make_spec("agra", noise="loud"), "noise 'loud' is unknown (has: uniform, logit_normal)"),
        (lambda: published("reactive", "debug"), "size 'debug' is not in the published sizes of reactive"),
        (
            lambda: make_spec("uwm").stream("vidio"),
            "uwm: stream 'vidio' is unknown (has: video, state, action, register)",
        ),
        (lambda: make_spec("uwm").mode("plan"), "uwm: mode 'plan' is unknown (has: policy, joint, video, world_model"),
    ],
)
def test_what_is_not_there_is_named(call, message):
    with pytest.raises(ValueError, match=r"is unknown|is not in|has no") as error:
        call()
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_says_what_it_keeps_and_what_differs(name):
    described = SYSTEMS[name].make.__doc__ or ""
    if name not in ("reactive", "h_bridge"):  # no paper's system
        assert "Kept:" in described
        assert "Differs:" in described
    assert set(SYSTEMS[name].sizes) >= {"debug", "small", *SYSTEMS[name].interfaces}


def test_changes_reach_size_spec_and_options():
    spec = make_spec("fast_wam", layers=2, context_noise=0.1, coupling="mutual", unroll=1)
    assert (spec.num_layers, spec.context_noise, spec.unroll) == (2, 0.1, 1)
    assert "mutual" in str(spec.visibility)
