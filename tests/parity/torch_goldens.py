"""What the scripts that run PyTorch models share: weights that hide nothing, inputs, and tensors as numpy arrays."""

import numpy as np
import torch

GRAIN = 64  # values are multiples of 1/64: they compress to a third, and lose nothing by it


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Gives every parameter values of its own, norms, biases and layer scales included; scales are around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and name.endswith(("weight", "lambda1", "gamma"))
        value = 0.25 * torch.randn(parameter.shape, generator=generator) + float(scale)
        parameter.copy_((value * GRAIN).round() / GRAIN)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Normalised pictures or clips, channels last."""
    values = np.random.default_rng(seed).normal(size=(*shape, 3))
    return (np.round(values * GRAIN) / GRAIN).astype(np.float32)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """[..., H, W, 3] as PyTorch's [..., 3, H, W]."""
    return torch.from_numpy(np.moveaxis(images, -1, -3).copy())


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
