import dataclasses

from wam_jax.wam.noise import Bell, LogitNormal, Shifted, StreamNoise, Uniform
from wam_jax.wam.spec import Mode, Move, Spec
from wam_jax.wam.visibility import CROSS, FIRST_FRAME_CAUSAL, ISOLATED, sees_imagined
from wam_jax.zoo.common import action, action_expert, stage, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size

SIZES, INTERFACES = (
    {"5b": WAN_5B},
    {"5b": dataclasses.replace(WAN22, frame_steps=(0, 16, 32), text_tokens=128)},
)


@system(SIZES, INTERFACES)
def fast_wam(
    size: Size,
    *,
    coupling: str = "isolated",
    noise: str = "shifted",
    action_draws: int = 1,
    video_batch_share: float = 1.0,
    video_loss_weight: float = 1.0,
    action_steps: int = 10,
    video_steps: int = 10,
) -> Spec:
    """Fast-WAM: a video expert and a narrower action expert in joint attention; acts without imagining.

    arXiv 2603.16666. Kept: experts of different widths over equal heads, actions see the present only, independent
    noise with shift 5 and weight exp(-2 (t - ½)²), actions sampled alone on the cached present. Differs: proprioception
    is a token of the video expert instead of one of the text.

    Args:
      coupling: how actions and the imagined future see each other: one of ``CROSS``.
      noise: "shifted", or "logit_normal": more weight on high noise, for small models from scratch.
      action_draws, video_batch_share: noise levels drawn over one context, share of the batch on which video is trained
        (isolated streams only).
    """
    if coupling not in CROSS:
        raise ValueError(f"coupling {coupling!r} is unknown (has: {', '.join(CROSS)})")
    if noise not in ("shifted", "logit_normal"):
        raise ValueError(f"noise {noise!r} is unknown (has: shifted, logit_normal)")
    share, shift = video_batch_share, 5.0 if noise == "shifted" else 1.0
    moves = (Move("video", shift=shift), Move("action", shift=shift))
    if noise == "shifted":
        of_video = StreamNoise(distribution=Shifted(Uniform(), 5.0), weighting=Bell(2.0), batch_share=share)
        of_action = dataclasses.replace(of_video, draws=action_draws, batch_share=1.0)
    else:
        of_video = StreamNoise(distribution=LogitNormal(mean=0.5), batch_share=share)
        of_action = StreamNoise(distribution=LogitNormal(mean=0.7, uniform_share=0.2, minimum=0.02), draws=action_draws)
    return Spec(
        name="fast_wam",
        experts=(video_expert(size), action_expert(size)),
        streams=(video(noise=of_video, loss_weight=video_loss_weight), state(), action(noise=of_action)),
        visibility=FIRST_FRAME_CAUSAL & CROSS[coupling],
        modes=(
            together("policy", *moves, steps=action_steps),
            together("video", *moves, steps=video_steps),
        ),
        **size.trunk(),
    )


@system(SIZES, INTERFACES)
def fast_wam_joint(size: Size) -> Spec:
    """Fast-WAM (joint): the ablation in which actions see the video while both are denoised.

    arXiv 2603.16666. Kept: actions see all of the video, at a noise level of its own. Differs: as ``fast_wam``.
    """
    spec = fast_wam(size, coupling="action_sees_video")
    return dataclasses.replace(spec, name="fast_wam_joint")


@system(SIZES, INTERFACES)
def fast_wam_idm(size: Size) -> Spec:
    """Fast-WAM (IDM): the ablation that imagines first and then reads actions off the finished latents.

    arXiv 2603.16666. Kept: actions see the present and a clean future, true in training, imagined at test time.
    Differs: as ``fast_wam``; the future that training shows is never noised (there half of the time).
    """
    spec, imagine = fast_wam(size), Move("video", shift=5.0)
    return dataclasses.replace(
        spec,
        name="fast_wam_idm",
        visibility=FIRST_FRAME_CAUSAL & ISOLATED | sees_imagined("action", "video"),
        modes=(
            Mode(name="policy", stages=(stage(imagine), stage(Move("action", shift=5.0)))),
            together("video", imagine),
        ),
    )
