import dataclasses

from wam_jax.wam.noise import LogitNormal
from wam_jax.wam.spec import Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, action_expert, modes_by_noise, state, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size


@system({"8b": WAN_5B}, {"8b": dataclasses.replace(WAN22, frame_steps=(0, 24, 48), action_horizon=48)})
def motus(size: Size, *, registers: int = 4) -> Spec:
    """Motus: experts of understanding, video and action in one joint attention; used by choice of noise.

    arXiv 2512.13030. Kept: three experts of different widths over equal heads, frozen language features as tokens of
    the understanding expert, state and registers beside the actions, text cross-attention in the video expert only,
    full attention, independent logit-normal noise, all five uses. Differs: the understanding tokens are a text
    encoder's, not those of a vision-language model that also sees (2.1B of the 8B are not here); that expert has adaLN,
    too; rotary positions in all experts; no pretraining on latent actions.
    """
    understanding = action_expert(
        size, name="understanding", width=size.action // 2, ffn_width=size.action_ffn // 2, conditions=(), text=False
    )
    return Spec(
        name="motus",
        experts=(video_expert(size), action_expert(size, text=False), understanding),
        streams=(
            Stream(name="understanding", kind="understanding", expert="understanding", role="context"),
            video(noise=LogitNormal()),
            state("action"),
            action(noise=LogitNormal()),
            Stream(name="register", kind="register", expert="action", role="context", tokens=registers),
        ),
        visibility=BIDIRECTIONAL,
        modes=modes_by_noise(),
        **size.trunk(),
    )
