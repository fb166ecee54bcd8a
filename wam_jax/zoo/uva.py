from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL
from wam_jax.zoo.common import action, state, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, DEBUG, Size

LARGE = Size(
    layers=32, heads=16, head_dim=64, video=1024, video_ffn=4096, action=1024, action_ffn=4096, action_layers=32,
)  # fmt: skip


@system({"debug": DEBUG, "large": LARGE}, {"large": COSMOS})
def uva(size: Size) -> Spec:
    """UVA: a trunk that sees no noise, and a small diffusion head for every token of video and actions.

    arXiv 2503.00200. Kept: future tokens are masked queries in one shared trunk, diffusion heads a modality, the action
    head alone at test time. Differs: all of the future is masked, always (there at least 70%); one block of encoder and
    decoder; queries for actions instead of pooled video tokens; flow matching in the heads.
    """
    return Spec(
        name="uva",
        experts=(unified_expert(size),),
        streams=(video("all", head="diffusion"), state("all"), action("all", head="diffusion")),
        visibility=FIRST_FRAME_CAUSAL,
        modes=(together("policy", "action"), together("video", "video")),
        **size.trunk(),
    )
