"""Fast-WAM from the open Wan 2.2 5B video model, finetuned on one GPU with LoRA.

    wam assets wan22_ti2v_5b wan22_vae umt5_xxl      (the command that gets each)
    wam train --config configs/fast_wam.py --config.data.datasets='("DIR",)'

Video weights, the autoencoder and the text encoder are Wan's; the action expert is interpolated from the video expert,
as in the paper (arXiv 2603.16666). Two cameras of 224 x 224, three frames, 32 actions. In full instead of with LoRA:
``--config.train.lora.rank=0 --config.train.trainable='()'`` (`wam bench train` tells what either needs). Text is
padded to 512 tokens that all take part in cross-attention, as Wan was trained.
"""

from ml_collections import ConfigDict

from configs import bridge


def get_config() -> ConfigDict:
    config = bridge.get_config()
    config.init = "wan22_ti2v_5b"
    config.tokenizer.name = "wan22_vae"
    config.model = ConfigDict({"name": "fast_wam", "size": "5b", "options": {"padded_text": True}})
    config.data.text_encoder = "umt5_xxl"
    config.data.text_tokens = 512
    config.data.precompute_latents = True
    config.data.image_size = (224, 224)
    config.data.frame_steps = (0, 16, 32)
    config.data.action_horizon = 32
    config.train.action_expert = "interpolated"
    config.train.lora.rank = 32
    config.train.lora.alpha = 32.0
    config.train.lora.targets = r"blocks/video/.*(query|key|value|output|up|down)$"
    config.train.trainable = (r".*/action/.*", r"maps/state/.*")
    config.train.frozen_dtype = "bfloat16"
    config.train.batch_size = 16
    config.train.optimizer.learning_rate = 1e-4
    config.train.optimizer.ema = 0.0
    config.train.optimizer.steps = 20_000
    return config
