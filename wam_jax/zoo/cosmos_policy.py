from wam_jax.wam.noise import Coupled, EdmMixture, StreamNoise
from wam_jax.wam.spec import Move, Spec, Stream
from wam_jax.wam.visibility import BIDIRECTIONAL
from wam_jax.zoo.common import action, together, unified_expert, video
from wam_jax.zoo.registry import system
from wam_jax.zoo.sizes import COSMOS, COSMOS_2B, Size


def at_high_noise(stream: str) -> Move:
    """Five steps at t = 1, .985, .96, .914 and .8, which is σ from infinity to 4."""
    return Move(stream, shift=16.0)


@system({"2b": COSMOS_2B}, {"2b": COSMOS})
def cosmos_policy(size: Size) -> Spec:
    """Cosmos Policy: actions, states and value written into latent frames of a video model; plans by best of N.

    arXiv 2601.16163. Kept: one expert, injection by tiling and reading back the mean, future state and value beside the
    future, one σ from 70% log-normal and 30% uniform, five steps at σ ≥ 4, actions clean for half of the samples so
    that the world model can be asked what they lead to; ``Policy.candidates`` takes the chunk of the highest value.
    Differs: flow matching on t = σ / (1 + σ); σ not scaled by √frames; each injected stream has its own patch
    projection; actions and value share one pass.
    """
    dreams = tuple(at_high_noise(name) for name in ("video", "state", "value"))
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
        noise=Coupled(given="action", given_share=0.5),
        modes=(
            together("policy", *dreams, at_high_noise("action"), steps=5),
            together("world_model", *dreams, steps=5, given=("action",)),
        ),
        **size.trunk(),
    )
