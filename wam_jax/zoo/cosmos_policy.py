from wam_jax.wam.noise import Coupled, EdmMixture, StreamNoise
from wam_jax.wam.spec import Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, DEBUG, Size


@system({"debug": DEBUG, "2b": COSMOS_2B}, {"2b": COSMOS})
def cosmos_policy(size: Size) -> Spec:
    """Cosmos Policy: actions, states and value written into latent frames of a video model; plans by best of N.

    Kept: one expert, injection by tiling and reading back the mean, future state and value beside the future, one σ
    from 70% log-normal and 30% uniform, five steps; ``Policy.candidates`` takes the chunk of the highest value.
    Differs: flow matching on t = σ / (1 + σ); each injected stream has its own patch projection; actions and value
    share one pass.
    """
    noise = StreamNoise(distribution=EdmMixture())
    return Spec(
        name="cosmos_policy",
        experts=(unified_expert(size),),
        streams=(
            video("all", noise),
            Stream(name="state", kind="state", expert="all", noise=noise, injected=True),
            action("all", noise, injected=True),
            Stream(name="value", kind="value", expert="all", noise=noise, injected=True),
        ),
        visibility=BIDIRECTIONAL,
        noise=Coupled(),
        modes=(
            together("policy", "video", "state", "action", "value", steps=5),
            together("world_model", "video", "state", "value", steps=5, given=("action",)),
        ),
        **size.trunk(),
    )
