import dataclasses

from wam_jax.wam.noise import Fixed, StreamNoise
from wam_jax.wam.spec import Bridge, Spec, Stream
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees
from wam_jax.zoo.common import action, action_expert, noise_named, state, together, video, video_expert
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, Size


def features(noise, name: str = "features") -> Stream:
    """A second pass over the same video, for what it makes actions see; not trained by itself."""
    return Stream(
        name=name, kind="video", expert="video", data_of="video", noise=StreamNoise(distribution=noise), loss_weight=0.0
    )


@system({"2b": COSMOS_2B}, {"2b": dataclasses.replace(COSMOS, frame_steps=(0, 4, 8, 12, 16))})
def agra(
    size: Size,
    *,
    shared_pass: bool = False,
    actions: bool = True,
    noise: str = "uniform",
    action_draws: int = 1,
    video_loss_weight: float = 1.0,
    video_batch_share: float = 1.0,
) -> Spec:
    """AGRA's base: an action transformer reads layers of a video transformer, from a pass of its own at pure noise.

    arXiv 2606.12217. Kept: taps at ℓ_j = round(j (M - 1) / (N - 1)) through a linear projection each, features from a
    separate pass at noise 1 given the present, the same in training and inference (but for ``Spec.context_noise`` on
    what is given, where that is set); one video pass and four action steps. ``shared_pass`` reads the denoising pass
    instead; without ``actions`` it is the video transformer alone, to be trained first. The alignment itself is an
    objective, not a spec. Differs: width, heads and text input of the action transformer are not published; here it has
    cross-attention to the instruction.

    Args:
      noise: "uniform", or "logit_normal": more weight on high noise, for small models from scratch.
      action_draws: noise levels of actions drawn over one pass of the video.
      video_batch_share: share of the batch on which video is denoised beside actions; all of it where they read that
        pass, and where there are none.
    """
    level = noise_named(noise)
    share = video_batch_share if actions and not shared_pass else 1.0
    of_video = video(noise=StreamNoise(distribution=level, batch_share=share), loss_weight=video_loss_weight)
    if not actions:
        return Spec(
            name="agra",
            experts=(video_expert(size),),
            streams=(of_video,),
            visibility=FIRST_FRAME_CAUSAL,
            modes=(together("video", "video"),),
            **size.trunk(),
        )
    source = "video" if shared_pass else "features"
    of_action = action(noise=StreamNoise(distribution=level, draws=action_draws))
    return Spec(
        name="agra",
        experts=(
            video_expert(size),
            action_expert(size, layers=size.action_layers, bridge=Bridge(source="video")),
        ),
        streams=(of_video, *(() if shared_pass else (features(Fixed(1.0)),)), state("action"), of_action),
        visibility=FIRST_FRAME_CAUSAL & (ISOLATED | sees("action", source)),
        modes=(
            together("policy", "action", steps=4, missing=(source,)),
            together("video", "video"),
        ),
        **size.trunk(),
    )
