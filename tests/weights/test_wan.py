"""Wan's transformers are computed exactly by the trunk, every published tensor has its place, and systems start so."""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from parity.golden import Arrays, load_golden, load_structure, relative_error

from wam_jax.nn.module import define, paths
from wam_jax.sharding import make_mesh
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.source import Start, start_from
from wam_jax.training.trainer import Trainer
from wam_jax.types import Text
from wam_jax.wam.model import Known, Noisy, WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.weights import mapping
from wam_jax.weights.files import write_safetensors
from wam_jax.weights.interpolate import resize
from wam_jax.weights.wan import WanTransformer, wan_map
from wam_jax.zoo import make_spec
from wam_jax.zoo.registry import published
from wam_jax.zoo.sizes import Size

BATCH, FRAMES, ROWS, COLUMNS = 2, 3, 4, 6
TINY = Size(
    layers=2, heads=2, head_dim=12, video=24, video_ffn=40, action=16, action_ffn=20, action_layers=2,
    dtype="float32", remat="none",
)  # fmt: skip


def make_interface(frames: int, text_tokens: int) -> Interface:
    return Interface(
        latent_shape=(ROWS, COLUMNS, 4), cameras=1, frame_steps=tuple(range(frames)), action_horizon=4, action_size=3,
        proprio_size=5, text_width=16, text_tokens=text_tokens,
    )  # fmt: skip


def define_model(spec, interface):
    return define(lambda rngs: WorldActionModel(spec, interface, rngs))


def make_wan(frames: int, text_tokens: int, image_width: int = 0, given_channels: int = 0):
    sizes = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(Size)}
    spec = make_spec("wan", "2.1-1.3b", **sizes)
    spec = dataclasses.replace(
        spec,
        experts=(dataclasses.replace(spec.experts[0], image_width=image_width),),
        streams=(dataclasses.replace(spec.streams[0], given_channels=given_channels),),
    )
    return define_model(spec, make_interface(frames, text_tokens))


def begin(definition, checkpoint, action="new") -> Start:
    """The model with everything in the table from the checkpoint, and the rest at random."""
    mesh = make_mesh({}, jax.devices()[:1])
    trainer = Trainer(
        definition=definition, loss=wam_loss(definition), config=OptimizerConfig(steps=1), mesh=mesh, seed=3
    )
    return start_from(WanTransformer(definition, checkpoint, action), trainer)


def filled(definition, checkpoint):
    return begin(definition, checkpoint).params


def make_known(text: np.ndarray, frames: np.ndarray, **more) -> Known:
    """Text features (zeros pad), clean frames [B, t, h, w, C]."""
    return Known(
        values={"video": jnp.asarray(frames)[:, :, None]},
        present={},
        counted={},
        proprio=jnp.zeros((BATCH, 1, 5)),
        text=Text(features=text, mask=text.any(-1)),
        embodiment=jnp.zeros(BATCH, int),
        **more,
    )


def frames_last(latents: np.ndarray) -> np.ndarray:
    return rearrange(latents, "b c t h w -> b t h w c")


def predict(definition, params, known: Known, noisy: np.ndarray, time: np.ndarray, clean: bool) -> np.ndarray:
    """Velocity of ``noisy`` [B, t, h, w, C], beside the clean first frame or alone, as Wan lays it out."""

    @jax.jit
    def run(params, known, state):
        model = definition.bind(params)
        groups = [g for g in model.layout.needed(["video"]) if clean or not g.clean]
        return model.predict(model.begin(known), groups, known, {"video": state}, ["video"])[0]["video"]

    state = Noisy(values=jnp.asarray(noisy)[:, None, :, None], level=jnp.asarray(time / 1000)[:, None, None])
    return rearrange(np.asarray(run(params, known, state)), "b 1 t 1 h w c -> b c t h w")


@pytest.fixture(scope="module")
def golden():
    return load_golden("wan_golden")


def test_text_to_video_equals_the_original(golden):
    inputs, definition = golden.inputs, make_wan(FRAMES + 1, golden.inputs["text"].shape[1])
    latents = frames_last(inputs["latents"])
    known = make_known(inputs["text"][:, :7], latents[:, :1])
    params = filled(definition, golden.weights)
    got = predict(definition, params, known, latents, inputs["time"], clean=False)
    assert relative_error(got, golden.outputs["text_to_video"]) < 1e-4
    seen = dataclasses.replace(known, text=Text(features=inputs["text"], mask=inputs["text"].any(-1)))
    same = predict(definition, params, seen, latents, inputs["time"], clean=False)
    np.testing.assert_allclose(same, got, atol=1e-6)  # padding is seen whether the caller brings it or not


def test_first_frame_to_video_equals_the_original(golden):
    inputs, definition = golden.inputs, make_wan(FRAMES, golden.inputs["text"].shape[1])
    latents = frames_last(inputs["latents"])
    known = make_known(inputs["text"], latents[:, :1])
    got = predict(definition, filled(definition, golden.weights), known, latents[:, 1:], inputs["time"], clean=True)
    assert relative_error(got, golden.outputs["first_frame_to_video"][:, :, 1:]) < 1e-4


def test_image_to_video_equals_the_original():
    golden = load_golden("wan_i2v_golden")
    inputs, definition = golden.inputs, make_wan(FRAMES + 1, 512, image_width=20, given_channels=6)
    latents = frames_last(inputs["latents"])
    noisy, given = latents[..., :4], np.pad(latents[..., 4:], ((0, 0), (1, 0), *[(0, 0)] * 3))
    known = make_known(
        inputs["text"], noisy[:, :1], given={"video": jnp.asarray(given)[:, :, None]}, image=inputs["image"]
    )
    params = filled(definition, golden.weights)
    got = predict(definition, params, known, noisy, inputs["time"], clean=False)
    assert relative_error(got, golden.outputs["velocity"]) < 1e-4
    nothing = dataclasses.replace(known, given={"video": jnp.zeros_like(known.given["video"])})
    absent = dataclasses.replace(known, given={})
    np.testing.assert_array_equal(
        *(predict(definition, params, k, noisy, inputs["time"], False) for k in (nothing, absent))
    )


def test_weights_come_back_as_they_were(golden):
    definition = make_wan(FRAMES, 12)
    table = wan_map(definition.bind(definition.shapes()).spec)
    back = dict(mapping.export(table, filled(definition, golden.weights)))
    assert back.keys() == golden.weights.arrays.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, golden.weights.arrays[name], err_msg=name)


@pytest.mark.parametrize("names", ["", "_original"])
@pytest.mark.parametrize(
    ("system", "size", "options", "structure"),
    [
        ("wan", "2.1-1.3b", {}, "wan21_t2v_1.3b"),
        ("wan", "2.1-14b", {}, "wan21_t2v_14b"),
        ("wan", "2.1-14b", {"image": True}, "wan21_i2v_14b"),
        ("wan", "2.2-5b", {}, "wan22_ti2v_5b"),
        ("fast_wam", "5b", {}, "wan22_ti2v_5b"),
    ],
)
def test_every_published_tensor_has_its_place(system, size, options, structure, names):
    interface = published(system, size)[1]
    spec = make_spec(system, size, **options)
    shapes = flatten_dict(define_model(spec, interface).shapes())
    table = wan_map(spec, original=bool(names))
    part = {path: shapes.pop(path) for path in flatten_dict(table)}
    mapping.check(table, unflatten_dict(part), load_structure(structure + names))
    new = {"/".join(path) for path in shapes}
    # Of video, a Wan checkpoint lacks only the token that stands for a frame that is missing.
    others = ("trunk/blocks/action/", "conditioning/action/", "text_in/action/", "maps/action/", "maps/state/")
    assert {path for path in new if not path.startswith(others)} == {"maps/video/missing"}
    assert any(path.startswith("trunk/blocks/action/") for path in new) == (system == "fast_wam")


@pytest.fixture(scope="module")
def fast_wam():
    sizes = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(Size)}
    return define_model(make_spec("fast_wam", "5b", **sizes), make_interface(3, 12))


def renamed(checkpoint: Arrays) -> Arrays:
    """The checkpoint under the names of Wan's repositories."""
    spec = make_spec("fast_wam", "5b", layers=2, heads=2, head_dim=12)
    ours, theirs = (flatten_dict(wan_map(spec, original=original)) for original in (False, True))
    arrays = {}
    for path, source in ours.items():
        for layer in range(2 if source.stacked else 1):
            arrays[theirs[path].name.format(layer)] = checkpoint.arrays[source.name.format(layer)]
    return Arrays(arrays)


def test_a_larger_system_starts_from_the_video_expert_and_is_new_elsewhere(golden, fast_wam):
    started = begin(fast_wam, renamed(golden.weights))
    got, wanted = paths(started.params), paths(fast_wam.shapes())
    assert got.keys() == wanted.keys() == {*started.loaded, *started.fresh}
    assert started.unused == ()
    assert all(got[path].shape == wanted[path].shape for path in started.fresh)
    name = "trunk/blocks/video/ffn/up/kernel"
    wanted = golden.weights.arrays["blocks.1.ffn.net.0.proj.weight"].T
    np.testing.assert_array_equal(got[name][1], wanted)
    assert "conditioning/action/first/kernel" in started.fresh


def test_resizing_equals_fast_wam():
    golden = load_golden("wan_resized_golden")
    for name, wanted in golden.outputs.items():
        array = golden.inputs[name]
        inputs = None if array.ndim == 1 else -1  # as torch has it: (outputs, inputs)
        assert relative_error(resize(jnp.asarray(array), wanted.shape, inputs), wanted) < 1e-5, name


def test_the_action_expert_is_interpolated_but_for_its_maps(golden, fast_wam):
    started = begin(fast_wam, golden.weights, "interpolated")
    assert started.fresh
    assert all(path.startswith("maps/") for path in started.fresh)
    blocks = started.params["trunk"]["blocks"]
    wide = golden.weights.arrays["blocks.1.ffn.net.2.weight"]
    wanted = resize(jnp.asarray(wide), (16, 20), -1).T
    np.testing.assert_allclose(blocks["action"]["ffn"]["down"]["kernel"][1], wanted, atol=1e-6)
    scales = [blocks[name]["attention"]["self_attention"]["key_norm"]["scale"] for name in ("video", "action")]
    np.testing.assert_array_equal(*scales)  # heads are alike, so is what is theirs


def test_an_expert_of_another_depth_is_not_interpolated(golden):
    sizes = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(Size)}
    definition = define_model(make_spec("agra", "debug", **{**sizes, "action_layers": 1}), make_interface(3, 12))
    with pytest.raises(ValueError, match="'action' has 1 layers and 'video' 2; interpolated weights need as many"):
        begin(definition, golden.weights, "interpolated")


def test_an_expert_that_actions_share_with_video_is_not_interpolated(golden):
    sizes = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(Size)}
    definition = define_model(make_spec("gigaworld_policy", "debug", **sizes), make_interface(3, 12))
    with pytest.raises(ValueError, match="actions run through expert 'all' itself"):
        begin(definition, golden.weights, "interpolated")


def test_a_checkpoint_of_another_shape_is_refused_by_name(fast_wam):
    i2v = load_golden("wan_i2v_golden").weights
    with pytest.raises(mapping.WeightsMismatch, match=r"patch_embedding\.weight"):
        begin(fast_wam, i2v)


def test_image_inputs_where_nothing_reads_them_are_refused():
    spec = make_spec("fast_wam", "5b")
    blind = dataclasses.replace(spec.experts[1], text=False, image_width=20)
    with pytest.raises(ValueError, match="expert 'action': image_width=20 needs text cross-attention of its own"):
        dataclasses.replace(spec, experts=(spec.experts[0], blind))
    action = dataclasses.replace(spec.streams[2], given_channels=6)
    with pytest.raises(ValueError, match="stream 'action': given_channels=6 lie beside the latents of a frame"):
        dataclasses.replace(spec, streams=(*spec.streams[:2], action))


@pytest.mark.slow
def test_at_full_size_the_host_holds_one_copy_and_eight_devices_an_eighth_each():
    rng = np.random.default_rng(0)
    shapes = load_structure("wan21_t2v_1.3b")
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    with tempfile.TemporaryDirectory() as folder:  # 5.7 GB, which pytest would keep
        write_safetensors(folder, ((name, rng.random(shape, np.float32)) for name, shape in shapes.items()))
        for devices in (1, 8):
            command = [sys.executable, str(Path(__file__).with_name("load_at_full_size.py")), folder, str(devices)]
            memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            assert memory["peak"] < 1.3 * size
            assert memory["params"] == pytest.approx(size, rel=1e-4)
            assert max(memory["held"]) < 1.01 * size / devices
