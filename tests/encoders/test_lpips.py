"""LPIPS equals the original, and behaves as a distance that pictures can be trained against."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity.golden import load_golden, load_structure

from wam_jax import assets
from wam_jax.encoders import lpips
from wam_jax.encoders.lpips import Lpips, load_lpips
from wam_jax.weights import mapping

NETS = ("alex", "vgg")
SIZES = {"alex": (33, 40), "vgg": (16, 21)}  # small ones whose halves are odd


@jax.jit
def distance(network: Lpips, a: jax.Array, b: jax.Array) -> jax.Array:
    return network(a, b)


@functools.cache
def random(net: str) -> Lpips:
    rng = np.random.default_rng(0)

    def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "weights":
            return rng.uniform(0, 1, leaf.shape).astype(np.float32)
        return rng.normal(0, 0.3 if leaf.ndim == 1 else np.prod(leaf.shape[:3]) ** -0.5, leaf.shape).astype(np.float32)

    return Lpips(jax.tree_util.tree_map_with_path(values, lpips.definition(net).shapes()), net)


@functools.cache
def published(net: str) -> Lpips:
    try:
        return load_lpips(net)
    except assets.AssetMissing as missing:
        pytest.skip(str(missing))


def pictures(count: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, rows, columns, 3)).astype(np.float32)


# The distance once more, in float64 numpy: (kernel, stride, padding) of a convolution, or the size of a maximum pool;
# "compare" after what is compared.
ALEX = [(11, 4, 2), "compare", 3, (5, 1, 2), "compare", 3, *[(3, 1, 1), "compare"] * 3]
VGG = [*[(3, 1, 1)] * 2, "compare"]
for count in (2, 3, 3, 3):
    VGG += [2, *[(3, 1, 1)] * count, "compare"]


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[h, w, C, size, size] of [H, W, C]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::stride, ::stride]


def in_numpy(network: Lpips, a: np.ndarray, b: np.ndarray) -> float:
    stages = [network.params["stages"][str(index)] for index in range(5)]
    convolutions = [stage["convolutions"][str(i)] for stage in stages for i in range(len(stage["convolutions"]))]
    weights = [stage["weights"] for stage in stages]
    x, y = ((np.float64(image) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450] for image in (a, b))
    total = 0.0
    for step in {"alex": ALEX, "vgg": VGG}[network.net]:
        if step == "compare":
            unit = [z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10) for z in (x, y)]
            total += float((((unit[0] - unit[1]) ** 2) * weights.pop(0)).sum(-1).mean())
        elif isinstance(step, int):
            x, y = (windows(z, step, 2).max((-1, -2)) for z in (x, y))
        else:
            kernel, stride, padding = step
            layer = convolutions.pop(0)
            padded = (np.pad(z, [(padding, padding), (padding, padding), (0, 0)]) for z in (x, y))
            x, y = (
                np.maximum(np.einsum("hwcij,ijcd->hwd", windows(z, kernel, stride), layer["kernel"], optimize=True)
                + layer["bias"], 0)
                for z in padded
            )  # fmt: skip
    assert not convolutions
    assert not weights
    return total


@pytest.mark.parametrize("net", NETS)
def test_the_distance_is_that_of_its_definition(net):
    a, b = pictures(1, *SIZES[net]), pictures(1, *SIZES[net], seed=1)
    expected = in_numpy(random(net), a[0], b[0])
    assert expected > 0.01
    np.testing.assert_allclose(distance(random(net), a, b), [expected], rtol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_published_weights_are_mapped_whole(net):
    mapping.check(lpips.weight_map(net), lpips.definition(net).shapes(), load_structure(f"lpips_{net}"))


@pytest.mark.parametrize("net", NETS)
def test_distances_of_the_published_weights_equal_the_original(net):
    golden = load_golden("lpips_golden")
    for size in (name.removeprefix(f"{net}/") for name in golden.outputs if name.startswith(net)):
        a, b = (golden.inputs[f"{size}/{name}"].astype(np.float32) / 127.5 - 1 for name in "ab")
        np.testing.assert_allclose(distance(published(net), a, b), golden.outputs[f"{net}/{size}"], rtol=1e-4)


def test_a_picture_is_at_no_distance_from_itself_and_further_the_more_noise_it_has():
    network = published("alex")
    a = np.repeat(np.sin(np.indices((64, 64)).sum(0) / 6)[None, :, :, None], 3, axis=-1).astype(np.float32)
    noise = np.random.default_rng(0).normal(size=a.shape)
    noisy = np.concatenate([a + amount * noise for amount in (0, 0.02, 0.1, 0.5)]).astype(np.float32)
    a = np.repeat(a, 4, axis=0)
    found = np.asarray(distance(network, a, noisy))
    assert found[0] == 0
    assert all(near < far for near, far in itertools.pairwise(found))
    assert found[3] < 1.5
    np.testing.assert_allclose(distance(network, noisy, a), found, atol=1e-6)


def test_leading_axes_are_kept_and_pictures_do_not_influence_each_other():
    a, b = (pictures(6, *SIZES["alex"], seed=seed).reshape(2, 3, *SIZES["alex"], 3) for seed in (0, 1))
    together = distance(random("alex"), a, b)
    assert together.shape == (2, 3)
    np.testing.assert_allclose(together[1, 2], distance(random("alex"), a[1:, 2], b[1:, 2])[0], rtol=1e-5)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def slopes(network: Lpips, a: jax.Array, b: jax.Array) -> jax.Array:
    return network(a, b).sum()


def test_gradients_reach_both_pictures_and_no_weight():
    network = random("alex")
    a, b = pictures(1, *SIZES["alex"]), pictures(1, *SIZES["alex"], seed=1)
    value, (of_weights, of_a, of_b) = slopes(network, a, b)
    assert all(not leaf.any() for leaf in jax.tree.leaves(of_weights))
    for gradient, moved in ((of_a, lambda step: (a + step, b)), (of_b, lambda step: (a, b + step))):
        step = 1e-3 * np.sign(gradient)
        ahead, behind = distance(network, *moved(step)), distance(network, *moved(-step))
        np.testing.assert_allclose((ahead - behind)[0] / 2, (step * gradient).sum(), rtol=0.05)
        assert abs(step * gradient).sum() > 1e-3 * value


def test_pictures_in_which_nothing_is_active_have_a_finite_gradient():
    params = jax.tree.map(lambda leaf: leaf, random("alex").params)  # a copy
    params["stages"]["0"]["convolutions"]["0"]["bias"] = np.full(64, -1e3, np.float32)
    a, b = pictures(1, *SIZES["alex"]), pictures(1, *SIZES["alex"], seed=1)
    _, (_, of_a, of_b) = slopes(Lpips(params, "alex"), a, b)
    assert jnp.isfinite(of_a).all()
    assert jnp.isfinite(of_b).all()


def last_features(network: Lpips, images: jax.Array) -> jax.Array:
    for stage in lpips.definition(network.net).bind(network.params).stages:
        images = stage(images)
    return images


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_picture_leaves_one_place_and_smaller_ones_are_refused(net, smallest):
    network, smaller = random(net), smallest - 1
    image = jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32)
    assert jax.eval_shape(last_features, network, image).shape[1:3] == (1, 1)
    message = (
        rf"^pictures of 50 x {smaller} are too small for LPIPS with net='{net}'; .* least {smallest} x {smallest}$"
    )
    with pytest.raises(ValueError, match=message):
        network(np.zeros((50, smaller, 3)), np.zeros((50, smaller, 3)))


def test_what_is_not_a_pair_of_pictures_or_a_network_is_refused():
    with pytest.raises(
        ValueError, match=r"^pictures of shapes \(40, 40, 3\) and \(2, 40, 40, 3\) are not pairs; give two"
    ):
        random("alex")(np.zeros((40, 40, 3)), np.zeros((2, 40, 40, 3)))
    with pytest.raises(KeyError, match=r"LPIPS network 'squeeze' is unknown \(has: alex, vgg\)"):
        load_lpips("squeeze")
