import dataclasses

from wam_jax.wam.noise import Coupled
from wam_jax.wam.spec import Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN21, Size

COGVIDEOX_5B = Size(
    layers=42, heads=48, head_dim=64, video=3072, video_ffn=12288, action=3072, action_ffn=12288, action_layers=42,
)  # fmt: skip


@system(
    {"5b": COGVIDEOX_5B},
    {"5b": dataclasses.replace(WAN21, latent_shape=(32, 32, 16), frame_steps=tuple(range(13)), action_horizon=6,
                               action_size=7, text_tokens=226)},
)  # fmt: skip
def videovla(size: Size) -> Spec:
    """VideoVLA: instruction, future latents and a 7-DoF chunk in one sequence, denoised together.

    arXiv 2512.06963. Kept: one expert, text as tokens of the sequence, full attention, one noise level for all.
    Differs: flow matching instead of zero-SNR DDPM; ten Euler steps without guidance instead of fifty of DPM++ with
    dynamic guidance 6; text has no adaLN of its own, and all layers share one adaLN projection; the present is clean
    tokens, not extra channels.
    """
    return Spec(
        name="videovla",
        experts=(unified_expert(size, text=False),),
        streams=(
            Stream(name="understanding", kind="understanding", expert="all", role="context"),
            video("all"),
            action("all"),
        ),
        visibility=BIDIRECTIONAL,
        noise=Coupled(),
        modes=(together("policy", "video", "action"),),
        **size.trunk(),
    )
