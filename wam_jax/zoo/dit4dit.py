import dataclasses

from wam_jax.wam.noise import Beta, Fixed, LogitNormal
from wam_jax.wam.spec import Bridge, Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees
from wam_jax.zoo.agra import features
from wam_jax.zoo.common import action, action_expert, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, Size


@system(
    {"2b": dataclasses.replace(COSMOS_2B, action=768, action_ffn=3072, action_layers=16)},
    {"2b": dataclasses.replace(COSMOS, frame_steps=(0, 4, 8, 12, 16), cameras=1, action_size=32, proprio_size=64)},
)
def dit4dit(size: Size, *, tap: int | None = None) -> Spec:
    """DiT4DiT: an action transformer reads one layer of a video transformer, after a single step of it.

    arXiv 2603.10448. Kept: every action layer reads the same, detached layer (17 of 28), from a pass of its own at
    noise 1, in training as in inference; action noise Beta(1.5, 1), four steps; the instruction reaches actions through
    the video only. Differs: each action layer has self- and cross-attention (there they alternate), over the trunk's 16
    heads of 128 (there 12 of 64); no 5% of video levels forced above 0.98.
    """
    layer = tap if tap is not None else round(17 / 28 * size.layers)
    bridge = Bridge(source="video", layers=min(layer, size.layers - 1), detach=True)
    return Spec(
        name="dit4dit",
        experts=(video_expert(size), action_expert(size, text=False, layers=size.action_layers, bridge=bridge)),
        streams=(
            video(noise=LogitNormal()),
            features(Fixed(1.0)),
            state("action"),
            action(noise=Beta(1.5, 1.0)),
        ),
        visibility=FIRST_FRAME_CAUSAL & (ISOLATED | sees("action", "features")),
        modes=(together("policy", "action", steps=4, missing=("features",)), together("video", "video")),
        **size.trunk(),
    )
