"""What all experiments share; each config changes a few of these fields."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults. Every field can be set on the command line: ``--config.train.optimizer.steps=100``."""
    config = ConfigDict()
    config.seed = 0
    config.platform = "auto"  # auto | cpu | gpu | tpu
    config.cpu_devices = 1  # simulated devices on the CPU platform
    config.distributed = False  # one of several processes, as on a pod: see wam_jax/processes.py
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "context": 1, "tensor": 1})
    # What to start from: a run or an export (its tokenizer and, if it fits, its normalisation stay), or a Wan video
    # model's transformer: the name of an asset, a folder or a file of safetensors.
    config.init = ""
    config.until = "model"  # the last stage that is trained: tokenizer | latent_action | model

    # Demonstrations made by the simulator's experts; a config over recorded data leaves tasks empty.
    config.demos = ConfigDict()
    config.demos.tasks = ()
    config.demos.episodes = ()  # training episodes of each task
    config.demos.directory = ""  # where they are written, for several runs to share; empty: data/ of the work folder
    config.demos.validation_episodes = 64  # of each task
    config.demos.wander_steps = 10  # the arm goes some way to a random place before an episode begins
    config.demos.hold_steps = 8  # an episode ends so many steps after its instruction holds for good
    config.demos.action_noise = 0.15  # standard deviation, in units of the largest action
    # What objects of each colour look like: {"red": ("cube", "cylinder"), ...}, out of cube, cylinder and sphere; what
    # is not named is an unseen combination to `wam evaluate --robustness`. Empty: the task's own shape.
    config.demos.object_shapes = ConfigDict()
    config.demos.depth = False  # also write depth pictures, as cameras front_depth and wrist_depth

    config.data = ConfigDict()
    config.data.datasets = ()  # RLDS or LeRobot folders; filled by the demonstrations
    config.data.weights = ()  # how often each dataset is drawn; empty: all windows alike
    config.data.embodiments = ()  # number of each dataset's robot; empty: all 0
    config.data.split = "train"
    config.data.unlabelled = ""  # a split whose actions are not looked at: action-free video beside ``split``
    config.data.validation_split = "val"
    config.data.cameras = ("front", "wrist")
    config.data.depth_cameras = ()  # cameras that show depth, such as ("front_depth", "wrist_depth"): a stream "depth"
    config.data.value_discount = 0.0  # each step before the episode's end; 0: no stream "value"
    config.data.image_size = (64, 64)
    config.data.action_key = "action"
    config.data.proprio_key = "proprio"
    config.data.frame_steps = (0, 8)  # control steps of the frames; the first is now
    config.data.starts = 0  # windows start at so many first steps of an episode only; 0: at all of them
    config.data.action_horizon = 12
    config.data.action_block = 0  # displacements start anew so often (causal models); 0: once a chunk
    config.data.cumulative = (True, True, True, False)  # action dimensions that are deltas, learned as displacements
    config.data.normalization = "mean_std"  # mean_std | quantile | none
    config.data.unnormalized = (3,)  # action dimensions left as they are (the gripper)
    config.data.packed = False  # rows of frame_steps that hold whole episodes, several where they are short
    config.data.precompute_latents = True  # encode every frame once, before training
    # Learn from skills instead of whole demonstrations, each with its own instruction: see `wam skills`.
    config.data.skills = ConfigDict(
        {
            "cut": "",  # gripper | pause; empty: whole demonstrations
            "signal": "proprio[6]",  # the gripper's columns (their mean is its width); for pause, the hand's
            "scale": 0.08,  # metres of a unit of the gripper's
            "closed_by": 0.02,  # metres, see posttraining/skills.py; the simulator's cubes are 0.044 wide of 0.08
            "open_again": 0.5,
            "speed": 0.004,  # metres a step, of pauses
            "lasting": 3,  # steps
            "tail": 16,  # steps
            "splitter": "grammar",  # grammar | chat (the language model at WAM_CHAT_URL)
        }
    )
    config.data.threads = 2
    config.data.text_encoder = "minilm_l6"  # or umt5_xxl, t5_v1_1_xxl, siglip2_base_patch16_224, ...: `wam assets`
    config.data.text_tokens = 16  # instructions are padded to so many; a longer one is not cut

    config.tokenizer = ConfigDict()
    config.tokenizer.name = ""  # a published one: wan21_vae | wan22_vae | taef2; empty: trained here
    config.tokenizer.init = ""  # a run whose tokenizer is taken; config.init's is, without being named here
    config.tokenizer.sizes = ConfigDict(
        {"patch_size": 8, "channels": 8, "width": 128, "ffn_ratio": 2, "encoder_layers": 1, "decoder_layers": 2}
    )
    config.tokenizer.frames = 1  # of the clips it learns on
    config.tokenizer.batch_size = 32  # windows; each gives one clip of every camera
    config.tokenizer.optimizer = ConfigDict({"steps": 400, "learning_rate": 2e-3, "warmup": 50, "ema": 0.99})
    config.tokenizer.loss = ConfigDict(  # weights; what has weight 0 is not there (objectives/reconstruction.py)
        {
            "l1": 1.0,
            "l2": 2.0,
            "perceptual": 0.0,
            "adversarial": 0.0,
            "adversarial_start": 0,
            "alignment": 0.0,
            "alignment_kind": "pooled_l2",  # pooled_l2 | va_vae
            "alignment_share": 1.0,
            "projector": "linear",  # linear | mlp | conv
        }
    )
    config.tokenizer.lpips = "alex"  # alex | vgg
    config.tokenizer.teacher = "efficientnet_lite2"  # or dinov2_base, perception_l14_448, ...: `wam assets`
    config.tokenizer.teacher_size = ()  # pixels (rows, columns) of what the teacher sees; empty: as it was trained

    # Latent actions, for systems that have a stream of them.
    config.latent_action = ConfigDict()
    config.latent_action.init = ""  # a run whose latent actions are taken
    config.latent_action.sizes = ConfigDict(
        {"kind": "transport", "size": 4, "hidden": 256, "layers": 4, "codebook": 64, "beta": 1e-3}
    )
    config.latent_action.batch_size = 64
    config.latent_action.optimizer = ConfigDict({"steps": 1000, "learning_rate": 1e-3, "warmup": 50, "ema": 0.99})

    # A system of the zoo at one of its sizes; options are its own, or fields of Size and Spec.
    config.model = ConfigDict({"name": "fast_wam", "size": "debug"})
    config.model.options = ConfigDict(
        {
            "noise": "logit_normal",
            "action_draws": 4,
            "video_batch_share": 0.25,
            "video_loss_weight": 0.3,
            "action_steps": 6,
            "video_steps": 12,
            "context_noise": 0.05,
        }
    )

    # Alignment of hidden video tokens to a frozen vision encoder (AGRA). Variants: none; frozen (the video expert is
    # not trained; needs init); shared (actions read the denoising pass, which is aligned); video (they read a pass of
    # their own, and the denoising pass is aligned); action_condition (the pass that they read is aligned).
    config.alignment = ConfigDict({"variant": "none", "weight": 0.5, "layers": (), "projector": "mlp"})
    config.alignment.teacher = "efficientnet_lite2"  # or dinov2_base, siglip2_base_patch16_224, ...: `wam assets`
    config.alignment.teacher_size = ()  # pixels (rows, columns) of what the teacher sees; empty: as it was trained
    config.alignment.random_teacher = False  # its weights at random: a control

    # A frozen policy (config.init) improved by what a world model imagines: see `wam posttrain` (World2Act).
    config.posttrain = ConfigDict(
        {
            "method": "",  # residual | lora | pixels; empty: none
            "world": "",  # run of the world model; empty: config.init's own video
            "imagination": "world",  # world | expert (what the scripted expert would do: a control without its errors)
            "skills": "",  # gripper | pause (as data.skills.cut): from where each skill begins; empty: whole episodes
            "windows": 0,  # of the world model, one after the other; 0: as long as the expert takes (the longest skill)
            "trajectories": 256,  # imagined, each from a start of its own
            "tracked": 64,  # more of them, to see on what similarity and its gradient tell
            "batch_size": 32,  # episodes beside each other, each the others' negative
            "seed": 5000,  # of the starts; not that of any evaluation
        }
    )
    # Stage 1: sizes are those of posttraining/adapters.py.
    config.posttrain.adapters = ConfigDict(
        {
            "preset": "latents",  # latents | features (of the world model's hidden tokens; wider adapters)
            "batch_size": 32,
            "hard_share": 0.25,  # of a batch: demonstrations of one instruction, harder to tell apart
            # See posttraining/chunk_view.py: columns of proprioception in which displacements begin (empty: they are
            # compared as they are), what a raw action of 1 moves these by, dimensions that are not compared.
            "position": (),
            "unit": 1.0,
            "hidden": (),
            # Further negatives of each sequence: its own chunks, moved up to so far. Needs position.
            "elsewhere": 0,
            "elsewhere_metres": 0.05,
            # Beside the demonstrations, so many episodes of the base's own, with noise in its (raw) actions.
            "own_episodes": 0,
            "own_noise": 0.5,
        }
    )
    config.posttrain.adapters.options = ConfigDict({})
    config.posttrain.adapters.optimizer = ConfigDict({"steps": 3000, "learning_rate": 1e-3, "warmup": 100, "ema": 0.99})
    # Stage 2: sizes are those of posttraining/residual.py; config.train.lora those of LoRA.
    config.posttrain.residual = ConfigDict({"options": {}})
    config.posttrain.optimizer = ConfigDict({"steps": 300, "learning_rate": 1e-3, "warmup": 30, "ema": 0.9})

    config.train = ConfigDict()
    config.train.batch_size = 64
    config.train.optimizer = ConfigDict(
        {
            "steps": 2000,
            "method": "adamw",  # adamw | muon | adafactor
            "learning_rate": 3e-3,
            "warmup": 100,
            "decay": "cosine",  # cosine | linear | constant
            "weight_decay": 0.0,
            "moments": "float32",  # float32 | bfloat16 | float8
            "clip": 1.0,
            "layer_decay": 1.0,  # learning rate of a layer over that of the layer above it
            "rates": (),  # (regular expression, factor) of single parameters' learning rates
            "ema": 0.99,  # 0.0: no moving average
        }
    )
    config.train.accumulate = 1  # parts that a batch is worked through in, one after the other
    config.train.check_memory = True  # stop before the first step where memory will not do
    config.train.trainable = ()  # regular expressions of parameters' paths; empty: all (with LoRA: its factors)
    config.train.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": r"trunk/.*(query|key|value|output|up|down)$"})
    config.train.action_expert = "new"  # new | interpolated (from the video expert, where config.init is a Wan model)
    config.train.frozen_dtype = "float32"  # of parameters that are not trained
    # Closed-loop success while training; the best state is kept in best/. Not on the episodes that are reported.
    config.train.score = ConfigDict({"every": 0, "episodes": 128, "seed": 77})
    config.train.save_every = 500
    config.train.log_every = 20
    config.train.log_batches = False
    config.train.validation_windows = 256

    config.evaluation = ConfigDict()
    config.evaluation.episodes = 256
    config.evaluation.batch_size = 128  # episodes simulated at once
    config.evaluation.execute = 4  # actions of each chunk that are executed before planning anew
    config.evaluation.candidates = 1  # chunks to choose from by predicted value; 1: no choice
    config.evaluation.films = 6  # rollouts shown in the report, for each task
    config.evaluation.seed = 1000
    config.evaluation.robustness_episodes = 64  # under each changed condition, for --robustness
    config.evaluation.robustness_axes = ()  # such as ("camera", "light"), see evaluation/robustness.py; empty: all
    config.evaluation.robustness_strengths = (1 / 3, 2 / 3, 1.0)  # of 1; wording and looks have their own
    config.evaluation.grounding_scenes = 64  # of each task, for --grounding
    return config
