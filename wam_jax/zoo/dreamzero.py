import dataclasses

from wam_jax.wam.noise import Beta, Coupled, Independent, Shifted, StreamNoise, Uniform
from wam_jax.wam.spec import Move, Spec
from wam_jax.wam.visibility import CHUNK_CAUSAL, Rule
from wam_jax.zoo.common import action, state, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN21, WAN_14B, Size

# Past actions are not in the sequence; what they did is in the frames and the state.
NO_PAST_ACTIONS = ~Rule("past actions", lambda q, k: k.clean and k.stream == "action")
# A block is predicted from the state at its start; a state sees itself, and frames see frames.
OWN_STATE = Rule(
    "own state",
    lambda q, k: (
        (q.stream == k.stream and q.block == k.block)
        if q.clean and "state" in (q.stream, k.stream)
        else k.stream != "state" or k.block == q.block - 1
    ),
)


@system(
    {"14b": WAN_14B},
    {"14b": dataclasses.replace(WAN21, frame_steps=(0, 24, 48, 72, 96), action_horizon=96, action_size=32)},
)
def dreamzero(size: Size, *, decoupled: bool = False, history: int = 3) -> Spec:
    """DreamZero: chunk after chunk of video and actions, on a cache of what was really seen.

    arXiv 2602.15922. Kept: one expert; teacher forcing on clean past frames, a state for each block that only that
    block sees, per-embodiment maps; coupled noise with shift 5, a level a block (or ``decoupled``: video Beta(7, 1), 3
    in the released code, actions uniform); the key-value cache. Differs: linear maps instead of two- and three-layer
    ones; no image conditioning of the I2V backbone (14.3B, not 16.4B); eight Euler steps without guidance instead of
    sixteen of UniPC with 5; one frame a block by default (there two); the first frame leaves the cache with the others.
    """
    base = Beta(7.0, 1.0) if decoupled else Uniform()
    video_noise, action_noise = (StreamNoise(distribution=Shifted(of, 5.0), per_block=True) for of in (base, Uniform()))
    return Spec(
        name="dreamzero",
        experts=(unified_expert(size),),
        streams=(
            video("all", video_noise),
            state("all", per_embodiment=True),
            action("all", action_noise, per_embodiment=True),
        ),
        visibility=CHUNK_CAUSAL & NO_PAST_ACTIONS & OWN_STATE,
        noise=Independent() if decoupled else Coupled(),
        chunk_frames=1,
        history=history,
        modes=(together("policy", Move("video", shift=5.0), Move("action", shift=5.0), steps=8),),
        **size.trunk(),
    )
