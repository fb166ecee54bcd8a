"""What the stages of RepWAM share: the data, and the sizes.

Frames are 4 control steps apart; each but a clip's first merges 4 images. A block is one frame and 4 actions; the model
remembers one block (in the paper 32).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.demos.tasks = ("reach", "pick_lift")
    config.demos.episodes = (400, 400)
    config.demos.directory = "runs/repwam/data"
    config.data.frame_steps = (0, 4, 8)
    config.data.action_horizon = 8
    config.data.action_block = 4

    config.tokenizer.sizes = ConfigDict(
        {
            "patch_size": 8,
            "tubelet": 4,
            "window": 3,
            "channels": 16,
            "width": 128,
            "ffn_ratio": 2,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "projection": "attention",
            "head": "linear",  # on a CPU "convolution" (RepViTok's) is most of the work
        }
    )
    config.tokenizer.frames = 3
    config.tokenizer.batch_size = 8
    config.tokenizer.optimizer.steps = 1000
    config.tokenizer.loss.l2 = 2.0  # not RepViTok's; in so short a training, L1 alone leaves small things out
    config.tokenizer.loss.perceptual = 1.0
    config.tokenizer.loss.adversarial = 0.1
    config.tokenizer.loss.adversarial_start = 800
    config.tokenizer.loss.alignment = 1.0
    config.tokenizer.loss.alignment_share = 0.125
    config.tokenizer.teacher_size = (128, 128)  # 8 x 8 features, as many as latents

    config.latent_action.batch_size = 16
    config.model.name = "repwam"
    config.model.options = ConfigDict({"history": 1, "noise": "logit_normal", "context_noise": 0.05})
    config.train.batch_size = 64
    config.train.optimizer.steps = 1400
    config.evaluation.execute = 4
    return config
