"""Tensors of torch files come out as torch wrote them; whatever is more than tensors is refused, and never run."""

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import UnreadableWeights

TORCH_FILES = Path(__file__).parents[1] / "parity" / "torch_files"  # written by make_torch_files.py beside it


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_every_tensor_is_as_torch_wrote_it(layout):
    file = open_weights(TORCH_FILES / f"{layout}.pth")
    with np.load(TORCH_FILES / "tensors.npz") as expected:
        assert file.shapes() == {f"state_dict.{name}": expected[name].shape for name in expected.files}
        for name in expected.files:
            read = file.read(f"state_dict.{name}")
            if name == "parameter":
                assert read.dtype == ml_dtypes.bfloat16
                read = read.astype(np.float32)
            np.testing.assert_array_equal(read, expected[name], strict=True)


def test_arrays_of_a_plain_pickle_are_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.ones((3, 2)))}
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.ckpt"
        path.write_bytes(pickle.dumps({"conv": arrays, "step": 7}, protocol))
        file = open_weights(path)
        assert file.shapes() == {"conv.a": (2, 3), "conv.b": (3, 2)}
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(f"conv.{name}"), array, strict=True)


class Malicious:
    """Unpickled by pickle, this makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(path: Path, data: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_malicious_pickles_are_refused_by_name_and_not_run(suffix, tmp_path):
    victim = tmp_path / "victim"
    inside = pickle.dumps({"state_dict": Malicious(victim)}, 2)
    plain, archive = tmp_path / f"plain{suffix}", zipped(tmp_path / f"archive{suffix}", inside)
    plain.write_bytes(inside)
    stream = tmp_path / f"stream{suffix}"
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    stream.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + inside)
    for path in (plain, archive, stream):
        with pytest.raises(
            UnreadableWeights, match=r"is more than tensors: it wants posix\.mkdir\. Nothing in it was run"
        ):
            open_weights(path)
    assert not victim.exists()
    pickle.loads(inside)
    assert victim.exists()  # so it was malicious


@pytest.mark.parametrize("wanted", ["os.system", "builtins.eval", "torch.load", "numpy.load", "collections.deque"])
def test_nothing_else_is_looked_up(wanted, tmp_path):
    module, _, name = wanted.rpartition(".")
    path = tmp_path / "x.pth"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(UnreadableWeights, match=f"it wants {wanted}"):
        open_weights(path)
    # As protocol 4 writes it, where a name may have dots: an attribute of what is allowed.
    path.write_bytes(pickle.PROTO + b"\x04" + dotted("collections", "OrderedDict.fromkeys"))
    with pytest.raises(UnreadableWeights, match=r"it wants collections\.OrderedDict\.fromkeys"):
        open_weights(path)


def dotted(module: str, name: str) -> bytes:
    texts = b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (module, name))
    return texts + pickle.STACK_GLOBAL + pickle.STOP


def test_a_whole_module_and_an_unknown_type_are_refused():
    with pytest.raises(UnreadableWeights, match=r"it wants torch\.nn\.modules\.linear\.Linear"):
        open_weights(TORCH_FILES / "module.pth")
    with pytest.raises(UnreadableWeights, match=r"it wants torch.*(float8|Untyped|_rebuild_tensor_v3)"):
        open_weights(TORCH_FILES / "float8.pth")


def test_a_pickle_leaves_nothing_behind_in_the_reader(tmp_path):
    # BUILD sets attributes of what was looked up: here, of the function that rebuilds tensors.
    path = tmp_path / "x.pth"
    path.write_bytes(b"ctorch._utils\n_rebuild_tensor_v2\n}S'__doc__'\nS'changed'\nsb.")
    with pytest.raises(UnreadableWeights):
        open_weights(path)
    test_every_tensor_is_as_torch_wrote_it("zip")


def test_a_dictionary_nested_in_itself_ends(tmp_path):
    nested: dict = {"a": np.ones(2)}
    nested["again"] = nested
    for level in range(60):
        nested = {"left": nested, "right": nested, "level": level}
    (tmp_path / "x.pth").write_bytes(pickle.dumps(nested, 2))
    assert len(open_weights(tmp_path / "x.pth").shapes()) == 1


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_truncated_files_are_refused(layout, tmp_path):
    whole = (TORCH_FILES / f"{layout}.pth").read_bytes()
    for size in (3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.pth").write_bytes(whole[:size])
        with pytest.raises(UnreadableWeights, match=r"x\.pth is damaged or not a torch file .*; fetch it again$"):
            open_weights(tmp_path / "x.pth")


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes((TORCH_FILES / "zip.pth").read_bytes())
    file = open_weights(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UnreadableWeights, match=r"ends within tensor 'state_dict\.matrix'"):
        file.read("state_dict.matrix")


def tensor_pickle(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], count: int) -> bytes:
    """A pickle of one tensor, as torch writes it, with any numbers."""

    def number(value: int) -> bytes:
        return f"I{value}\n".encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n" + number(count) + b"tQ"
    view = storage + number(offset) + numbers(shape) + numbers(strides)
    return b"}S'w'\nctorch._utils\n_rebuild_tensor_v2\n(" + view + b"I00\nNtRs."


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, (2, 3), (3, 1), 6), None),
        ((1, (2, 3), (3, 1), 6), "reaches out of its storage of 6 numbers"),
        ((-1, (2,), (1,), 6), "with strides"),
        ((0, (2, 3), (-3, 1), 6), "with strides"),
        ((0, (2**40,), (0,), 6), "reaches out of its storage"),  # six numbers that would fill the memory
        ((0, (2, 3), (3,), 6), "does not have 6 numbers"),
        ((0, (2, 3), (3, 1), 7), "does not have 7 numbers"),
    ],
)
def test_tensors_stay_within_their_storage(numbers, message, tmp_path):
    values = np.arange(6, dtype=np.float32)
    path = zipped(tmp_path / "x.pth", tensor_pickle(*numbers), **{"data/0": values.tobytes()})
    if message is None:
        np.testing.assert_array_equal(open_weights(path).read("w"), values.reshape(2, 3), strict=True)
    else:
        with pytest.raises(UnreadableWeights, match=message):
            open_weights(path)


def test_compressed_and_big_endian_archives_are_refused(tmp_path):
    good = tensor_pickle(0, (2, 3), (3, 1), 6)
    path = zipped(tmp_path / "x.pth", good, byteorder=b"big", **{"data/0": bytes(24)})
    with pytest.raises(UnreadableWeights, match="big-endian"):
        open_weights(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good)
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(UnreadableWeights, match="is compressed"):
        open_weights(path)


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"}r" + struct.pack("<I", 2**32 - 1) + b".")  # pickle.c would allocate for every index below
    with pytest.raises(UnreadableWeights, match="holds no tensors by name"):
        open_weights(path)


def test_objects_in_arrays_are_refused(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"a": np.array([OrderedDict()], dtype=object)}, 2))
    with pytest.raises(UnreadableWeights, match="only arrays of numbers are read"):
        open_weights(tmp_path / "x.ckpt")


def test_a_missing_name_is_named():
    with pytest.raises(KeyError, match="tensor 'weight' is not in "):
        open_weights(TORCH_FILES / "zip.pth").read("weight")
