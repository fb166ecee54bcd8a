"""Published weights open by what they are, are read one tensor at a time, and say what is wrong with them."""

import json
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from wam_jax.weights.files import open_weights, shard_paths, write_safetensors
from wam_jax.weights.mapping import UnreadableWeights

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.normal(size=(3, 4)).astype(np.float32),
    "half": RNG.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float16),
    "ids": np.arange(5),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


def assert_holds(tensors, arrays):
    assert tensors.shapes() == {name: array.shape for name, array in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors.read(name), array, strict=True)


def with_header(path, header, body=b"", length=None):
    """A safetensors file with this header, right or wrong."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_safetensors_come_out_as_they_went_in(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    assert_holds(open_weights(tmp_path / "model.safetensors"), ARRAYS)
    assert_holds(open_weights(tmp_path), ARRAYS)


def test_npz_comes_out_as_it_went_in(tmp_path):
    arrays = {name: array for name, array in ARRAYS.items() if name != "half"}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert_holds(open_weights(tmp_path / "x.npz"), arrays)


def test_arrays_that_are_pickles_or_unknown_types_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", ok=np.ones(2), bad=np.array([{}], dtype=object))
    with pytest.raises(UnreadableWeights, match=r"array 'bad' of .* is of object; only arrays of numbers are read"):
        open_weights(tmp_path / "objects.npz")
    np.savez(tmp_path / "void.npz", half=ARRAYS["half"])
    with pytest.raises(UnreadableWeights, match=r"array 'half' of .* only arrays of numbers"):
        open_weights(tmp_path / "void.npz")


@pytest.mark.parametrize(
    ("header", "body", "length"),
    [
        ({"a": entry(0, 8)}, 6, None),  # cut short
        ({"a": entry(0, 8)}, 12, None),  # something left over
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, None),  # overlapping
        ({"a": entry(0, 8), "b": entry(8, 800)}, 16, None),  # out of range
        ({"a": entry(8, 0)}, 8, None),
        ({"a": entry(0, 8, shape=(3,))}, 8, None),  # bytes of another shape
        ({"a": entry(0, 8, dtype="F64")}, 8, None),  # bytes of another type
        ({"a": entry(0, 8, shape=(2**62, 8))}, 8, None),
        ({"a": entry(0, 8, dtype="OBJECT")}, 8, None),
        ({"a": entry(0, 8)}, 8, 2**60),  # absurd header
        ({"a": entry(0, 8)}, 8, 5),
        (["no dictionary"], 8, None),
    ],
)
def test_damaged_safetensors_are_refused(header, body, length, tmp_path):
    path = with_header(tmp_path / "x.safetensors", header, bytes(body), length)
    with pytest.raises(UnreadableWeights, match=r"x\.safetensors is not a safetensors file, or damaged \(.*fetch it"):
        open_weights(path)


def test_every_truncation_is_refused(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "whole.safetensors")
    np.savez(tmp_path / "whole.npz", a=ARRAYS["matrix"])
    for suffix in ("safetensors", "npz"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for size in (0, 7, 9, len(whole) // 2, len(whole) - 1):
            (tmp_path / f"cut.{suffix}").write_bytes(whole[:size])
            with pytest.raises(UnreadableWeights, match=rf"cut\.{suffix} is not an? .*, or damaged"):
                open_weights(tmp_path / f"cut.{suffix}")


def test_an_array_damaged_within_is_noticed_when_it_is_read(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(1000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UnreadableWeights, match=r"array 'a' of .* is damaged .*fetch it again"):
        open_weights(tmp_path / "x.npz").read("a")


def test_quantised_weights_are_refused(tmp_path):
    path = with_header(tmp_path / "x.safetensors", {"w": entry(0, 2, dtype="F8_E4M3")}, bytes(2))
    with pytest.raises(UnreadableWeights, match=r"tensor 'w' of .* is F8_E4M3; quantised weights are not read"):
        open_weights(path)


def test_other_formats_and_missing_files_are_named(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(UnreadableWeights, match=r"model\.h5 is not in a format that is read here \(\.safetensors, "):
        open_weights(tmp_path / "model.h5")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors is not there; `wam assets`"):
        open_weights(tmp_path / "absent.safetensors")
    with pytest.raises(UnreadableWeights, match=r"has no \.safetensors file and no index"):
        open_weights(tmp_path)
    for name in ("a", "b"):
        safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UnreadableWeights, match=r"has a\.safetensors, b\.safetensors; name the one to open"):
        open_weights(tmp_path)


def test_an_unknown_name_gets_the_nearest(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"tensor 'matrx' is not in .*model\.safetensors \(nearest: matrix\)"):
        open_weights(tmp_path).read("matrx")


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint of two shards; returns the index."""
    write_safetensors(tmp_path / "sharded", ARRAYS.items(), max_shard_bytes=60)
    return tmp_path / "sharded" / "diffusion_pytorch_model.safetensors.index.json"


def test_shards_are_one_checkpoint(sharded):
    assert len(set(shard_paths(sharded).values())) == 2
    assert_holds(open_weights(sharded), ARRAYS)
    assert_holds(open_weights(sharded.parent), ARRAYS)


def test_a_missing_shard_is_named(sharded):
    (sharded.parent / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnreadableWeights, match=r"needs diffusion_pytorch_model-00002-of-00002\.safetensors, which is"):
        open_weights(sharded)


def test_a_tensor_that_is_not_where_the_index_says_is_named(sharded):
    index = json.loads(sharded.read_text())
    index["weight_map"]["matrx"] = index["weight_map"].pop("matrix")
    sharded.write_text(json.dumps(index))
    with pytest.raises(UnreadableWeights, match=r"and its shards disagree on 2 tensors \(matrix, matrx\)"):
        open_weights(sharded)


def test_an_index_points_only_beside_itself(sharded):
    sharded.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(
        UnreadableWeights, match=r"points to '\.\./\.\./secret\.safetensors', which is not a file beside"
    ):
        open_weights(sharded)
    sharded.write_text('{"weight_map": 3}')
    with pytest.raises(UnreadableWeights, match="is not an index of shards"):
        open_weights(sharded)


def test_written_shards_follow_the_layout_of_diffusers(sharded):
    index = json.loads(sharded.read_text())
    total = sum(array.nbytes for array in ARRAYS.values())
    assert index["metadata"] == {"total_size": total}
    files = {f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert set(index["weight_map"].values()) == files
    assert index["weight_map"].keys() == ARRAYS.keys()
    assert {path.name for path in sharded.parent.iterdir()} == {*files, sharded.name}
    for file in files:  # transformers refuses a file without it
        with safetensors.safe_open(sharded.parent / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_one_shard_needs_no_index(tmp_path):
    path = write_safetensors(tmp_path, ARRAYS.items(), stem="model", metadata={"step": "7"})
    assert [found.name for found in tmp_path.iterdir()] == ["model.safetensors"] == [path.name]
    assert path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666  # as open as its folder
    with safetensors.safe_open(path, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt", "step": "7"}


def test_arrays_of_any_layout_are_written_by_value(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"transposed": base.T, "strided": base[:, ::2, ::-1], "fortran": np.asfortranarray(base[0])}
    write_safetensors(tmp_path, arrays.items())
    assert_holds(open_weights(tmp_path), arrays)


def test_no_shard_exceeds_the_limit_and_none_is_held_longer_than_needed(tmp_path):
    written = []

    def tensors():
        for i in range(10):
            written.append(len(list(tmp_path.glob("*.part"))))
            yield f"t{i}", np.full(100, i, np.uint8)

    write_safetensors(tmp_path, tensors(), max_shard_bytes=250)
    assert written == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]  # a shard is on disk as soon as the next tensor does not fit
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


def test_writing_refuses_what_would_mix_or_be_lost(tmp_path):
    with pytest.raises(ValueError, match="tensor 'a' comes twice"):
        write_safetensors(tmp_path / "twice", [("a", np.ones(1)), ("a", np.ones(2))])
    with pytest.raises(ValueError, match="no tensors to write"):
        write_safetensors(tmp_path / "none", [])
    write_safetensors(tmp_path / "one", [("a", np.ones(1))])
    with pytest.raises(FileExistsError, match=r"already has diffusion_pytorch_model\.safetensors; choose another"):
        write_safetensors(tmp_path / "one", [("a", np.ones(1))])


PEAKS = """
import resource, sys
import numpy as np
from wam_jax.weights.files import open_weights, write_safetensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

size, start = 4 * 2**20, peak()
write_safetensors(sys.argv[1], ((f"t{i}", np.full(size, i, np.uint8)) for i in range(12)), max_shard_bytes=2 * size)
written = peak()
tensors = open_weights(sys.argv[1])
for name in tensors.shapes():
    tensors.read(name)
print((written - start) / size, (peak() - written) / size)
"""


def test_writing_holds_one_shard_and_reading_one_tensor(tmp_path):
    command = [sys.executable, "-c", PEAKS, str(tmp_path)]
    written, read = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert written < 4.5  # tensors: a shard of two, and the one that did not fit
    assert read < 1.5
