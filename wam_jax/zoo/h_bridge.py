from wam_jax.wam.spec import Bridge, Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL
from wam_jax.zoo.common import action, action_expert, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size


@system({"5b": WAN_5B}, {"5b": WAN22})
def h_bridge(size: Size) -> Spec:
    """H-bridge: two branches of equal depth that read each other by cross-attention in every layer.

    No one published system; the coupling between "joint attention" and "one reads the other" in ablations of couplings.
    """
    return Spec(
        name="h_bridge",
        experts=(
            video_expert(size, bridge=Bridge(source="action", layers="parallel")),
            action_expert(size, bridge=Bridge(source="video", layers="parallel")),
        ),
        streams=(video(), state("action"), action()),
        visibility=FIRST_FRAME_CAUSAL,
        modes=(together("policy", "video", "action"),),
        **size.trunk(),
    )
