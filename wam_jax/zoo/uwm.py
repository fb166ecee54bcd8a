import dataclasses

from wam_jax.wam.spec import Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, modes_by_noise, state, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, Size

BASE = Size(
    layers=12, heads=12, head_dim=64, video=768, video_ffn=3072, action=768, action_ffn=3072, action_layers=12,
    conditions=("text", "state"), patch_size=4,
)  # fmt: skip


@system({"base": BASE}, {"base": dataclasses.replace(COSMOS, latent_shape=(28, 28, 4), text_width=512)})
def uwm(size: Size, *, registers: int = 8) -> Spec:
    """Unified World Models: one transformer, video and actions at independent noise, used by choice of noise.

    arXiv 2504.02792. Kept: one expert; noise levels, text and proprioception in adaLN; registers, full attention,
    uniform independent levels, a missing modality as pure noise, all five uses. Differs: flow matching instead of DDPM;
    the present as tokens instead of through adaLN, proprioception as both; one adaLN projection for all layers (so
    0.09B, not 0.2 to 0.4B); rotary positions; one frame a token instead of two.
    """
    expert = unified_expert(size)
    return Spec(
        name="uwm",
        experts=(unified_expert(size, text=False, conditions=(*expert.conditions, "levels")),),
        streams=(
            video("all"),
            state("all"),
            action("all"),
            Stream(name="register", kind="register", expert="all", role="context", tokens=registers),
        ),
        visibility=BIDIRECTIONAL,
        modes=modes_by_noise(),
        **size.trunk(),
    )
