from wam_jax.wam.spec import Mode, Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees_imagined
from wam_jax.zoo.common import action, action_expert, stage, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import WAN21, WAN_1_3B, Size


@system({"1.3b": WAN_1_3B}, {"1.3b": WAN21})
def unipi(size: Size) -> Spec:
    """UniPi: imagine a video from the instruction, then regress the actions between its frames.

    arXiv 2302.00111. Kept: a cascade: the video knows nothing of actions; inverse dynamics sees the frames only and has
    no instruction of its own. Differs: latents instead of pixels, a transformer instead of U-Net and convolutions, no
    super- resolution.
    """
    idm = action_expert(size, text=False, conditions=())
    return Spec(
        name="unipi",
        experts=(video_expert(size), idm),
        streams=(video(), action(role="predicted", noise=None)),
        visibility=FIRST_FRAME_CAUSAL & ISOLATED | sees_imagined("action", "video"),
        modes=(Mode(name="policy", stages=(stage("video"), stage("action", steps=1))), together("video", "video")),
        **size.trunk(),
    )
