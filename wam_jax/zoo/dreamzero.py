import dataclasses

from wam_jax.wam.noise import Beta, Coupled, Independent, Shifted, Uniform
from wam_jax.wam.spec import Spec
from wam_jax.wam.visibility import CHUNK_CAUSAL, Rule
from wam_jax.zoo.common import action, state, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import DEBUG, WAN21, WAN_14B, Size

# Past actions are not in the sequence; what they did is in the frames and the state.
NO_PAST_ACTIONS = ~Rule("past actions", lambda q, k: k.clean and k.stream == "action")


@system(
    {"debug": DEBUG, "14b": WAN_14B},
    {"14b": dataclasses.replace(WAN21, frame_steps=(0, 24, 48, 72, 96), action_horizon=96, action_size=32)},
)
def dreamzero(size: Size, *, decoupled: bool = False, history: int = 3) -> Spec:
    """DreamZero: chunk after chunk of video and actions, on a cache of what was really seen.

    arXiv 2602.15922. Kept: one expert, teacher forcing on clean past frames, state in every block, per-embodiment maps,
    coupled noise with shift 5 (or ``decoupled``: video Beta(7, 1), actions uniform), the key-value cache. Differs:
    linear maps instead of two-layer ones; no image cross-attention of the I2V backbone; one frame a block by default.
    """
    video_noise = Beta(7.0, 1.0) if decoupled else Shifted(Uniform(), 5.0)
    return Spec(
        name="dreamzero",
        experts=(unified_expert(size),),
        streams=(
            video("all", video_noise),
            state("all", per_embodiment=True),
            action("all", Uniform() if decoupled else Shifted(Uniform(), 5.0), per_embodiment=True),
        ),
        visibility=CHUNK_CAUSAL & NO_PAST_ACTIONS,
        noise=Independent() if decoupled else Coupled(),
        chunk_frames=1,
        history=history,
        modes=(together("policy", "video", "action", steps=8),),
        **size.trunk(),
    )
