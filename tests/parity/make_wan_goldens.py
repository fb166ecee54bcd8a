"""Writes wan*_golden.npz and wan*.structure.json: what Wan's transformer gives, for tests/weights/test_wan.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 numpy
    VENV/bin/python tests/parity/make_wan_goldens.py

``diffusers.WanTransformer3DModel`` at a tiny size, in float32, with random values in every parameter:

- wan_golden: text to video (one time for all tokens: Wan 2.1) and text and first frame to video (a time a token, 0 for
  those of the first frame: Wan 2.2 TI2V), one set of weights;
- wan_i2v_golden: image to video (Wan 2.1 I2V): a mask and the picture's latents as further input channels, CLIP's
  tokens in cross-attention;
- wan_resized_golden: tensors of a video expert made narrower as Fast-WAM's scripts/preprocess_action_dit_backbone.py
  does it: ``F.interpolate`` (linear, align_corners) along one dimension after the other, times sqrt(old / new) where a
  matrix got fewer inputs.

Structures are those of the published configurations: transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers,
Wan2.1-T2V-14B-Diffusers, Wan2.1-I2V-14B-480P-Diffusers (720P is alike) and Wan2.2-TI2V-5B-Diffusers. The 14B
numbers were read in diffusers' scripts/convert_wan_to_diffusers.py, those of 1.3B and 5B only in other projects' copies
of the configurations; the published files themselves were not at hand. Names are what diffusers saves. ``*_original``
are the names of the repositories without -Diffusers (Wan-Video/Wan2.1, wan/modules/model.py); that they are the same
tensors is checked here by diffusers' own conversion of them.
"""

import re

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from golden import save_golden, save_structure

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
}
TINY_I2V = {**TINY, "in_channels": 4 + 2 + 4, "image_dim": 20, "added_kv_proj_dim": 24}
BATCH, FRAMES, ROWS, COLUMNS = 2, 3, 4, 6
WORDS, TEXT_TOKENS, IMAGE_TOKENS = 7, 512, 5  # diffusers takes all but the last 512 tokens for the image's

PUBLISHED = {
    "wan21_t2v_1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan21_t2v_14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "wan21_i2v_14b": {
        "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40, "in_channels": 36,
        "image_dim": 1280, "added_kv_proj_dim": 5120,
    },
    "wan22_ti2v_5b": {
        "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48,
    },
}  # fmt: skip

# From diffusers' names to those of the Wan repositories (wan/modules/model.py), one after another.
ORIGINAL_NAMES = (
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^scale_shift_table", "head.modulation"),
    (r"proj_out", "head.head"),
    (r"scale_shift_table", "modulation"),
    (r"norm2", "norm3"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"attn1", "self_attn"),
    (r"attn2", "cross_attn"),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_([kv])_proj\.", r".\1_img."),
    (r"norm_added_k", "norm_k_img"),
)


def random_model(config: dict, seed: int) -> WanTransformer3DModel:
    """A model with nothing at 0 or 1 that could hide a swapped tensor."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim > 1 and name.endswith("weight"):
                parameter.copy_(noise / np.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.3 * noise)
    return model


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def padded_text(tokens: int) -> torch.Tensor:
    """Features of a few words; zeros after them, which Wan attends to."""
    text = torch.zeros(BATCH, tokens, TINY["text_dim"])
    text[:, :WORDS] = torch.randn(BATCH, WORDS, TINY["text_dim"])
    return text


@torch.inference_mode()
def make_golden() -> None:
    model = random_model(TINY, seed=0)
    latents = torch.randn(BATCH, TINY["in_channels"], FRAMES, ROWS, COLUMNS)
    text, time = padded_text(12), torch.tensor([731.0, 58.5])
    tokens = (ROWS // 2) * (COLUMNS // 2)
    first_clean = torch.ones(FRAMES * tokens).masked_fill(torch.arange(FRAMES * tokens) < tokens, 0.0)
    outputs = {
        "text_to_video": model(latents, time, text).sample,
        "first_frame_to_video": model(latents, time[:, None] * first_clean, text).sample,
    }
    save_golden("wan_golden", weights(model), {"latents": latents, "text": text, "time": time}, outputs)


@torch.inference_mode()
def make_i2v_golden() -> None:
    model = random_model(TINY_I2V, seed=1)
    latents = torch.randn(BATCH, TINY_I2V["in_channels"], FRAMES, ROWS, COLUMNS)
    text, time = padded_text(TEXT_TOKENS), torch.tensor([731.0, 58.5])
    image = torch.randn(BATCH, IMAGE_TOKENS, TINY_I2V["image_dim"])
    inputs = {"latents": latents, "text": text[:, :WORDS], "time": time, "image": image}
    save_golden("wan_i2v_golden", weights(model), inputs, {"velocity": model(latents, time, text, image).sample})


def resized(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    out = tensor
    for dim, size in enumerate(shape):
        last = out.movedim(dim, -1)
        flat = torch.nn.functional.interpolate(
            last.reshape(-1, 1, last.shape[-1]), size=size, mode="linear", align_corners=True
        )
        out = flat.reshape(*last.shape[:-1], size).movedim(-1, dim)
    if tensor.ndim >= 2 and tensor.shape[-1] != shape[-1]:
        out = out * (tensor.shape[-1] / shape[-1]) ** 0.5
    return out


def make_resized_golden() -> None:
    torch.manual_seed(2)
    shapes = {
        "blocks.0.self_attn.q.weight": ((8, 11), (8, 5)),
        "blocks.0.self_attn.o.weight": ((11, 8), (5, 8)),
        "blocks.0.ffn.0.weight": ((17, 11), (7, 5)),
        "blocks.0.ffn.0.bias": ((17,), (7,)),
        "blocks.0.modulation": ((1, 6, 11), (1, 6, 5)),
        "time_projection.1.weight": ((66, 11), (30, 5)),
    }
    wide = {name: torch.randn(old) for name, (old, _) in shapes.items()}
    save_golden("wan_resized_golden", {}, wide, {n: resized(wide[n], new) for n, (_, new) in shapes.items()})


def original_name(name: str) -> str:
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def make_structures() -> None:
    for name, config in PUBLISHED.items():
        with torch.device("meta"):
            model = WanTransformer3DModel(**config)
        tensors = model.state_dict()
        original = {original_name(key): tensor for key, tensor in tensors.items()}
        back = convert_wan_transformer_to_diffusers(dict(original))
        assert back.keys() == tensors.keys(), name
        assert all(back[key] is tensors[key] for key in tensors), name
        for names, state in ((name, tensors), (f"{name}_original", original)):
            save_structure(names, {key: tuple(tensor.shape) for key, tensor in state.items()})


if __name__ == "__main__":
    make_golden()
    make_i2v_golden()
    make_resized_golden()
    make_structures()
