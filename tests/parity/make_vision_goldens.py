"""Writes goldens and full-size structures of DINOv2, DINOv3, SigLIP 2 and V-JEPA 2, for tests/encoders/test_vision.py.

Runs in an environment of its own, offline:

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
    VENV/bin/python tests/parity/make_vision_goldens.py

Tiny configurations with random weights in every parameter, float32, eager attention. Each is run at the picture size of
its position table ("native") and at another one, not square where the original can do that ("other").

Names: those of the published files. Where ``transformers`` 5 renames or splits tensors while it reads a file (DINOv2,
DINOv3), its own ``revert_weight_conversion`` (what ``save_pretrained`` does) turns them back.

Structures are of models on the meta device. Their configurations were read in the conversion scripts of transformers
(``convert_dinov2_with_registers_to_hf.py``, ``convert_dinov3_vit_to_hf.py``, ``convert_siglip_to_hf.py``,
``convert_vjepa2_to_hf.py``), where the feed-forward widths of DINOv3's gated models follow from ``mlp_ratio * 2 / 3``;
the ``config.json`` and the tensor indices of the published repositories themselves could not be read here. What others
report of the files agrees to the last parameter: 1,136,486,912 for DINOv2 giant; 6,716,035,072 for DINOv3 7B and the
counts of its other sizes; 1,136,008,498 and 1,871,393,906 for SigLIP 2 so400m (384) and giant-opt (256); 325,971,328,
653,930,880 and 1,034,555,264 for V-JEPA 2 L, H and g.
"""

import torch
from golden import save_golden, save_structure
from torch_goldens import arrays, channels_first, pixels, randomise
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    VJEPA2Config,
    VJEPA2Model,
)
from transformers.core_model_loading import revert_weight_conversion

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
TINY_DINOV2 = {**LAYERS, "hidden_size": 24, "mlp_ratio": 2, "patch_size": 4, "image_size": 16, "num_register_tokens": 2}
TINY_DINOV3 = {
    **LAYERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "patch_size": 4,
    "image_size": 16,
    "num_register_tokens": 2,
}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False}
TINY_SIGLIP2 = {
    "vision_config": {**LAYERS, "hidden_size": 24, "intermediate_size": 40, "patch_size": 4, "image_size": 18},
    "text_config": {**LAYERS, "hidden_size": 32, "intermediate_size": 40, "vocab_size": 30, "projection_size": 24},
}
TINY_VJEPA2 = {**LAYERS, "hidden_size": 32, "mlp_ratio": 1.5, "patch_size": 4, "crop_size": 16, "pred_hidden_size": 8}
TINY_VJEPA2 |= {"pred_num_attention_heads": 1, "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 1}

DINOV2 = {
    "small": {"hidden_size": 384, "num_attention_heads": 6},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}
DINOV3 = {
    "vits16": {},
    "vits16plus": GATED,
    "vitb16": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vitl16": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "vith16plus": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        **GATED,
    },
    "vit7b16": {
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        **GATED,
        **NO_BIAS,
    },
}
TOWERS = {  # hidden size, feed-forward width, layers, heads
    "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 24, 16),
    "so400m": (1152, 4304, 27, 16),
    "giant_opt": (1536, 6144, 40, 16),
}
SIGLIP2 = {  # vision tower, text tower, patch, picture
    "base_patch16_224": ("base", "base", 16, 224),
    "base_patch32_256": ("base", "base", 32, 256),
    "large_patch16_256": ("large", "large", 16, 256),
    "so400m_patch14_384": ("so400m", "so400m", 14, 384),
    "so400m_patch16_256": ("so400m", "so400m", 16, 256),
    "giant_opt_patch16_256": ("giant_opt", "so400m", 16, 256),
}
VJEPA2 = {
    "vitl_256": {},
    "vith_256": {"hidden_size": 1280, "num_hidden_layers": 32},
    "vitg_256": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11},
}


def published(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Its tensors as files name them."""
    return revert_weight_conversion(model, model.state_dict())


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """Eager, in evaluation mode, with random weights."""
    model.set_attn_implementation("eager")
    randomise(model)
    return model.eval()


def save(name: str, model: PreTrainedModel, inputs: dict, outputs: dict) -> None:
    save_golden(name, arrays(published(model)), inputs, arrays(outputs))


def make_image_golden(name: str, model: PreTrainedModel, native: int) -> None:
    """All tokens after the final norm, of square pictures and of others with more rows and fewer columns."""
    inputs = {"native": pixels(2, native, native), "other": pixels(2, native + 9, native - 4)}
    outputs = {key: model(channels_first(images)).last_hidden_state for key, images in inputs.items()}
    save(name, model, inputs, outputs)


def make_siglip2_golden() -> None:
    """Both towers; the pictures are two pixels larger than whole patches."""
    model = ready(SiglipModel(SiglipConfig(**TINY_SIGLIP2)))
    inputs = {"native": pixels(2, 18, 18), "other": pixels(2, 25, 12)}
    outputs = {
        key: model.vision_model(channels_first(images), interpolate_pos_encoding=True).last_hidden_state
        for key, images in inputs.items()
    }
    ids = torch.randint(30, (3, 64), generator=torch.Generator().manual_seed(1))
    outputs["text"] = model.text_model(ids).last_hidden_state
    save("siglip2", model, {**inputs, "text": ids.numpy()}, outputs)


def make_vjepa2_golden() -> None:
    """Clips of several lengths and sizes; transformers takes the picture size from the configuration."""
    model = ready(VJEPA2Model(VJEPA2Config(**TINY_VJEPA2)))
    larger = ready(VJEPA2Model(VJEPA2Config(**{**TINY_VJEPA2, "crop_size": 20})))
    inputs = {"native": pixels(2, 4, 16, 16), "other": pixels(1, 6, 20, 20), "single": pixels(1, 1, 16, 16)}
    outputs = {
        key: (larger if key == "other" else model)(channels_first(clips), skip_predictor=True).last_hidden_state
        for key, clips in inputs.items()
    }
    save("vjepa2", model, inputs, outputs)


def make_structures() -> None:
    def structure(name: str, model: PreTrainedModel) -> None:
        save_structure(name, {key: tuple(tensor.shape) for key, tensor in published(model).items()})

    with torch.device("meta"):
        for name, changes in DINOV2.items():
            config = Dinov2WithRegistersConfig(image_size=518, patch_size=14, **changes)
            structure(f"dinov2_{name}", Dinov2WithRegistersModel(config))
        for name, changes in DINOV3.items():
            structure(f"dinov3_{name}", DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4, **changes)))
        for name, (vision, text, patch, image) in SIGLIP2.items():
            keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            vision_config = dict(zip(keys, TOWERS[vision], strict=True)) | {"patch_size": patch, "image_size": image}
            text_config = dict(zip(keys, TOWERS[text], strict=True)) | {"vocab_size": 256_000}
            text_config["projection_size"] = vision_config["hidden_size"]
            config = SiglipConfig(vision_config=vision_config, text_config=text_config)
            structure(f"siglip2_{name}", SiglipModel(config))
        for name, changes in VJEPA2.items():
            structure(f"vjepa2_{name}", VJEPA2Model(VJEPA2Config(**changes)))


@torch.no_grad()
def main() -> None:
    for name, changes in {"dinov2": {}, "dinov2_swiglu": {"use_swiglu_ffn": True}}.items():
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY_DINOV2, **changes))
        make_image_golden(name, ready(model), native=16)
    for name, changes in {"dinov3": {}, "dinov3_gated": {**GATED, **NO_BIAS}}.items():
        make_image_golden(name, ready(DINOv3ViTModel(DINOv3ViTConfig(**TINY_DINOV3, **changes))), native=16)
    make_siglip2_golden()
    make_vjepa2_golden()
    make_structures()


if __name__ == "__main__":
    main()
