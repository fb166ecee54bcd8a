"""A policy is a pure function: observation in, action chunk out."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import Definition, Params
from wam_jax.tokenizers.visual import Tokenizer
from wam_jax.types import Batch, Observation
from wam_jax.wam.history import History, empty_history, generate, observe
from wam_jax.wam.model import Known, WorldActionModel
from wam_jax.wam.sample import sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyParams:
    """The arrays of a policy."""

    model: Params
    tokenizer: Tokenizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyState:
    """What a causal policy remembers: the rolling cache, and the (normalised) actions it gave last."""

    history: History
    executed: Float[Array, "B k A"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """Everything static about acting with a world action model; close over it in a jitted function.

    Attributes:
      definition: of the model.
      codec: decodes normalised chunks to the robot's actions.
      proprio: normalises the robot's proprioception.
      mode: of the spec, by which it acts.
      steps: of every sampling stage; the spec's by default.
      candidates: chunks drawn for each observation; the one that the model's value stream likes best is taken.
    """

    definition: Definition[WorldActionModel]
    codec: ActionCodec
    proprio: Affine
    mode: str = "policy"
    steps: int | None = None
    candidates: int = 1

    def init_state(self, params: PolicyParams, observation: Observation) -> PolicyState | None:
        """Before the first observation (which only gives the shapes); None for a model that keeps no history."""
        model = self.definition.bind(params.model)
        if not model.layout.autoregressive:
            return None
        if self.candidates > 1:
            raise ValueError(f"{model.spec.name} remembers one past, not several; set evaluation.candidates=1")
        known = self._known(model, params, observation)
        shape = (len(known.embodiment), model.layout.actions_per_block, model.interface.action_size)
        return PolicyState(empty_history(model, known), jnp.zeros(shape))

    def act(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, rng: jax.Array
    ) -> tuple[Float[Array, "B K A"], PolicyState | None]:
        """One chunk of raw robot actions for each observation.

        A causal model takes all actions of its last chunk as executed, so execute them all; any other may be asked anew
        at any time.
        """
        model = self.definition.bind(params.model)
        known = self._known(model, params, observation)
        if policy_state is not None:
            history, context = observe(model, policy_state.history, known, policy_state.executed)
            chunk = sample(model, known, rng, self.mode, want=("action",), steps=self.steps, context=context)["action"]
            policy_state = PolicyState(history, chunk)
        elif self.candidates > 1:
            chunk = self._best(model, known, rng)
        else:
            chunk = sample(model, known, rng, self.mode, want=("action",), steps=self.steps)["action"]
        return jnp.asarray(self.codec.decode(chunk)), policy_state

    def imagine(self, params: PolicyParams, observation: Observation, rng: jax.Array) -> UInt8[Array, "B T-1 V H W 3"]:
        """The future frames that the model expects, decoded to pixels; of one without video, the present repeated."""
        model = self.definition.bind(params.model)
        mode = imagining_mode(model)
        if mode is None:
            return jnp.repeat(observation.images[:, None], len(model.interface.frame_steps) - 1, axis=1)
        known = self._known(model, params, observation)
        return params.tokenizer.decode(generate(model, known, rng, mode, want=("video",))["video"])

    def _best(self, model: WorldActionModel, known: Known, rng: jax.Array) -> Float[Array, "B K A"]:
        """Best of several chunks by predicted value (Cosmos Policy).

        Raises:
          ValueError: if the model predicts no value.
        """
        count = self.candidates
        value = next((stream.name for stream in model.spec.streams if stream.kind == "value"), None)
        if value is None:
            raise ValueError(f"{model.spec.name} has no value stream to choose by; set evaluation.candidates=1")
        repeated: Known = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), known)
        found = sample(model, repeated, rng, self.mode, want=("action", value), steps=self.steps)
        worth = found[value].mean(tuple(range(1, found[value].ndim))).reshape(-1, count)
        chunks = found["action"].reshape(-1, count, *found["action"].shape[1:])
        return jnp.take_along_axis(chunks, worth.argmax(1)[:, None, None, None], axis=1)[:, 0]

    def _known(self, model: WorldActionModel, params: PolicyParams, observation: Observation) -> Known:
        """The present: what was observed, normalised and tokenised."""
        proprio = jnp.asarray(self.proprio.normalise(observation.proprio))
        return present(model, params.tokenizer.encode(observation.images), proprio, observation)


def present(
    model: WorldActionModel, latents: Array, proprio: Array, said: Batch | Observation, cameras: Array | None = None
) -> Known:
    """What is known at control time: one frame, one state, the instruction and the robot of ``said``.

    ``cameras`` [B, V] tells which of them are there; None: all.
    """
    data = {"video": latents[:, None], "state": proprio[:, None]}
    values = {s.name: data[s.kind] for s in model.spec.streams if s.kind in data and s.data_of is None}
    views = [name for name in values if model.spec.stream(name).kind == "video"]
    seen = {} if cameras is None else dict.fromkeys(views, cameras[:, None])
    return Known(
        values=values,
        present=seen,
        counted={},
        proprio=proprio[:, None],
        text=said.text,
        embodiment=jnp.asarray(said.embodiment),
    )


def imagining_mode(model: WorldActionModel) -> str | None:
    """The mode that gives video: "video", else "joint", else "policy"; None if there is none."""
    for name in ("video", "joint", "policy"):
        found = [mode for mode in model.spec.modes if mode.name == name and not mode.given]
        if any(move.stream == "video" for mode in found for stage in mode.stages for move in stage.moves):
            return name
    return None
