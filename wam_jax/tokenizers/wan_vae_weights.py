"""Which tensor of a published Wan autoencoder each parameter is.

Names are those of diffusers' checkpoints (``vae/diffusion_pytorch_model.safetensors``), which are those of its
``AutoencoderKLWan`` in memory. The original ``.pth`` files have others.
"""

from collections.abc import Callable

from wam_jax.tokenizers.wan_vae import WanVAEConfig
from wam_jax.tokenizers.wan_vae_blocks import Stage
from wam_jax.weights.mapping import Source, WeightMap

Name = Callable[[int], str]  # of the n-th layer of a stage: its residual blocks, then its resampling


def weight_map(config: WanVAEConfig) -> WeightMap:
    """Of ``WanVAE``."""
    return {
        "encoder": {
            "conv_in": _conv("encoder.conv_in"),
            "stages": {
                str(index): _stage(stage, config.num_blocks, _encoder_layer(config, index))
                for index, stage in enumerate(config.encoder_stages())
            },
            "middle": _middle("encoder.mid_block"),
            "norm_out": _norm("encoder.norm_out"),
            "conv_out": _conv("encoder.conv_out"),
        },
        "decoder": {
            "conv_in": _conv("decoder.conv_in"),
            "middle": _middle("decoder.mid_block"),
            "stages": {
                str(index): _stage(stage, config.num_blocks + 1, _decoder_layer(config, index))
                for index, stage in enumerate(config.decoder_stages())
            },
            "norm_out": _norm("decoder.norm_out"),
            "conv_out": _conv("decoder.conv_out"),
        },
        "quant": _pointwise("quant_conv"),
        "post_quant": _pointwise("post_quant_conv"),
    }


def _encoder_layer(config: WanVAEConfig, stage: int) -> Name:
    """Wan 2.1 counts all layers of the encoder through; Wan 2.2 counts stages, and blocks within."""
    if not config.shortcuts:
        return lambda layer: f"encoder.down_blocks.{stage * (config.num_blocks + 1) + layer}"
    blocks = f"encoder.down_blocks.{stage}"
    return lambda layer: f"{blocks}.resnets.{layer}" if layer < config.num_blocks else f"{blocks}.downsampler"


def _decoder_layer(config: WanVAEConfig, stage: int) -> Name:
    blocks, resample = f"decoder.up_blocks.{stage}", "upsampler" if config.shortcuts else "upsamplers.0"
    return lambda layer: f"{blocks}.resnets.{layer}" if layer <= config.num_blocks else f"{blocks}.{resample}"


def _stage(stage: Stage, num_blocks: int, layer: Name) -> WeightMap:
    blocks = {str(i): _block(layer(i), shortcut=i == 0 and stage.inputs != stage.outputs) for i in range(num_blocks)}
    if stage.space == 1:
        return {"blocks": blocks}
    resample = {"space": _picture_conv(f"{layer(num_blocks)}.resample.1")}
    if stage.time == 2:
        resample["time"] = _conv(f"{layer(num_blocks)}.time_conv")
    return {"blocks": blocks, "resample": resample}


def _block(name: str, shortcut: bool = False) -> WeightMap:
    layers = {
        "norm1": _norm(f"{name}.norm1"),
        "conv1": _conv(f"{name}.conv1"),
        "norm2": _norm(f"{name}.norm2"),
        "conv2": _conv(f"{name}.conv2"),
    }
    return {**layers, "shortcut": _pointwise(f"{name}.conv_shortcut")} if shortcut else layers


def _middle(name: str) -> WeightMap:
    attention = f"{name}.attentions.0"
    return {
        "before": _block(f"{name}.resnets.0"),
        "attention": {
            "norm": {"scale": Source(f"{attention}.norm.gamma", "c 1 1 -> c")},
            "query_key_value": _pointwise(f"{attention}.to_qkv", "o i 1 1 -> i o"),
            "output": _pointwise(f"{attention}.proj", "o i 1 1 -> i o"),
        },
        "after": _block(f"{name}.resnets.1"),
    }


def _conv(name: str) -> WeightMap:
    return {"kernel": Source(f"{name}.weight", "o i t h w -> t h w i o"), "bias": Source(f"{name}.bias")}


def _picture_conv(name: str) -> WeightMap:
    return {"kernel": Source(f"{name}.weight", "o i h w -> 1 h w i o"), "bias": Source(f"{name}.bias")}


def _pointwise(name: str, pattern: str = "o i 1 1 1 -> i o") -> WeightMap:
    return {"kernel": Source(f"{name}.weight", pattern), "bias": Source(f"{name}.bias")}


def _norm(name: str) -> WeightMap:
    return {"scale": Source(f"{name}.gamma", "c 1 1 1 -> c")}
