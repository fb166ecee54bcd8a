"""Writes goldens and structures of the Wan video autoencoders, for tests/tokenizers/test_wan_vae.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 diffusers==0.42.1 numpy
    VENV/bin/python tests/parity/make_wan_vae_goldens.py

``wan21_vae_golden.npz`` and ``wan22_vae_golden.npz``: ``diffusers.AutoencoderKLWan`` of the debug sizes, float32, every
parameter random; moments of one frame and of nine, and what one latent frame and three decode to. Weights are
multiples of 1/32 and pixels have 16 levels, so that they compress.

``wan21_vae.structure.json`` and ``wan22_vae.structure.json``: names and shapes at published sizes. The sizes of
Wan 2.1 are the defaults of the class. Those of Wan 2.2 are ``vae/config.json`` of Wan-AI/Wan2.2-TI2V-5B-Diffusers, read
in copies (several public repositories embed it, and agree), not from the model hub. diffusers' checkpoints have the
names of the module in memory.
"""

import inspect

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from golden import save_golden, save_structure

WAN21 = {}
WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
WAN21_DEBUG = {"base_dim": 2, "z_dim": 4, "num_res_blocks": 1}
WAN22_DEBUG = {**WAN22, "base_dim": 2, "decoder_base_dim": 2, "z_dim": 6, "num_res_blocks": 1}


def make_golden(name: str, config: dict, size: tuple[int, int]) -> None:
    model = randomize(AutoencoderKLWan(**config)).eval()
    generator = torch.Generator().manual_seed(1)
    clip = torch.randint(0, 16, (1, 3, 9, *size), generator=generator) * 17 / 127.5 - 1
    with torch.inference_mode():
        posterior = model.encode(clip).latent_dist
        picture = model.encode(clip[:, :, :1]).latent_dist
        latents = torch.randn(posterior.mean.shape, generator=generator)
        decoded = model.decode(latents).sample
        decoded_picture = model.decode(latents[:, :, :1]).sample
    assert (decoded.abs() < 1).float().mean() > 0.9, "values at the clamp compare nothing"
    assert (posterior.logvar.abs() < 20).all()
    outputs = {
        "mean": posterior.mean,
        "log_variance": posterior.logvar,
        "picture_mean": picture.mean,
        "decoded": decoded,
        "decoded_picture": decoded_picture,
    }
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    inputs = {"clip": channels_last(clip), "latents": channels_last(latents)}
    save_golden(name, weights, inputs | statistics(), {key: channels_last(value) for key, value in outputs.items()})
    print(name, {key: (tuple(value.shape), f"{value.std():.3f}") for key, value in outputs.items()})


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Kernels that keep the scale of features, scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("gamma"):
                value.copy_(1 + noise / 4)
            elif value.ndim == 1:
                value.copy_(noise / 4)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
            value.copy_((value * 32).round() / 32)
        model.decoder.conv_out.weight.mul_(0.25)
        model.decoder.conv_out.bias.mul_(0.25)
    return model


def statistics() -> dict[str, list[float]]:
    """Of Wan 2.1's latents: the defaults of the class."""
    defaults = inspect.signature(AutoencoderKLWan).parameters
    return {name: defaults[name].default for name in ("latents_mean", "latents_std")}


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 4, 1).numpy()


def make_structure(name: str, config: dict) -> None:
    with torch.device("meta"):
        model = AutoencoderKLWan(**config)
    save_structure(name, {key: tuple(value.shape) for key, value in model.state_dict().items()})
    print(name, len(model.state_dict()), "tensors,", sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    make_golden("wan21_vae_golden", WAN21_DEBUG, (16, 24))
    make_golden("wan22_vae_golden", WAN22_DEBUG, (32, 16))
    make_structure("wan21_vae", WAN21)
    make_structure("wan22_vae", WAN22)
