import dataclasses

from wam_jax.wam.noise import Beta, LogitNormal
from wam_jax.wam.spec import Bridge, Mode, Move, Spec
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees
from wam_jax.zoo.agra import features
from wam_jax.zoo.common import action, action_expert, stage, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, Size


@system({"2b": dataclasses.replace(COSMOS_2B, action_layers=24)}, {"2b": COSMOS})
def mimic_video(size: Size, *, stop: float = 0.8, steps: int = 2, tap: int | None = None) -> Spec:
    """mimic-video: an action decoder reads a video that is denoised only part of the way.

    arXiv 2512.15692. Kept: one tapped layer (20 of 28), video noise logit-normal while the decoder trains, action
    density ∝ √(t - 0.001) (Beta(1.5, 1) from 0.001 on), partial denoising to ``stop`` in ``steps``, both noise levels
    in the decoder's adaLN, the instruction through the video only. Differs: the video model trains beside the decoder
    (behind a cut gradient) instead of before it; attention over the trunk's 16 heads of 128 (there 8). The released
    code draws action noise uniformly and reads a single pass near pure noise (``stop=1.0``).
    """
    layer = tap if tap is not None else round(20 / 28 * size.layers)
    bridge = Bridge(source="video", layers=min(layer, size.layers - 1), detach=True)
    decoder = action_expert(size, text=False, layers=size.action_layers, bridge=bridge)
    return Spec(
        name="mimic_video",
        experts=(
            video_expert(size),
            dataclasses.replace(decoder, conditions=(*decoder.conditions, "levels")),
        ),
        streams=(
            video(noise=LogitNormal()),
            features(LogitNormal()),
            state("action"),
            action(noise=Beta(1.5, 1.0, minimum=0.001)),
        ),
        visibility=FIRST_FRAME_CAUSAL & (ISOLATED | sees("action", "features")),
        modes=(
            Mode(name="policy", stages=(stage(Move("features", to=stop), steps=steps), stage("action"))),
            together("video", "video"),
        ),
        **size.trunk(),
    )
