"""A tokenizer's loss: each part trains what it should, and what has no weight is not there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.encoders.frozen import FrozenEncoder, Preprocessing
from wam_jax.nn.module import Linear, define
from wam_jax.objectives.reconstruction import (
    Judges,
    ReconstructionConfig,
    define_in_training,
    reconstruction_loss,
)
from wam_jax.tokenizers.visual import TokenizerConfig

CONFIG = TokenizerConfig(
    image_size=(16, 16), patch_size=8, tubelet=2, window=2, channels=4, width=16, num_heads=2,
    encoder_layers=1, decoder_layers=1,
)  # fmt: skip
FEATURES = 5


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def teacher() -> FrozenEncoder:
    """A linear map of each pixel of a 4 x 4 picture."""
    definition = define(lambda rngs: Linear(3, FEATURES, (None, None), rngs))
    preprocessing = Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3, "bilinear")
    return FrozenEncoder(definition.init(jax.random.key(3)), definition, preprocessing)


def loss_and_gradient(weights, judges, images, step=0, seed=0):
    width = FEATURES if judges.teacher is not None else 0
    params = define_in_training(CONFIG, weights, width).init(jax.random.key(seed))

    @jax.jit
    def run(params, judges, images, step):
        def loss(params):
            return reconstruction_loss(CONFIG, weights, params, judges, images, jax.random.key(1), step)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, metrics), gradient = run(params, judges, images, jnp.asarray(step))
    return float(value), {name: float(x) for name, x in metrics.items()}, gradient


def norm(tree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def test_what_has_no_weight_is_not_there(images):
    _, metrics, gradient = loss_and_gradient(ReconstructionConfig(), Judges(), images)
    assert set(gradient) == {"tokenizer"}
    assert set(metrics) == {"psnr", "latent_scale"}
    assert norm(gradient) > 0


def test_alignment_trains_the_encoder_and_the_projector(images, teacher):
    only = ReconstructionConfig(l1=0.0, l2=0.0, latent_scale=0.0, alignment=1.0, alignment_share=0.5)
    loss, metrics, gradient = loss_and_gradient(only, Judges(teacher=teacher), images)
    assert loss == pytest.approx(metrics["alignment"])
    assert min(norm(gradient["projector"]), norm(gradient["tokenizer"]["encoder"])) > 1e-4
    assert norm(gradient["tokenizer"]["decoder"]) == 0
    changed = images.copy()
    changed[2:] = 255 - changed[2:]  # the teacher looks at half of the clips
    assert loss_and_gradient(only, Judges(teacher=teacher), changed)[0] == pytest.approx(loss)


def test_va_vae_is_bounded_by_its_margins(images, teacher):
    weights = ReconstructionConfig(alignment=1.0, alignment_kind="va_vae")
    _, metrics, _ = loss_and_gradient(weights, Judges(teacher=teacher), images)
    assert 0 < metrics["alignment"] < 2.5  # 0.5 + 1 at most for cosines, 2 - 0.25 for distances


def test_the_discriminator_waits_for_its_first_step(images):
    weights = ReconstructionConfig(
        adversarial=0.1, adversarial_start=5, discriminator_width=8, discriminator_halvings=1
    )
    _, before, waiting = loss_and_gradient(weights, Judges(), images, step=4)
    _, after, playing = loss_and_gradient(weights, Judges(), images, step=5)
    assert norm(waiting["discriminator"]) == before["adversarial/weight"] == 0
    assert min(norm(playing["discriminator"]), after["adversarial/weight"]) > 0
    plain = loss_and_gradient(ReconstructionConfig(), Judges(), images)[2]["tokenizer"]
    np.testing.assert_allclose(waiting["tokenizer"]["latent_in"]["kernel"], plain["latent_in"]["kernel"], atol=1e-6)
    difference = jax.tree.map(jnp.subtract, playing["tokenizer"], waiting["tokenizer"])
    assert norm(difference) > 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment_kind": "mse"}, r"alignment_kind='mse' is unknown \(has: pooled_l2, va_vae\)"),
        ({"alignment_share": 0.0}, r"alignment_share must be in \(0, 1\], got 0.0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ReconstructionConfig(), **fields)
