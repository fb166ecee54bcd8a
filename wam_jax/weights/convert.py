"""Published weights as safetensors, tensor for tensor: ``python -m wam_jax.weights.convert FILE... FOLDER``."""

import argparse
from pathlib import Path

import numpy as np
import safetensors.numpy

from wam_jax.weights.files import open_weights


def convert(path: Path, folder: Path) -> Path:
    """Writes the tensors of a file, names and types as they are, to one of its name in ``folder``.

    Nothing but the tensors decides the bytes, so that what is written has the sha256 that an asset registers.

    Args:
      path: in any format of ``open_weights``.
      folder: made where it is missing.

    Raises:
      FileNotFoundError, UnreadableWeights: see ``open_weights``.
      FileExistsError: the file is there.
    """
    target = folder / f"{path.stem}.safetensors"
    if target.exists():
        raise FileExistsError(f"{target} is there; remove it first, or name another folder")
    weights = open_weights(path)
    # The library writes an array's buffer whatever its strides.
    tensors = {name: np.asarray(weights.read(name), order="C") for name in weights.shapes()}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, target)
    target.chmod(folder.stat().st_mode & 0o666)  # the library lets only the owner read it
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in arguments.files:
        print(convert(path, arguments.folder))


if __name__ == "__main__":
    main()
