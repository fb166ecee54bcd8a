"""Writes torch_files/: what torch saves, in each layout, for tests/weights/test_torch_file.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy
    VENV/bin/python tests/parity/make_torch_files.py

``tensors.npz`` holds the values (bfloat16 as float32); ``zip.pth`` and ``stream.pth`` the same tensors in a training
checkpoint; ``module.pth`` a whole module, which only code could rebuild; ``float8.pth`` a type that is not read.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "torch_files"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 4, generator=generator)
    tensors = OrderedDict(
        matrix=matrix,
        transposed=matrix.T,
        every_second_row=matrix[::2],
        parameter=torch.nn.Parameter(torch.randn(5, generator=generator).to(torch.bfloat16)),
        half=torch.randn(2, generator=generator).half(),
        double=torch.randn(2, generator=generator).double(),
        integers=torch.arange(-3, 3),
        booleans=torch.tensor([True, False, True]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
    )
    checkpoint = {"state_dict": tensors, "epoch": 3, "config": {"name": "tiny", "sizes": [1, 2]}}
    torch.save(checkpoint, FOLDER / "zip.pth")
    torch.save(checkpoint, FOLDER / "stream.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), FOLDER / "module.pth")
    torch.save({"weight": torch.ones(2).to(torch.float8_e4m3fn)}, FOLDER / "float8.pth")
    values = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for name, value in tensors.items()
    }
    np.savez_compressed(FOLDER / "tensors.npz", **values)


if __name__ == "__main__":
    main()
