"""Vision encoders against the originals: outputs at tiny sizes, names and shapes of tensors at published sizes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.golden import load_golden, load_structure, relative_error

from wam_jax.encoders import dinov2, dinov3, perception, siglip2, vit, vjepa2
from wam_jax.encoders.vit import LayersConfig
from wam_jax.nn.module import Definition
from wam_jax.weights import mapping

TINY = LayersConfig(32, 2, 2, 48)
NARROW = dataclasses.replace(TINY, width=24, layer_scale=True)
GATED = {"activation": "swiglu"}
DINOV3 = dataclasses.replace(TINY, epsilon=1e-5, layer_scale=True, biases=frozenset({"query", "value"}))
PERCEPTION = dataclasses.replace(TINY, epsilon=1e-5)
SIGLIP2 = LayersConfig(24, 2, 2, 40, activation="gelu_tanh")


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model as its golden has it, and how many of its tokens come before the patches."""

    definition: Definition[Any]
    weight_map: mapping.WeightMap
    unused: tuple[str, ...]
    num_first: int = 0


def case(encoder: Any, config: Any, num_first: int = 0) -> Case:
    return Case(encoder.definition(config), encoder.weight_map(config), encoder.UNUSED, num_first)


def siglip2_vision(config: siglip2.VisionConfig) -> Case:
    return Case(siglip2.vision_definition(config), siglip2.vision_weight_map(config), siglip2.VISION_UNUSED)


def siglip2_text(config: siglip2.TextConfig) -> Case:
    return Case(siglip2.text_definition(config), siglip2.text_weight_map(config), siglip2.TEXT_UNUSED)


CASES = {
    "dinov2": case(dinov2, dinov2.Config(NARROW, 4, 16, 2), 3),
    "dinov2_swiglu": case(dinov2, dinov2.Config(dataclasses.replace(NARROW, mlp_width=32, **GATED), 4, 16, 2), 3),
    "dinov3": case(dinov3, dinov3.Config(DINOV3, 4, 2), 3),
    "dinov3_gated": case(dinov3, dinov3.Config(dataclasses.replace(DINOV3, biases=frozenset(), **GATED), 4, 2), 3),
    "siglip2": siglip2_vision(siglip2.VisionConfig(SIGLIP2, 4, 18)),
    "perception": case(perception, perception.Config(dataclasses.replace(PERCEPTION, mlp_width=64), 4, 16), 1),
    "perception_giant": case(
        perception, perception.Config(dataclasses.replace(PERCEPTION, layer_scale=True), 4, 16, class_token=False)
    ),
    "vjepa2": case(vjepa2, vjepa2.Config(TINY, 16, 4, 2)),
}
SIGLIP2_TEXT = siglip2_text(siglip2.TextConfig(dataclasses.replace(SIGLIP2, width=32), 30, 64))


def load(case: Case, golden: str) -> Any:
    return mapping.load(case.weight_map, case.definition.shapes(), load_golden(golden).weights, case.unused)


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_originals(name: str) -> None:
    case, golden = CASES[name], load_golden(name)
    params = load(case, name)
    features = jax.jit(lambda params, pixels: case.definition.bind(params)(pixels))
    for key in golden.inputs.keys() - {"text"}:
        got, wanted = features(params, golden.inputs[key]), golden.outputs[key][:, case.num_first :]
        assert relative_error(np.reshape(got, wanted.shape), wanted) < 1e-5, key
        patch = 4
        assert got.shape[-3:-1] == tuple(pixels // patch for pixels in golden.inputs[key].shape[-3:-1])


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "perception"])
def test_tokens_have_the_class_token_and_registers_first(name: str) -> None:
    case, golden = CASES[name], load_golden(name)
    tokens = jax.jit(lambda params, pixels: case.definition.bind(params).tokens(pixels))
    assert relative_error(tokens(load(case, name), golden.inputs["native"]), golden.outputs["native"]) < 1e-5


def test_sentence_features_equal_the_original() -> None:
    golden = load_golden("siglip2")
    model = SIGLIP2_TEXT.definition.bind(load(SIGLIP2_TEXT, "siglip2"))
    assert relative_error(jax.jit(model)(golden.inputs["text"]), golden.outputs["text"]) < 1e-5
    with pytest.raises(ValueError, match="65 tokens a sentence, at most 64 fit"):
        model(jnp.zeros((1, 65), jnp.int32))


STRUCTURES = {
    **{f"dinov2_{size}": case(dinov2, config) for size, config in dinov2.SIZES.items()},
    **{f"dinov3_{size}": case(dinov3, config) for size, config in dinov3.SIZES.items()},
    **{f"perception_{size}": case(perception, config) for size, config in perception.SIZES.items()},
    **{f"vjepa2_{size}": case(vjepa2, vjepa2.SIZES[size]) for size in ("vitl_256", "vith_256", "vitg_256")},
}
SIGLIP2_STRUCTURES = (
    "base_patch16_224", "base_patch32_256", "large_patch16_256", "so400m_patch14_384", "so400m_patch16_256",
    "giant_opt_patch16_256",
)  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_published_tensor_is_mapped(name: str) -> None:
    case = STRUCTURES[name]
    mapping.check(case.weight_map, case.definition.shapes(), load_structure(name), case.unused)


@pytest.mark.parametrize("size", SIGLIP2_STRUCTURES)
def test_every_published_tensor_of_both_towers_is_mapped(size: str) -> None:
    towers = siglip2_vision(siglip2.VISION_SIZES[size]), siglip2_text(siglip2.TEXT_SIZES[size])
    published = load_structure(f"siglip2_{size}")
    for tower in towers:
        mapping.check(tower.weight_map, tower.definition.shapes(), published, tower.unused)


def test_a_longer_or_larger_clip_gives_a_longer_or_larger_grid() -> None:
    definition = CASES["vjepa2"].definition

    def grid(*clip: int) -> tuple[int, ...]:
        pixels = jax.ShapeDtypeStruct((1, *clip, 3), jnp.float32)
        return jax.eval_shape(lambda params, pixels: definition.bind(params)(pixels), definition.shapes(), pixels).shape

    assert grid(8, 16, 24) == (1, 4, 4, 6, 32)
    assert grid(5, 16, 16) == grid(4, 17, 19) == (1, 2, 4, 4, 32)


def test_a_picture_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="3×16 pixels hold no patch of 4×4"):
        vit.patches(jnp.zeros((1, 3, 16, 3)), 4)
