import dataclasses

from wam_jax.wam.noise import Fixed, LogitNormal
from wam_jax.wam.spec import Bridge, Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees
from wam_jax.zoo.agra import features
from wam_jax.zoo.common import action, action_expert, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, Size


@system(
    {"2b": dataclasses.replace(COSMOS_2B, action=384, action_ffn=1536, action_layers=4)},
    {"2b": COSMOS},
)
def vpp(size: Size) -> Spec:
    """VPP: an action decoder on the hidden states of one forward pass of a frozen video model.

    arXiv 2412.14803. Kept: a single pass at one high noise level (here 1), features of one late layer, no gradient into
    the video model, ten action steps. Differs: a diffusion transformer instead of SVD's U-Net; no Video Former between
    them; flow matching instead of EDM in the decoder; video and decoder are trained side by side, apart by the cut
    gradient, instead of one after the other.
    """
    bridge = Bridge(source="video", layers=size.layers - 1 - size.layers // 4, detach=True)
    return Spec(
        name="vpp",
        experts=(video_expert(size), action_expert(size, layers=size.action_layers, bridge=bridge)),
        streams=(video(noise=LogitNormal()), features(Fixed(1.0)), state("action"), action(noise=LogitNormal())),
        visibility=FIRST_FRAME_CAUSAL & (ISOLATED | sees("action", "features")),
        modes=(together("policy", "action", missing=("features",)), together("video", "video")),
        **size.trunk(),
    )
