"""Named systems, each a spec."""

from collections.abc import Sequence

from wam_jax.wam.noise import LogitNormal, StreamNoise
from wam_jax.wam.spec import Expert, Spec, Stream
from wam_jax.wam.visibility import COUPLINGS


def joint_mot(
    *,
    num_layers: int = 3,
    num_heads: int = 4,
    head_dim: int = 32,
    video_width: int = 128,
    action_width: int = 64,
    ffn_ratio: int = 3,
    video_conditions: Sequence[str] = ("text",),
    action_conditions: Sequence[str] = ("text", "state"),
    coupling: str = "isolated",
    action_draws: int = 4,
    video_batch_share: float = 0.25,
    video_loss_weight: float = 0.3,
    action_steps: int = 6,
    video_steps: int = 12,
    context_noise: float = 0.05,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int = 1,
) -> Spec:
    """A joint world action model as a mixture of transformers, small enough to learn on a CPU.

    The shape of Fast-WAM (methods: a video expert and a narrower action expert with joint attention; actions sampled
    alone on the cached present). It differs in size, in the noise distributions, and in drawing several action noise
    levels over one context.

    Text conditions both experts twice: its tokens by cross-attention, their mean through adaLN.

    Args:
      coupling: "isolated", "action_sees_video", "video_sees_action" or "mutual". Streams that see each other are
        denoised together, so they are drawn equally often: one draw, on the whole batch.
    """
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling {coupling!r} is unknown (has: {', '.join(COUPLINGS)})")
    if coupling != "isolated":
        action_draws, video_batch_share = 1, 1.0
    return Spec(
        name="joint_mot",
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        experts=(
            Expert(
                name="video", width=video_width, ffn_width=ffn_ratio * video_width, conditions=tuple(video_conditions)
            ),
            Expert(
                name="action",
                width=action_width,
                ffn_width=ffn_ratio * action_width,
                conditions=tuple(action_conditions),
            ),
        ),
        streams=(
            Stream(
                name="video",
                expert="video",
                noise=StreamNoise(
                    distribution=LogitNormal(mean=0.5),
                    batch_share=video_batch_share,
                    loss_weight=video_loss_weight,
                ),
                sampling_steps=video_steps,
            ),
            Stream(name="state", expert="video"),
            Stream(
                name="action",
                expert="action",
                noise=StreamNoise(
                    distribution=LogitNormal(mean=0.7, uniform_share=0.2, minimum=0.02), draws=action_draws
                ),
                sampling_steps=action_steps,
            ),
        ),
        visibility=COUPLINGS[coupling],
        context_noise=context_noise,
        dtype=dtype,
        remat=remat,
        unroll=unroll,
    )


ZOO = {"joint_mot": joint_mot}


def make_spec(name: str, **sizes) -> Spec:
    """The named spec, with its keyword arguments replaced.

    Raises:
      ValueError: for an unknown name or argument.
    """
    if name not in ZOO:
        raise ValueError(f"model {name!r} is not in the zoo (has: {', '.join(ZOO)}); set model.name")
    try:
        return ZOO[name](**sizes)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}; see {name} in wam_jax/zoo.py for its arguments") from None
