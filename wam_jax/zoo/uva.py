import dataclasses

from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, state, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, Size

LARGE = Size(
    layers=32, heads=16, head_dim=64, video=1024, video_ffn=4096, action=1024, action_ffn=4096, action_layers=32,
    patch_size=1,
)  # fmt: skip

DATA = dataclasses.replace(COSMOS, latent_shape=(16, 16, 16), cameras=1, frame_steps=(0, 4, 8, 12, 16), text_width=512)


@system({"large": LARGE}, {"large": DATA})
def uva(size: Size) -> Spec:
    """UVA: a trunk that sees no noise, and a small diffusion head for every token of video and actions.

    arXiv 2503.00200. Kept: future tokens are masked queries in one shared trunk with full attention, diffusion heads a
    modality, the action head alone at test time. Differs: all of the future is masked, always (there at least 70%); one
    stack instead of encoder and decoder; queries for actions instead of pooled video tokens; flow matching in the
    heads; the present instead of four past frames; heads of two blocks (there six), ten steps (there 100).
    """
    return Spec(
        name="uva",
        experts=(unified_expert(size),),
        streams=(video("all", head="diffusion"), state("all"), action("all", head="diffusion")),
        visibility=BIDIRECTIONAL,
        modes=(together("policy", "action"), together("video", "video")),
        **size.trunk(),
    )
