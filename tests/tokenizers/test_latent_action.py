"""Latent actions: transport is exact where it can be, bottlenecks do as their papers say, and a collapse is told."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wam_jax.nn.vector_quantizer import COMMITMENT, TEMPERATURE, VectorQuantizer, nearest, straight_through
from wam_jax.sharding import make_mesh, param_shardings
from wam_jax.tokenizers.latent_action import (
    FrozenLatentActions,
    LatentActionConfig,
    consecutive_pairs,
    define_latent_actions,
    latent_action_statistics,
)
from wam_jax.tokenizers.latent_action_bottlenecks import Gaussian, kl
from wam_jax.tokenizers.latent_action_dynamics import Transport
from wam_jax.tokenizers.latent_action_usage import codebook_report, gaussian_report, usage
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig
from wam_jax.training.losses import Tokenizers, encode_batch, latent_action_loss
from wam_jax.types import Batch, Text

ROWS, COLUMNS, CHANNELS = 4, 5, 3
CONFIG = LatentActionConfig(latent_shape=(ROWS, COLUMNS, CHANNELS), cameras=2, hidden=16)
MOVES = [(1, 0), (-1, 0), (0, 1), (0, -1)]


def config(**changes) -> LatentActionConfig:
    return dataclasses.replace(CONFIG, **changes)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(config: LatentActionConfig):
    """Random everywhere: at its start a model is close to one that does nothing."""
    leaves, tree = jax.tree.flatten(define_latent_actions(config).shapes())
    return tree.unflatten([jnp.asarray(normal(*leaf.shape, seed=i)) for i, leaf in enumerate(leaves)])


def zero_params(config: LatentActionConfig):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), define_latent_actions(config).shapes())


@jax.jit
def encode(frozen: FrozenLatentActions, *latents_and_mask) -> jax.Array:
    return frozen.encode(*latents_and_mask)


def translated(pictures: np.ndarray, move: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The pictures [B, h, w, C] moved by whole rows and columns, and which tokens [h, w] came from inside."""
    moved = np.full_like(pictures, np.nan)
    rows, columns = pictures.shape[1:3]
    for row in range(rows):
        for column in range(columns):
            source = row - move[0], column - move[1]
            if 0 <= source[0] < rows and 0 <= source[1] < columns:
                moved[:, row, column] = pictures[:, source[0], source[1]]
    return moved, ~np.isnan(moved[0, ..., 0])


@pytest.mark.parametrize("move", [*MOVES, (0, 0), (-2, 3), (3, -4)])
def test_transport_can_be_an_exact_translation(move):
    params = zero_params(CONFIG)
    # A peak is had by turning the query of each frequency back by the displacement.
    turns = [np.pi * (np.arange(size) + 0.5) / size * by for size, by in zip((ROWS, COLUMNS), move, strict=True)]
    angles = np.concatenate(turns)
    params["forward"]["query"]["bias"] = 10.0 * jnp.concatenate([jnp.cos(angles), -jnp.sin(angles)])
    params["forward"]["key"]["bias"] = 10.0 * jnp.concatenate([jnp.ones(len(angles)), jnp.zeros(len(angles))])
    pictures = normal(6, ROWS, COLUMNS, CHANNELS)  # three frames of two cameras
    model = define_latent_actions(CONFIG).bind(params)
    predicted = model.predict(jnp.asarray(pictures.reshape(3, -1, CHANNELS)), jnp.zeros((3, CONFIG.size)))
    expected, inside = translated(pictures, move)
    np.testing.assert_allclose(np.asarray(predicted).reshape(pictures.shape)[:, inside], expected[:, inside], atol=1e-6)


def test_rows_of_the_transport_sum_to_1_and_stay_in_their_camera():
    model = define_latent_actions(CONFIG).bind(random_params(CONFIG))
    before, latent_action = jnp.asarray(normal(3, 2 * 20, CHANNELS)), jnp.asarray(normal(3, 4))
    assert isinstance(model.forward, Transport)
    matrix = model.forward.matrix(before, latent_action)
    assert matrix.shape == (3, 2, 20, 20)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(-1), 1, atol=1e-5)
    moved, residual = model.change(before, latent_action)
    blocks = np.asarray(before).reshape(3, 2, 20, CHANNELS)
    np.testing.assert_allclose(moved, (np.asarray(matrix) @ blocks).reshape(moved.shape), atol=1e-4)
    np.testing.assert_allclose(model.predict(before, latent_action), moved + residual, atol=1e-6)


def test_transport_moves_alike_everywhere():
    """Two scenes on an empty table, one the other moved: so are their predictions, where no border is near."""
    large = LatentActionConfig(latent_shape=(5, 5, CHANNELS), hidden=16)
    model = define_latent_actions(large).bind(jax.tree.map(lambda x: 0.3 * x, random_params(large)))
    scene = np.zeros((1, 5, 5, CHANNELS), np.float32)
    scene[:, 2, 2] = normal(1, CHANNELS)
    moved, inside = translated(scene, (1, 0))
    scenes = jnp.asarray(np.concatenate([scene, np.nan_to_num(moved)]).reshape(2, 25, CHANNELS))
    matrix = jax.jit(lambda x: model.forward.matrix(x, jnp.ones((2, 4))))(scenes)
    logits = np.log(np.asarray(matrix)).reshape(2, 5, 5, 5, 5)
    # Differences of logits within a row, which the softmax leaves: from the object or from the empty table before it.
    here, there = (
        logits[0, 1:4, 1:4, 2, 2] - logits[0, 1:4, 1:4, 1, 2],
        logits[1, 2:5, 1:4, 3, 2] - logits[1, 2:5, 1:4, 2, 2],
    )
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-3)
    assert inside.sum() == 20


def test_forward_model_learns_the_translation_it_is_told():
    """Random tokens, so that nothing but moving the right ones predicts them."""
    small = LatentActionConfig(latent_shape=(4, 4, 4), hidden=32)
    definition = define_latent_actions(small)
    source, inside = zip(*(translated(np.arange(16.0).reshape(1, 4, 4, 1), move) for move in MOVES), strict=True)
    source = jnp.asarray(np.nan_to_num(np.stack(source)).reshape(4, 16), jnp.int32)
    inside = jnp.asarray(np.stack(inside).reshape(4, 16, 1))

    def error(params, key):
        before = jax.random.normal(key, (32, 16, 4))
        which = jnp.arange(32) % 4
        after = jnp.take_along_axis(before, source[which][..., None], 1)
        predicted = definition.bind(params).predict(before, jnp.eye(4)[which])
        return jnp.mean((predicted - after) ** 2, where=inside[which])

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    def step(carry, key):
        params, state = carry
        loss, grads = jax.value_and_grad(error)(params, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    params = definition.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 400)
    _, losses = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), keys))(params)
    assert losses[0] > 1
    assert losses[-10:].max() < 1e-3


def test_straight_through_is_the_value_of_one_and_the_gradient_of_the_other():
    x, quantized, weights = (jnp.asarray(normal(5, 4, seed=seed)) for seed in range(3))
    np.testing.assert_allclose(straight_through(x, quantized), quantized, atol=1e-6)
    gradients = jax.grad(lambda x, q: jnp.sum(weights * straight_through(x, q)), (0, 1))(x, quantized)
    np.testing.assert_array_equal(gradients[0], weights)
    assert not gradients[1].any()


def test_vectors_become_the_nearest_code_by_its_losses():
    quantizer, x = VectorQuantizer(7, 4, nnx.Rngs(0)), normal(20, 4)
    vectors = np.asarray(quantizer.vectors())
    np.testing.assert_allclose((vectors**2).mean(-1), 1, rtol=1e-5)
    sphere = x / np.sqrt((x**2).mean(-1, keepdims=True))
    distances = ((sphere[:, None] - vectors) ** 2).mean(-1)
    quantized = quantizer(jnp.asarray(x))
    np.testing.assert_array_equal(quantized.codes, distances.argmin(-1))
    np.testing.assert_allclose(quantized.values, vectors[distances.argmin(-1)], atol=1e-6)
    np.testing.assert_allclose(quantized.loss, (1 + COMMITMENT) * distances.min(-1), rtol=1e-4)
    np.testing.assert_array_equal(nearest(jnp.asarray(vectors), jnp.asarray(vectors)), np.arange(7))


def test_information_is_that_between_vectors_and_the_codes_drawn_for_them():
    quantizer, x, counted = VectorQuantizer(7, 4, nnx.Rngs(0)), normal(20, 4), np.arange(20) < 15
    sphere = x / np.sqrt((x**2).mean(-1, keepdims=True))
    drawn = np.exp(-((sphere[:, None] - np.asarray(quantizer.vectors())) ** 2).mean(-1) / TEMPERATURE)
    drawn = (drawn / drawn.sum(-1, keepdims=True))[:15]
    expected = np.mean(np.sum(drawn * np.log(drawn / drawn.mean(0)), -1))  # KL of each from the mean of all
    assert float(quantizer.information(jnp.asarray(x), jnp.asarray(counted))) == pytest.approx(expected, rel=1e-4)
    same = jnp.broadcast_to(x[0], x.shape)
    assert float(quantizer.information(same, jnp.asarray(counted))) == pytest.approx(0, abs=1e-5)
    assert float(quantizer.information(jnp.asarray(x), jnp.zeros(20, bool))) == 0


def test_kl_is_the_integral():
    mean, variance = 0.7, 0.3
    x = np.linspace(-12, 12, 200_001)
    density, standard = (
        np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for m, v in ((mean, variance), (0.0, 1.0))
    )
    integrand = np.where(density > 0, density * np.log(np.maximum(density, 1e-300) / standard), 0)
    assert float(kl(jnp.float32(mean), jnp.log(variance))) == pytest.approx(integrand.sum() * (x[1] - x[0]), rel=1e-4)
    assert float(kl(jnp.float32(0), jnp.float32(0))) == 0


def test_gaussian_is_its_mean_in_use_and_spreads_around_it_in_training():
    gaussian = Gaussian(1, beta=0.5)
    x = jnp.broadcast_to(jnp.array([2.0, np.log(0.25)]), (20_000, 2))
    np.testing.assert_array_equal(gaussian(x), jnp.full((20_000, 1), 2.0))
    samples, penalty = gaussian.sample(x, jnp.arange(20_000) > 5, jax.random.key(0))
    assert float(samples.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.02)
    assert float(penalty) == pytest.approx(0.5 * 0.5 * (4 + 0.25 - 1 - np.log(0.25)), rel=1e-4)


def test_a_collapsed_codebook_is_reported_and_a_used_one_is_not():
    collapsed = codebook_report(np.full(500, 3), 64)
    assert collapsed.collapsed
    assert collapsed.numbers["codebook_perplexity"] == pytest.approx(1.0)
    assert collapsed.summary.startswith("codebook: 1 of 64 codes occur, perplexity 1.0, COLLAPSED (below 6.4); set ")
    used = codebook_report(np.arange(640) % 64, 64)
    assert not used.collapsed
    assert used.numbers["codebook_perplexity"] == pytest.approx(64)
    assert used.summary == "codebook: 64 of 64 codes occur, perplexity 64.0"
    assert not codebook_report(np.arange(10), 1000).collapsed  # ten pairs cannot use more than ten codes
    assert codebook_report(np.array([0] * 99 + [1]), 2).collapsed


def test_a_collapsed_posterior_is_reported_and_a_used_one_is_not():
    collapsed = gaussian_report(0.05 * normal(400, 3), np.zeros((400, 3)), beta=0.1)
    assert collapsed.collapsed
    assert collapsed.summary.endswith("COLLAPSED; set latent_action.beta lower than 0.1")
    used = gaussian_report(normal(400, 3) * [1.0, 0.01, 1.0], np.full((400, 3), -4.0), beta=0.1)
    assert not used.collapsed
    assert used.numbers["active_units"] == 2
    assert used.summary.startswith("2 of 3 means vary (variance above 0.01), KL ")


@pytest.mark.parametrize("kind", ["transport", "vq", "vae"])
def test_a_model_that_ignores_its_latent_action_is_reported(kind):
    """Zero parameters infer the same of every pair."""
    chosen, latents = config(kind=kind), normal(3, 4, 2, ROWS, COLUMNS, CHANNELS)
    mask = np.ones((3, 4, 2), bool)
    mask[0, 2] = False  # both pairs with it
    found = usage(chosen, zero_params(chosen), latents, mask)
    assert found.collapsed
    assert found.numbers["pairs"] == 7
    assert found.numbers["shuffled_ratio"] == pytest.approx(1)
    assert "with another pair's latent action 1.00 × that, so it is IGNORED (below 1.05)" in found.summary
    assert json.loads(json.dumps(found.numbers)) == found.numbers


def test_usage_of_random_parameters_is_that_of_its_parts():
    chosen, latents = config(kind="vq", codebook=8), normal(3, 4, 2, ROWS, COLUMNS, CHANNELS)
    params = random_params(chosen)
    found = usage(chosen, params, latents)
    before, after, _ = (x.reshape(-1, *x.shape[2:]) for x in consecutive_pairs(chosen, latents))
    infer = jax.jit(lambda p, b, a: define_latent_actions(chosen).bind(p).infer(b, a))
    predict = jax.jit(lambda p, b, x: define_latent_actions(chosen).bind(p).predict(b, x))
    latent_actions = infer(params, before, after)
    error = float(jnp.mean((predict(params, before, latent_actions) - after) ** 2))
    assert found.numbers["forward_error"] == pytest.approx(error, rel=1e-4)
    assert found.numbers["error_ratio"] == pytest.approx(error / float(jnp.mean((before - after) ** 2)), rel=1e-4)
    np.testing.assert_allclose(found.numbers["std"], latent_actions.std(0), rtol=1e-3, atol=1e-5)
    assert sum(found.numbers["code_counts"]) == 9


@pytest.fixture(scope="module")
def frozen() -> FrozenLatentActions:
    return latent_action_statistics(CONFIG, random_params(CONFIG), normal(70, 3, 2, ROWS, COLUMNS, CHANNELS))


def test_frozen_latent_actions_have_mean_0_and_variance_1(frozen):
    latents = normal(70, 3, 2, ROWS, COLUMNS, CHANNELS)
    encoded = encode(frozen, latents)
    assert (encoded.shape, encoded.dtype) == ((70, 2, 4), jnp.float32)
    np.testing.assert_allclose(encoded.mean((0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(encoded.std((0, 1)), 1, atol=1e-2)
    model = define_latent_actions(CONFIG).bind(frozen.params)
    frames = jnp.asarray(latents[5].reshape(3, -1, CHANNELS))
    expected = (model.infer(frames[:2], frames[1:]) - frozen.mean) / frozen.std
    np.testing.assert_allclose(encoded[5], expected, atol=1e-3)
    np.testing.assert_allclose(
        encode(frozen, latents.reshape(7, 10, *latents.shape[1:])).reshape(70, 2, 4), encoded, atol=1e-3
    )


def test_what_is_masked_changes_neither_statistics_nor_the_other_latent_actions(frozen):
    latents = normal(4, 3, 2, ROWS, COLUMNS, CHANNELS)
    mask = np.ones((4, 3, 2), bool)
    mask[0, :, 1] = mask[1, 2] = False
    garbage = np.where(mask[..., None, None, None], latents, np.nan)
    statistics = [latent_action_statistics(CONFIG, frozen.params, x, mask) for x in (latents, garbage)]
    np.testing.assert_array_equal(statistics[0].mean, statistics[1].mean)
    np.testing.assert_array_equal(statistics[0].std, statistics[1].std)
    np.testing.assert_array_equal(encode(frozen, latents, mask), encode(frozen, garbage, mask))


def test_no_gradient_passes_through_frozen_latent_actions(frozen):
    latents = jnp.asarray(normal(1, 2, 2, ROWS, COLUMNS, CHANNELS))
    gradients = jax.grad(lambda f, x: encode(f, x).sum(), (0, 1))(frozen, latents)
    assert not any(leaf.any() for leaf in jax.tree.leaves((gradients[0].params, gradients[1])))


def test_a_dimension_that_hardly_varies_is_not_blown_up():
    params = random_params(CONFIG)
    out = params["inverse"]["out"]
    out["kernel"] = out["kernel"].at[:, 2].set(1e-6)
    frozen = latent_action_statistics(CONFIG, params, normal(20, 3, 2, ROWS, COLUMNS, CHANNELS))
    assert float(frozen.std[2]) == pytest.approx(0.01 * float(frozen.std.max()), rel=1e-3)


def test_pairs_are_of_consecutive_frames_cameras_first():
    latents = np.arange(2 * 3 * 2 * 20 * 3, dtype=np.float32).reshape(2, 3, 2, ROWS, COLUMNS, CHANNELS)
    mask = np.ones((2, 3, 2), bool)
    mask[1, 2, 0] = False
    before, after, there = consecutive_pairs(CONFIG, latents, mask)
    np.testing.assert_array_equal(there, [[[True] * 2] * 2, [[True, True], [False, True]]])
    np.testing.assert_array_equal(before[0, 1], latents[0, 1].reshape(40, 3))
    np.testing.assert_array_equal(after[0, 1], latents[0, 2].reshape(40, 3))
    assert not before[1, 1, :20].any()
    np.testing.assert_array_equal(after[1, 1, 20:], latents[1, 2, 1].reshape(20, 3))


def batch_of(latents: np.ndarray, image_mask: np.ndarray, episode: np.ndarray | None = None) -> Batch:
    """Nothing but latents."""
    nothing = np.zeros((len(latents), 0, 1), np.float32)
    rest = dict.fromkeys(("actions", "action_mask", "proprio", "proprio_mask"), nothing)
    text = Text(features=nothing, mask=nothing[..., 0])
    return Batch(
        images=None, latents=latents, image_mask=image_mask, text=text, embodiment=np.zeros(len(latents), int),
        episode=episode, **rest,
    )  # fmt: skip


@pytest.fixture(scope="module")
def packed_and_apart() -> tuple[Batch, Batch]:
    """A row of two episodes, of 3 frames and of 2; and each in a row of its own."""
    latents, there = normal(1, 5, 2, ROWS, COLUMNS, CHANNELS), np.ones((2, 3, 2), bool)
    there[1, 2] = False
    apart = np.concatenate([latents[:, :3], latents[:, [3, 4, 4]]])
    row = batch_of(latents, np.ones((1, 5, 2), bool), np.array([[0, 0, 0, 1, 1]]))
    return row, batch_of(apart, there)


def test_packed_episodes_are_learned_from_as_each_alone(packed_and_apart):
    """Nothing is learned of what leads from one to the next."""
    params, loss = random_params(CONFIG), latent_action_loss(define_latent_actions(CONFIG))
    run = jax.jit(lambda batch: loss(params, None, batch, jax.random.key(0), jnp.zeros(())))
    (packed, numbers), (apart, expected) = (run(batch) for batch in packed_and_apart)
    assert float(packed) == pytest.approx(float(apart), rel=1e-4)
    assert float(numbers["repeat_error"]) == pytest.approx(float(expected["repeat_error"]), rel=1e-5)


def test_between_packed_episodes_there_is_no_latent_action(frozen, packed_and_apart):
    tokenizers = Tokenizers(FrozenTokenizer({}, jnp.zeros(3), jnp.ones(3), TokenizerConfig()), frozen)
    run = jax.jit(lambda batch: encode_batch(tokenizers, batch)[0].streams["latent_action"])
    packed, apart = (run(batch) for batch in packed_and_apart)
    np.testing.assert_array_equal(packed.mask, [[True, True, False, True]])
    np.testing.assert_allclose(packed.values[packed.mask], apart.values[apart.mask], atol=1e-3)
    moved = packed_and_apart[0].latents.copy()
    moved[:, 3:] += 1  # what is between is not inferred from the other episode
    other = run(dataclasses.replace(packed_and_apart[0], latents=moved))
    np.testing.assert_array_equal(other.values[:, 2], packed.values[:, 2])


@pytest.mark.parametrize("kind", ["transport", "vq", "vae"])
def test_every_parameter_names_one_axis_a_dimension(kind):
    definition = define_latent_actions(config(kind=kind))
    assert param_shardings(make_mesh({"fsdp": 2}, jax.devices()[:2]), definition.axes(), definition.shapes())


def test_wrong_shapes_and_settings_are_refused():
    with pytest.raises(
        ValueError,
        match=r"^latents of shape \(1, 3, 2, 5, 4, 3\) are not \[..., T, V, h, w, C\] with two frames or more and "
        r"V, h, w, C = \(2, 4, 5, 3\); set latent_action.latent_shape and cameras$",
    ):
        consecutive_pairs(CONFIG, np.zeros((1, 3, 2, COLUMNS, ROWS, CHANNELS)))
    with pytest.raises(ValueError, match="with two frames or more"):
        consecutive_pairs(CONFIG, np.zeros((1, 1, 2, ROWS, COLUMNS, CHANNELS)))
    model = define_latent_actions(CONFIG).bind(zero_params(CONFIG))
    with pytest.raises(
        ValueError,
        match=r"^tokens of shape \(1, 20, 3\) are not 40 tokens \(2 cameras of 4 x 5\) of 3 channels; set ",
    ):
        model.predict(jnp.zeros((1, 20, 3)), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"^latent_action.kind='nsvq' is unknown \(has: transport, vq, vae\)$"):
        config(kind="nsvq")
    with pytest.raises(ValueError, match=r"^latent_action.size=1 is too few for 'vq'; set 2 or more$"):
        config(kind="vq", size=1)
    with pytest.raises(ValueError, match=r"^latent_action.hidden=20 does not divide by 8$"):
        config(hidden=20)
    with pytest.raises(ValueError, match="no pair of consecutive frames is there"):
        usage(CONFIG, zero_params(CONFIG), np.zeros((1, 2, 2, 4, 5, 3)), np.zeros((1, 2, 2), bool))
