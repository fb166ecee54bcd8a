"""Writes {t5,umt5,wan_umt5}_golden.npz and the structures of T5 v1.1 and UMT5, for tests/encoders/test_t5.py.

Runs in an environment of its own, offline:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
    VENV/bin/pip install --no-deps diffsynth==2.1.12
    VENV/bin/python tests/parity/make_t5_golden.py

Tiny encoders of ``transformers`` with random weights, two sentences of different length, padded. Every parameter is
random, norms and position biases too. Wan's own implementation (Wan-Video/Wan2.1, wan/modules/t5.py) is that of
DiffSynth-Studio 2.1.12, which has it unchanged but for the class's name; it must give what ``transformers`` gives.

Full sizes are those of google-research/t5x (t5x/examples/t5/t5_1_1/{base,large,xl,xxl}.gin;
t5x/examples/scalable_t5/umt5/pretrain_{base,xl,xxl}.gin with mt5/{base,xl,xxl}.gin and umt5/vocab.gin); Wan's are the
defaults of its class. Names are those of ``T5ForConditionalGeneration`` and ``UMT5ForConditionalGeneration`` with every
alias of the embedding table. The published files themselves could not be read here.
"""

import importlib.util
import sys
import types
from pathlib import Path

import golden
import numpy as np
import torch
import transformers

# (d_model, d_ff, num_layers, num_heads)
SHAPES = {
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}
TINY = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
WAN_NAMES = (
    ("encoder.block.", "blocks."),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention", "attn"),
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
    ("shared", "token_embedding"),
)


def configuration(kind: str, **sizes) -> transformers.PretrainedConfig:
    make = {"t5": transformers.T5Config, "umt5": transformers.UMT5Config}[kind]
    return make(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)


def randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Attention is not scaled: small queries keep the softmax from being one-hot.
        scale = 0.15 if ".q." in name else 0.3
        parameter.data = (
            1 + 0.3 * noise if "norm" in name else noise * (1.0 if parameter.shape[0] in (32, 50) else scale)
        )


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of two sentences in 150 places: farther than the farthest bucket of positions."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(2, 50, (2, 150)))
    mask = torch.zeros(2, 150, dtype=torch.long)
    mask[0, :150], mask[1, :11] = 1, 1
    return ids, mask


def wan_module() -> types.ModuleType:
    """DiffSynth-Studio's file alone: its package would import much else."""
    for unused in ("ftfy", "regex"):
        sys.modules.setdefault(unused, types.ModuleType(unused))
    package = importlib.util.find_spec("diffsynth").submodule_search_locations[0]
    path = Path(package) / "models" / "wan_video_text_encoder.py"
    spec = importlib.util.spec_from_file_location("wan_video_text_encoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wan_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for theirs, wans in WAN_NAMES:
            name = name.replace(theirs, wans)
        renamed[name] = tensor
    return renamed


def make(kind: str) -> None:
    config = configuration(kind, **TINY)
    config._attn_implementation = "eager"
    model = {"t5": transformers.T5EncoderModel, "umt5": transformers.UMT5EncoderModel}[kind](config).eval()
    randomize(model)
    ids, mask = inputs()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "encoder.embed_tokens.weight"}
    assert torch.equal(weights["shared.weight"], model.encoder.embed_tokens.weight)
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    golden.save_golden(f"{kind}_golden", weights, {"ids": ids, "mask": mask.bool()}, outputs(model, hidden))
    if kind == "umt5":
        make_wan(weights, hidden)


def outputs(model: torch.nn.Module, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Hidden states of every tenth token, and the buckets of 600 tokens seen from the first and from the last."""
    distances = torch.arange(600)[None] - torch.arange(600)[:, None]
    buckets = model.encoder.block[0].layer[0].SelfAttention._relative_position_bucket(distances)
    return {"hidden": hidden[:, ::10], "buckets": buckets[[0, -1]]}


def make_wan(weights: dict[str, torch.Tensor], by_transformers: torch.Tensor) -> None:
    model = wan_module().WanTextEncoder(
        vocab=50, dim=24, dim_attn=16, dim_ffn=40, num_heads=2, num_layers=2, num_buckets=32, shared_pos=False
    )
    model.eval().load_state_dict(wan_weights(weights))
    ids, mask = inputs()
    with torch.inference_mode():
        hidden = model(ids, mask)
    error = ((by_transformers - hidden)[mask.bool()].abs().max() / hidden.abs().max()).item()
    assert error < 1e-5, error
    golden.save_golden(
        "wan_umt5_golden", wan_weights(weights), {"ids": ids, "mask": mask.bool()}, {"hidden": hidden[:, ::10]}
    )


def structure(kind: str, size: str) -> dict[str, tuple[int, ...]]:
    d_model, d_ff, num_layers, num_heads = SHAPES[size]
    vocabulary = {"t5": 32128, "umt5": 256384}[kind]
    config = configuration(
        kind, d_model=d_model, d_kv=64, d_ff=d_ff, num_layers=num_layers, num_heads=num_heads, vocab_size=vocabulary
    )
    whole = {"t5": transformers.T5ForConditionalGeneration, "umt5": transformers.UMT5ForConditionalGeneration}[kind]
    with torch.device("meta"):
        return shapes(whole(config))


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def main() -> None:
    make("t5")
    make("umt5")
    for size in SHAPES:
        golden.save_structure(f"t5_v1_1_{size}", structure("t5", size))
    for size in ("base", "xl", "xxl"):
        golden.save_structure(f"umt5_{size}", structure("umt5", size))
    with torch.device("meta"):
        golden.save_structure("wan_umt5_xxl", shapes(wan_module().WanTextEncoder()))


if __name__ == "__main__":
    main()
