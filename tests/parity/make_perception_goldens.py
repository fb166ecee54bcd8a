"""Writes goldens and full-size structures of the spatial Perception Encoder, for tests/encoders/test_vision.py.

Runs in an environment of its own, offline (torchvision of the same build as torch):

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 numpy
    VENV/bin/python tests/parity/make_perception_goldens.py

The original (facebookresearch/perception_models, ``core/vision_encoder/pe.py`` and ``rope.py``) is no package, so its
vision transformer is written again here, with its tensor names and its arithmetic. That this is right is checked
against the independent implementation in timm (``vit_pe_spatial_*``), at the picture size of the position table and
through timm's own conversion of the published names. At another size timm interpolates positions differently (bicubic,
antialiased); the original's bilinear interpolation is what counts here.

Sizes of the published models: G from the original's ``config.py``, the others from timm's ``eva.py``. The published
files themselves could not be read here; the size reported of PE-Spatial-B16-512.pt, 345,783,707 bytes, is that of these
tensors in float32 and 0.01% more.
"""

import dataclasses

import timm
import torch
from golden import save_golden, save_structure
from timm.models.eva import checkpoint_filter_fn
from torch import nn
from torch.nn import functional
from torch_goldens import arrays, channels_first, pixels, randomise


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    layers: int
    heads: int
    patch: int
    image: int
    mlp: int
    class_token: bool = True
    layer_scale: bool = False


PUBLISHED = {
    "t16_512": Config(192, 12, 3, 16, 512, 768),
    "s16_512": Config(384, 12, 6, 16, 512, 1536),
    "b16_512": Config(768, 12, 12, 16, 512, 3072),
    "l14_448": Config(1024, 24, 16, 14, 448, 4096),
    "g14_448": Config(1536, 50, 16, 14, 448, 8960, class_token=False, layer_scale=True),
}
TINY = {
    "perception": Config(32, 2, 2, 4, 16, 64),
    "perception_giant": Config(32, 2, 2, 4, 16, 48, class_token=False, layer_scale=True),
}
TIMM = {"perception": "vit_pe_spatial_tiny_patch16_512", "perception_giant": "vit_pe_spatial_gigantic_patch14_448"}


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attn = Attention(config.width)
        self.ln_1, self.ln_2 = nn.LayerNorm(config.width, eps=1e-5), nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(config.width, config.mlp), "c_proj": nn.Linear(config.mlp, config.width)}
        )
        if config.layer_scale:
            self.ls_1, self.ls_2 = LayerScale(config.width), LayerScale(config.width)
        self.config = config

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        first, second = (self.ls_1.gamma, self.ls_2.gamma) if self.config.layer_scale else (1, 1)
        x = x + first * self.attention(self.ln_1(x), angles)
        return x + second * self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))

    def attention(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        projected = functional.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for part in projected)
        attended = functional.scaled_dot_product_attention(turn(query, angles), turn(key, angles), value)
        return self.attn.out_proj(attended.transpose(1, 2).flatten(2))


def turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions: each even channel and the next turn together, as one complex number."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


class VisionTransformer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        if config.class_token:
            self.class_embedding = nn.Parameter(torch.empty(config.width))
        positions = (config.image // config.patch) ** 2 + config.class_token
        self.positional_embedding = nn.Parameter(torch.empty(positions, config.width))
        self.ln_pre = nn.LayerNorm(config.width, eps=1e-5)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(config) for _ in range(config.layers))})
        self.config = config

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``forward_features`` of the original, class token kept."""
        grid = self.conv1(images)
        rows, columns = grid.shape[-2:]
        x = grid.flatten(2).transpose(1, 2)
        if self.config.class_token:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x, angles = self.ln_pre(x + self.positions(rows, columns)), self.angles(rows, columns)
        for block in self.transformer["resblocks"]:
            x = block(x, angles)
        return x

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """``_sample_abs_posemb`` of the original."""
        first = int(self.config.class_token)
        side = self.config.image // self.config.patch
        table = self.positional_embedding[first:].T.reshape(1, -1, side, side)
        if (rows, columns) != (side, side):
            table = functional.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)
        return torch.cat([self.positional_embedding[:first], table[0].flatten(1).T])

    def angles(self, rows: int, columns: int) -> torch.Tensor:
        """``Rope2D.update_grid`` of the original: columns before rows; with a class token, patches count from one."""
        first = int(self.config.class_token)
        count = self.config.width // self.config.heads // 4
        frequencies = 10_000.0 ** -(torch.arange(count) / count)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        angles = torch.cat([(axis.flatten()[:, None] + first) * frequencies for axis in (x, y)], -1)
        return torch.cat([torch.zeros(first, 2 * count), angles])


def check_against_timm(name: str, model: VisionTransformer, images: torch.Tensor) -> None:
    config = model.config
    other = timm.create_model(
        TIMM[name], img_size=config.image, patch_size=config.patch, embed_dim=config.width, depth=config.layers,
        num_heads=config.heads, mlp_ratio=config.mlp / config.width,
        ref_feat_shape=(config.image // config.patch,) * 2,
    ).eval()  # fmt: skip
    other.load_state_dict(checkpoint_filter_fn(model.state_dict(), other))
    ours, theirs = model(images), other.forward_features(images)
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error < 1e-5, f"{name} differs from timm's {TIMM[name]}: relative error {error}"


@torch.no_grad()
def main() -> None:
    for name, config in TINY.items():
        model = VisionTransformer(config).eval()
        randomise(model)
        inputs = {"native": pixels(2, config.image, config.image), "other": pixels(2, 25, 12)}
        check_against_timm(name, model, channels_first(inputs["native"]))
        outputs = {key: model(channels_first(images)) for key, images in inputs.items()}
        save_golden(name, arrays(model.state_dict()), inputs, arrays(outputs))
    with torch.device("meta"):
        for name, config in PUBLISHED.items():
            state = VisionTransformer(config).state_dict()
            save_structure(f"perception_{name}", {key: tuple(tensor.shape) for key, tensor in state.items()})


if __name__ == "__main__":
    main()
