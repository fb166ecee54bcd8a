import dataclasses

from wam_jax.wam.noise import Shifted, Uniform
from wam_jax.wam.spec import Move, Spec
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import DEBUG, WAN21, WAN22, WAN_1_3B, WAN_5B, Size


@system(
    {"debug": DEBUG, "2.1-1.3b": WAN_1_3B, "2.2-5b": WAN_5B},
    {
        "2.1-1.3b": dataclasses.replace(WAN21, frame_steps=tuple(range(0, 84, 4))),
        "2.2-5b": dataclasses.replace(WAN22, frame_steps=tuple(range(0, 124, 4))),
    },
)
def wan(size: Size) -> Spec:
    """Wan: the open video model whose block the trunk is; it has no actions.

    arXiv 2503.20314 (2.1); Wan 2.2 TI2V-5B. Kept: every matrix of the transformer. Differs: the first frame is given,
    in 2.1 too.
    """
    return Spec(
        name="wan",
        experts=(video_expert(size),),
        streams=(video(noise=Shifted(Uniform(), 5.0)),),
        visibility=BIDIRECTIONAL,
        text_dropout=0.1,
        modes=(together("video", Move("video", shift=5.0, guidance=5.0), steps=50),),
        **size.trunk(),
    )
