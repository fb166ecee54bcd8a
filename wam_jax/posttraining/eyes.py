"""What a model's hidden tokens say of frames, to those that see through its eyes.

World2Act's video adapter sees latents, or, as the paper's other description has it, a world model's hidden tokens of
them. Every frame is then read by itself, where the model has the present: without noise, a future or words, so that a
frame of a demonstration and an imagined one give what they show and nothing of how they came about. A residual may see
the hidden tokens of the policy that it corrects; these have read its words.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wam_jax.nn.module import Definition, Params
from wam_jax.posttraining.adapters import AdapterConfig
from wam_jax.training.losses import Tokenizers
from wam_jax.training.restore import Trained
from wam_jax.types import Text
from wam_jax.wam.lens import Lens
from wam_jax.wam.model import Known, WorldActionModel
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Eyes:
    """What frames go through before the video adapter.

    Attributes:
      tokenizers: of the world model.
      world, definition: the world model, where its hidden tokens are looked at; else nothing.
    """

    tokenizers: Tokenizers
    world: Params
    definition: Definition[WorldActionModel] | None = dataclasses.field(metadata={"static": True})

    def see(self, latents: Float[Array, "B T V h w C"]) -> Float[Array, "B T ..."]:
        """What the video adapter sees of frames."""
        return latents if self.definition is None else frame_features(self.definition.bind(self.world), latents)


def eyes_of(sizes: AdapterConfig, world: Trained) -> Eyes:
    """A world model's."""
    features = sizes.video == "features"
    tokenizers, model = Tokenizers(world.params.tokenizer), world.params.model if features else {}
    return Eyes(tokenizers, model, world.policy.definition if features else None)


def frame_channels(sizes: AdapterConfig, world: Trained) -> int:
    """Channels of what the video adapter sees of a frame.

    Raises:
      ValueError: it is to see features, and the world model has none of single frames.
    """
    if sizes.video == "features":
        return feature_width(world.policy.definition.bind(world.policy.definition.shapes()))
    cameras = world.meta["identity"]["interface"]["cameras"]
    return cameras * world.params.tokenizer.config.latent_shape[-1]


def frame_features(model: WorldActionModel, latents: Float[Array, "B T V h w C"]) -> Float[Array, "B T D"]:
    """Mean over a frame's tokens, of all cameras, after the middle layer; no gradient reaches the model.

    Raises:
      ValueError: the model is given no present frame.
    """
    stream, sizes = _present(model).stream, model.interface
    flat = latents.reshape(-1, 1, *latents.shape[2:])
    rows = len(flat)
    words = Text(features=jnp.zeros((rows, 1, sizes.text_width)), mask=jnp.ones((rows, 1), bool))
    known = Known(
        values={stream: flat},
        present={},
        counted={},
        proprio=jnp.zeros((rows, 1, sizes.proprio_size)),
        text=words,
        embodiment=jnp.zeros(rows, jnp.int32),
    )
    hidden = present_tokens(model, known, max(model.spec.num_layers // 2 - 1, 0))
    return hidden.mean(1).reshape(*latents.shape[:2], -1)


def present_tokens(model: WorldActionModel, known: Known, layer: int | None = None) -> Float[Array, "B N D"]:
    """Of the present frame, all cameras, after a layer; no gradient reaches the model.

    ``layer``: None: the last but one. In joint attention nothing reads what the last one makes of them.

    Raises:
      ValueError: the model is given no present frame.
    """
    layer = max(model.spec.num_layers - 2, 0) if layer is None else layer
    context = model.begin(known, lens=Lens(layers=(layer,)))
    (entry,) = model.extend(context, (_present(model),), known).cache.entries
    assert entry.layers is not None  # the lens asks for them
    return jax.lax.stop_gradient(entry.layers)[0].astype(jnp.float32)


def present_size(model: WorldActionModel) -> tuple[int, int] | None:
    """How many tokens ``present_tokens`` gives, and their width; None: it is given no present frame."""
    return None if _find_present(model) is None else (model.layout.tokens_per_frame, feature_width(model))


def feature_width(model: WorldActionModel) -> int:
    """Channels of :func:`frame_features`.

    Raises:
      ValueError: as there.
    """
    return model.spec.expert_of(_present(model).stream).width


def _present(model: WorldActionModel) -> Group:
    """The tokens of the present.

    Raises:
      ValueError: it is not given any.
    """
    if (found := _find_present(model)) is None:
        raise ValueError(f"{model.spec.name} is given no present frame; set posttrain.adapters.preset=latents")
    return found


def _find_present(model: WorldActionModel) -> Group | None:
    video = (g for g in model.layout.groups if model.spec.stream(g.stream).kind == "video" and g.clean and g.block == 0)
    return next(video, None)
