import dataclasses

from wam_jax.wam.noise import Coupled, Independent, Shifted, Uniform
from wam_jax.wam.spec import Move, Spec
from wam_jax.wam.visibility import CROSS, FIRST_FRAME_CAUSAL
from wam_jax.zoo.common import action, action_expert, state, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size


@system(
    {"5b": WAN_5B},
    {
        "5b": dataclasses.replace(
            WAN22, frame_steps=(0, 48), action_horizon=48, action_size=16, text_tokens=64, embodiments=2
        )
    },
)
def gigaworld_policy(size: Size, *, mixture: bool = False) -> Spec:
    """GigaWorld-Policy: actions never see the imagined future, so at test time it is dropped exactly.

    arXiv 2603.17240, and 2607.13960 for ``mixture`` (version 0.5: own action expert, shifts 2 and 5 drawn apart). Kept:
    one expert and one noise level with shift 5, per-embodiment maps, state and present see only each other, actions see
    them, the future sees all. Differs: linear maps instead of three-layer ones of which the first is an embodiment's
    own.
    """
    experts = (unified_expert(size),) if not mixture else (unified_expert(size), action_expert(size))
    return Spec(
        name="gigaworld_policy",
        experts=experts,
        streams=(
            video("all", Shifted(Uniform(), 2.0 if mixture else 5.0)),
            state("all", per_embodiment=True),
            action(experts[-1].name, Shifted(Uniform(), 5.0), per_embodiment=True),
        ),
        visibility=FIRST_FRAME_CAUSAL & CROSS["video_sees_action"],
        noise=Independent() if mixture else Coupled(),
        modes=(
            together("policy", Move("action", shift=5.0)),
            together("joint", Move("video", shift=2.0 if mixture else 5.0), Move("action", shift=5.0)),
        ),
        **size.trunk(),
    )
