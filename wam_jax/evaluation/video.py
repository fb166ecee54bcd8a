"""How near imagined futures are to the real ones, by picture and as a set; and predicted actions to recorded ones.

PSNR, SSIM and LPIPS compare each predicted picture with the true one. A Fréchet distance compares all predicted
pictures with all true ones, and is named by the network whose features it uses: FVD is that of one network only.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.encoders.lpips import Lpips
from wam_jax.encoders.vjepa2 import VJEPA2
from wam_jax.tokenizers.tokenizer import to_float

_CHUNK = 32  # pictures or clips a compiled call
_ROUNDING = 1 / (12 * 255**2)  # mean squared error of rounding to a byte
_WINDOW, _SIGMA = 11, 1.5  # pixels a side of SSIM's Gaussian window, and its standard deviation
_C1, _C2 = 0.01**2, 0.03**2  # keep SSIM's quotients finite; for pictures in [0, 1]
_NEGATIVE = 1e-6  # of the largest eigenvalue: more than rounding makes of a zero


def video_metrics(
    predicted: UInt8[np.ndarray, "N F V H W 3"],
    true: UInt8[np.ndarray, "N F V H W 3"],
    mask: Bool[np.ndarray, "N F V"],
    lpips: Lpips | None = None,
    features: Mapping[str, FrozenEncoder] | None = None,
) -> dict[str, float]:
    """Every metric of predicted futures, over the pictures that ``mask`` keeps.

    Args:
      predicted, true: N windows of F future frames of V cameras.
      mask: which pictures count: those within their episode.
      lpips: adds ``lpips_alex`` or ``lpips_vgg``.
      features: frozen encoders of pictures or clips by their names; each adds ``frechet_NAME``.

    Returns:
      ``psnr`` (dB), ``ssim``, ``lpips_NET``: the mean over pictures, and over those of one future frame as
      ``psnr/frame_1``, …, where the frame is there at all. ``frechet_NAME``: over all frames and cameras together.
      ``pictures``: how many count.

    Raises:
      ValueError: shapes do not agree, no picture counts, pictures are too small, or there are too few for a Fréchet
        distance.
    """
    if predicted.shape != true.shape or predicted.shape[:3] != mask.shape:
        raise ValueError(
            f"predicted {predicted.shape}, true {true.shape} and mask {mask.shape} do not agree; "
            "give [N, F, V, H, W, 3] twice and [N, F, V]"
        )
    if not mask.any():
        raise ValueError(f"the mask {mask.shape} keeps no picture; evaluate windows with a future within their episode")
    frame = np.nonzero(mask)[1]
    pairs = predicted[mask], true[mask]
    metrics = {
        **_over_time("psnr", _in_chunks(_psnr, *pairs), frame),
        **_over_time("ssim", _in_chunks(_ssim, *pairs), frame),
    }
    if lpips is not None:
        distances = _in_chunks(lambda a, b: _lpips(lpips, a, b), *pairs)
        metrics |= _over_time(f"lpips_{lpips.net}", distances, frame)
    for name, encoder in (features or {}).items():
        metrics[f"frechet_{name}"] = frechet_distance(
            frechet_features(encoder, predicted, mask), frechet_features(encoder, true, mask)
        )
    return {**metrics, "pictures": float(mask.sum())}


def psnr(predicted: UInt8[Array, "*B H W 3"], true: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B"]:
    """Peak signal-to-noise ratio of each picture in dB: -10 log10 of the mean squared error of [0, 1].

    An error below that of rounding to bytes counts as that: equal pictures have 58.9 dB, not infinity.
    """
    difference = (predicted.astype(jnp.float32) - true.astype(jnp.float32)) / 255
    return -10 * jnp.log10(jnp.maximum(jnp.mean(difference**2, (-1, -2, -3)), _ROUNDING))


def ssim(predicted: UInt8[Array, "*B H W 3"], true: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B"]:
    """Structural similarity of each picture (Wang et al. 2004, IEEE Trans. Image Process. 13:600), 1 for equal ones.

    Gaussian windows of 11 x 11 pixels (standard deviation 1.5) that lie within the picture, K1 = 0.01, K2 = 0.03, on
    [0, 1]. Where the paper takes grey pictures, each colour is compared by itself and the three are averaged. The
    picture is not made smaller first.

    Raises:
      ValueError: pictures are smaller than the window.
    """
    if min(predicted.shape[-3:-1]) < _WINDOW:
        rows, columns = predicted.shape[-3:-1]
        raise ValueError(f"pictures of {rows} x {columns} are smaller than SSIM's window of {_WINDOW} x {_WINDOW}")
    # Variances do not depend on where zero is; in the middle, their float32 has the most digits left.
    a, b = (x.astype(jnp.float32) / 255 - 0.5 for x in (predicted, true))
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a, variance_b = _windowed(a * a) - mean_a * mean_a, _windowed(b * b) - mean_b * mean_b
    covariance = _windowed(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    light = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return jnp.mean(light * structure, (-1, -2, -3))


def _windowed(values: Float[Array, "*B H W C"]) -> Float[Array, "*B h w C"]:
    """Gaussian-weighted mean over every window, one axis after the other."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (-3, -2):
        size = values.shape[axis] - _WINDOW + 1
        slices = [jax.lax.slice_in_dim(values, i, i + size, axis=axis % values.ndim) for i in range(_WINDOW)]
        values = functools.reduce(jnp.add, (float(w) * part for w, part in zip(weights, slices, strict=True)))
    return values


def frechet_features(
    encoder: FrozenEncoder, images: UInt8[np.ndarray, "N F V H W 3"], mask: Bool[np.ndarray, "N F V"]
) -> Float[np.ndarray, "M C"]:
    """An encoder's features, averaged over its grid: of each picture that ``mask`` keeps.

    Of an encoder of clips (V-JEPA 2): of each window and camera whose frames all count, averaged over time too.

    Raises:
      ValueError: the encoder takes tokens, or no clip is whole.
    """
    if encoder.preprocessing is None:
        raise ValueError("a Fréchet distance of pictures needs an encoder of pictures; this one takes tokens")
    if not isinstance(encoder.definition.bind(encoder.params), VJEPA2):
        return _in_chunks(lambda pictures: _features(encoder, pictures), images[mask])
    whole = mask.all(1)
    if not whole.any():
        raise ValueError(f"no clip of the mask {mask.shape} has all its frames; use an encoder of pictures")
    return _in_chunks(lambda clips: _features(encoder, clips), images.swapaxes(1, 2)[whole])


def frechet_distance(a: Float[np.ndarray, "N C"], b: Float[np.ndarray, "M C"]) -> float:
    """Fréchet distance of two sets of features, as of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017).

    |mean_a - mean_b|² + tr(A + B - 2 (A B)^(1/2)) with unbiased covariances A, B. With few samples the estimate is
    too large, even between two sets of one kind: compare only distances of equally many samples.

    Raises:
      ValueError: a set has no more samples than features, so that its covariance cannot be estimated.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for samples in (a, b):
        if len(samples) <= samples.shape[1]:
            raise ValueError(
                f"{len(samples)} samples cannot tell the covariance of {samples.shape[1]} features; "
                f"give at least {samples.shape[1] + 1}, or an encoder of fewer features"
            )
    return gaussian_frechet(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def gaussian_frechet(
    mean_a: Float[np.ndarray, "C"],
    covariance_a: Float[np.ndarray, "C C"],
    mean_b: Float[np.ndarray, "C"],
    covariance_b: Float[np.ndarray, "C C"],
) -> float:
    """Fréchet (2-Wasserstein, squared) distance of two Gaussians; see ``frechet_distance``.

    The trace of (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2): roots of symmetric matrices only, whose eigenvalues
    are real, so nothing imaginary is ever cut off.

    Raises:
      ValueError: a covariance has an eigenvalue more negative than rounding makes one.
    """
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance_a))
    root = (vectors * np.sqrt(_not_negative(values))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ np.atleast_2d(covariance_b) @ root)
    cross = np.sqrt(_not_negative(inner)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(np.atleast_2d(covariance_a + covariance_b)) - 2 * cross
    return float(max(distance, 0.0))  # rounding can leave less than nothing between equals


def _not_negative(eigenvalues: Float[np.ndarray, "C"]) -> Float[np.ndarray, "C"]:
    if eigenvalues.min() < -_NEGATIVE * max(eigenvalues.max(), 0.0):
        raise ValueError(
            f"a covariance has an eigenvalue of {eigenvalues.min():.2g} beside {eigenvalues.max():.2g}; it is not one"
        )
    return np.maximum(eigenvalues, 0.0)


def open_loop_score(
    actions: Float[np.ndarray, "N K A"],
    predicted: Float[np.ndarray, "N K A"],
    mask: Bool[np.ndarray, "N K A"],
    threshold: float = 0.03,
) -> float:
    """Share of action steps that are within a threshold of the demonstration (OLS; RepWAM, arXiv:2606.13674).

    "Within" is read strictly: every dimension that ``mask`` keeps differs by at most the threshold, in the units that
    the actions are given in. A step of which nothing is kept does not count.

    Raises:
      ValueError: shapes do not agree, or no step counts.
    """
    if not actions.shape == predicted.shape == mask.shape:
        raise ValueError(
            f"actions {actions.shape}, predicted {predicted.shape} and mask {mask.shape} do not agree; "
            "give [N, K, A] of all three"
        )
    counted = mask.any(-1)
    if not counted.any():
        raise ValueError(f"the mask {mask.shape} keeps no action; evaluate windows with actions")
    within = (np.abs(predicted - actions) <= threshold) | ~mask
    return float(within.all(-1)[counted].mean())


_psnr, _ssim = jax.jit(psnr), jax.jit(ssim)


@jax.jit
def _lpips(lpips: Lpips, a: UInt8[Array, "B H W 3"], b: UInt8[Array, "B H W 3"]) -> Float[Array, "B"]:
    return lpips(to_float(a), to_float(b))


@jax.jit
def _features(encoder: FrozenEncoder, images: UInt8[Array, "B ..."]) -> Float[Array, "B C"]:
    features = encoder(images)
    return features.reshape(len(features), -1, features.shape[-1]).mean(1)


def _in_chunks(compute: Callable[..., Array], *inputs: Shaped[np.ndarray, "M ..."]) -> Float[np.ndarray, "M ..."]:
    """A function of rows, some at a time; the last call is padded, not compiled anew."""
    count, outputs = len(inputs[0]), []
    for start in range(0, count, _CHUNK):
        rows = np.minimum(np.arange(start, start + min(_CHUNK, count)), count - 1)
        outputs.append(np.asarray(compute(*(x[rows] for x in inputs)))[: count - start])
    return np.concatenate(outputs)


def _over_time(name: str, values: Float[np.ndarray, "M"], frame: Int[np.ndarray, "M"]) -> dict[str, float]:
    """The mean of all, and of each future frame; frame 0 is the present, so the first is 1."""
    means = {f"{name}/frame_{i + 1}": float(values[frame == i].mean()) for i in np.unique(frame)}
    return {name: float(values.mean()), **means}
