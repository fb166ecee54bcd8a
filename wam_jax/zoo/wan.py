import dataclasses

from wam_jax.wam.noise import Shifted, Uniform
from wam_jax.wam.spec import Move, Spec
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN21, WAN22, WAN_1_3B, WAN_5B, WAN_14B, Size

_SECONDS_5 = dataclasses.replace(WAN21, frame_steps=tuple(range(0, 84, 4)))


@system(
    {"2.1-1.3b": WAN_1_3B, "2.1-14b": WAN_14B, "2.2-5b": WAN_5B},
    {
        "2.1-1.3b": _SECONDS_5,
        "2.1-14b": _SECONDS_5,
        "2.2-5b": dataclasses.replace(WAN22, frame_steps=tuple(range(0, 124, 4))),
    },
)
def wan(size: Size, *, image: bool = False, video_steps: int = 50, guidance: float = 5.0) -> Spec:
    """Wan: the open video model whose block the trunk is; it has no actions.

    arXiv 2503.20314 (2.1); Wan 2.2 TI2V-5B. Kept: every matrix of the transformer, and text padding that is seen.
    Differs: the first frame is given, in 2.1 too.

    Args:
      image: the inputs of 2.1 image to video (14B): a mask and the given image's latents, and its CLIP tokens.
      video_steps: of sampling.
      guidance: to the text, of sampling; 1 is none, and saves half the work.
    """
    return Spec(
        name="wan",
        experts=(video_expert(size, image_width=1280 if image else 0),),
        streams=(video(noise=Shifted(Uniform(), 5.0), given_channels=20 if image else 0),),
        visibility=BIDIRECTIONAL,
        text_dropout=0.1,
        padded_text=True,
        modes=(together("video", Move("video", shift=5.0, guidance=guidance), steps=video_steps),),
        **size.trunk(),
    )
