import dataclasses

from wam_jax.wam.noise import Shifted, Uniform
from wam_jax.wam.spec import Mode, Move, Spec
from wam_jax.wam.visibility import CHUNK_CAUSAL, ISOLATED, leads, sees_imagined, window
from wam_jax.zoo.common import action, action_expert, stage, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN22, WAN_5B, Size


@system(
    {"5b": dataclasses.replace(WAN_5B, action=768, action_ffn=1536)},
    {"5b": dataclasses.replace(WAN22, frame_steps=(0, 16, 32, 48, 64), action_horizon=64, action_size=30)},
)
def lingbot_va(size: Size, *, history: int = 3) -> Spec:
    """LingBot-VA: imagines the next chunk of video, reads the actions off it, and then sees what really happened.

    arXiv 2601.21998. Kept: a mixture of transformers as in the paper (the released code shares the blocks), its action
    expert sized to the published 350M; causal chunks under teacher forcing, actions see the imagined frames of their
    chunk, shift 5 for video and 1 for actions, three video and ten action steps, a windowed cache in which predictions
    give way to what happened. Differs: the video is finished before actions are read (there it stops at 0.4) and
    unguided (there 5); the history is not noised; one frame a chunk (there up to 4).
    """
    return Spec(
        name="lingbot_va",
        experts=(video_expert(size), action_expert(size, text=False)),
        streams=(video(noise=Shifted(Uniform(), 5.0)), action()),
        visibility=(CHUNK_CAUSAL & ISOLATED | sees_imagined("action", "video"))
        & leads("video", "action")
        & window(max(history, 1) + 1),
        chunk_frames=1,
        history=history,
        text_dropout=0.1,
        modes=(Mode(name="policy", stages=(stage(Move("video", shift=5.0), steps=3), stage("action"))),),
        **size.trunk(),
    )
