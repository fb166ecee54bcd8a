"""Writes taef2_golden.npz and taef2.structure.json, for tests/tokenizers/test_taef2.py.

Runs in an environment of its own, offline, beside a copy of the original (``git clone`` of madebyollin/taesd at commit
5cccb12d) and of its weights as safetensors:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 numpy safetensors
    VENV/bin/python tests/parity/make_taef2_golden.py TAESD_FOLDER WEIGHTS_FOLDER

``random/...``: the original's functions, with 8 in place of their only width (64) and 4 channels, every parameter
random; weights are multiples of 1/32 and pixels have 16 levels, so that they compress. ``published/...``: what the
published weights make of one picture.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from golden import save_golden, save_structure
from safetensors.torch import load_file

CHANNELS, WIDTH = 4, 8


def original(folder: Path, width: int = 64) -> dict:
    """The names that taesd.py defines."""
    names: dict = {}
    exec((folder / "taesd.py").read_text().replace("64", str(width)), names)
    return names


def autoencoder(names: dict, channels: int) -> torch.nn.ModuleDict:
    parts = {"encoder": names["Encoder"](channels, True), "decoder": names["Decoder"](channels, True)}
    return torch.nn.ModuleDict(parts).eval()


def randomize(model: torch.nn.Module) -> None:
    """Kernels that keep the scale of features, scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            value.copy_((1 if "pool.1.weight" in name else 0) + noise / 4)
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
        value.copy_((value * 32).round() / 32)


def picture(rows: int, columns: int) -> np.ndarray:
    """uint8[rows, columns, 3] with slopes and edges."""
    row, column = np.mgrid[:rows, :columns]
    colors = 90 + 2 * row + column, 200 - 3 * column + 40 * (row > rows // 2), 40 + 100 * ((column // 9 + row // 7) % 2)
    return np.clip(np.stack(colors, -1), 0, 255).astype(np.uint8)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).float()


def main(taesd: Path, weights: Path) -> None:
    small = autoencoder(original(taesd, WIDTH), CHANNELS)
    randomize(small)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 16, (2, 3, 24, 32), generator=generator) / 15
    latents = 3 * torch.randn(2, CHANNELS, 3, 4, generator=generator)  # some beyond the decoder's limit
    encoded, decoded = small["encoder"](pictures), small["decoder"](latents)

    full = autoencoder(original(taesd), 32)
    for part in full:
        full[part].load_state_dict({k: v.float() for k, v in load_file(weights / f"taef2_{part}.safetensors").items()})
    shown = picture(48, 64)[None]
    of_shown = full["encoder"](channels_first(shown) / 255)
    back = full["decoder"](of_shown)
    error = channels_last(back).clip(0, 1) - shown / 255
    print(f"published: {-10 * np.log10((error**2).mean()):.1f} dB, latents of std {of_shown.std():.3f}")
    print(f"random: latents of std {encoded.std():.3f}, pictures of std {decoded.std():.3f}")

    save_golden(
        "taef2_golden",
        {name: value.detach().numpy() for name, value in small.state_dict().items()},
        {
            "random/pictures": channels_last(pictures),
            "random/latents": channels_last(latents),
            "published/pictures": shown,
        },
        {
            "random/latents": channels_last(encoded),
            "random/pictures": channels_last(decoded),
            "published/latents": channels_last(of_shown),
            "published/pictures": channels_last(back).astype(np.float16),
        },
    )
    save_structure("taef2", {name: tuple(value.shape) for name, value in full.state_dict().items()})
    print(len(full.state_dict()), "tensors,", {part: sum(p.numel() for p in full[part].parameters()) for part in full})


if __name__ == "__main__":
    with torch.no_grad():
        main(*(Path(argument) for argument in sys.argv[1:]))
