from wam_jax.wam.noise import Beta
from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED
from wam_jax.zoo.common import action, action_expert, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size


@system({"5b": WAN_5B}, {"5b": WAN22})
def reactive(size: Size) -> Spec:
    """Reactive: the same trunk with no future, the baseline that a world action model must beat.

    The present is context, the action chunk is denoised from it, as in vision-language-action models with a flow-
    matching expert (π0, arXiv 2410.24164).
    """
    return Spec(
        name="reactive",
        experts=(video_expert(size), action_expert(size)),
        streams=(video(role="context", noise=None), state("action"), action(noise=Beta(1.5, 1.0))),
        visibility=FIRST_FRAME_CAUSAL & ISOLATED,
        modes=(together("policy", "action"),),
        **size.trunk(),
    )
