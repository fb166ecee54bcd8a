"""A policy is a pure function: observation in, action chunk out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import Definition, Params
from wam_jax.tokenizers.tokenizer import State, Tokenizer
from wam_jax.types import Batch, Observation
from wam_jax.wam.history import History, empty_history, generate, newest, nothing_executed, observe
from wam_jax.wam.lens import Lens
from wam_jax.wam.model import Known, WorldActionModel
from wam_jax.wam.sample import ATTENTION, sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyParams:
    """The arrays of a policy."""

    model: Params
    tokenizer: Tokenizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyState:
    """What a causal policy remembers.

    Attributes:
      history: the rolling cache.
      executed: the (normalised) actions it gave last, and what else it predicted in their place (latent actions).
      tokens: what the tokenizer keeps of the images so far.
    """

    history: History
    executed: dict[str, Float[Array, "B k _"]]
    tokens: State


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
        known = self._now(model, params, observation)
        tokens = jax.eval_shape(params.tokenizer.start, observation.images[:, -1])[1]
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tokens)
        return PolicyState(empty_history(model, known), nothing_executed(model, len(known.embodiment)), blank)

    def block(self) -> int | None:
        """Actions that a causal model predicts, and then remembers as executed, at a time; None for any other."""
        layout = self.definition.bind(self.definition.shapes()).layout
        return layout.actions_per_block if layout.autoregressive else None

    def remembering(self, policy_state: PolicyState | None, actions: Float[Array, "B k A"]) -> PolicyState | None:
        """The memory, once other (raw) actions are executed than those that ``act`` gave with it."""
        if policy_state is None:
            return None
        executed = {**policy_state.executed, "action": jnp.asarray(self.codec.encode(actions))}
        return dataclasses.replace(policy_state, executed=executed)

    def images(self, params: PolicyParams) -> tuple[int, ...]:
        """How many control steps ago each image of an observation was taken, the newest last.

        A causal model sees all that its tokenizer merges into the frames since it acted last; any other sees now.
        """
        layout = self.definition.bind(params.model).layout
        if not layout.autoregressive:
            return (0,)
        count = layout.frames_per_block * params.tokenizer.config.tubelet
        return tuple(layout.actions_per_block // count * age for age in reversed(range(count)))

    def act(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, rng: jax.Array
    ) -> tuple[Float[Array, "B K A"], PolicyState | None]:
        """One chunk of raw robot actions for each observation.

        A causal model takes all actions of its last chunk as executed, so execute them all; any other may be asked anew
        at any time.
        """
        model = self.definition.bind(params.model)
        if policy_state is not None:
            return self._act_on(model, params, policy_state, observation, rng)
        known = self._now(model, params, observation)
        if self.candidates > 1:
            chunk = self._best(model, known, rng)
        else:
            chunk = sample(model, known, rng, self.mode, want=("action",), steps=self.steps)["action"]
        return jnp.asarray(self.codec.decode(chunk)), None

    def look(
        self, params: PolicyParams, observation: Observation, rng: jax.Array, lens: Lens
    ) -> tuple[Float[Array, "B K A"], Float[Array, "B S L H n"] | None]:
        """One normalised chunk without a past, through a lens; and what the lens shows of attention (``sample``).

        The frames of a model that remembers are all but an episode's first of merged images: nothing moved in them.
        """
        model, now = self.definition.bind(params.model), observation.images[:, -1]
        latents, clip = params.tokenizer.start(now)
        if model.layout.autoregressive and params.tokenizer.config.temporal:
            still = jnp.repeat(now[:, None], params.tokenizer.config.tubelet, 1)
            latents, _ = params.tokenizer.step(clip, still)
        known = self._known(model, latents[:, None], observation)
        found = sample(model, known, rng, self.mode, want=("action",), steps=self.steps, lens=lens)
        return found["action"], found.get(ATTENTION)

    def watch(
        self, params: PolicyParams, frames: UInt8[Array, "B S V H W 3"], execute: int
    ) -> Float[Array, "B R V h w C"]:
        """Latents of the present, each of the ``R`` times that it acts in whole episodes of ``S`` steps."""
        layout = self.definition.bind(params.model).layout
        if layout.autoregressive:
            times = range(execute, frames.shape[1], execute)
            clip = [0, *(time - age for time in times for age in self.images(params))]
            return params.tokenizer.encode(frames[:, np.array(clip)])[:, :: layout.frames_per_block]
        seen = frames[:, ::execute]
        latents, _ = params.tokenizer.start(seen.reshape(-1, *seen.shape[2:]))
        return latents.reshape(*seen.shape[:2], *latents.shape[1:])

    def imagine(
        self,
        params: PolicyParams,
        observation: Observation,
        rng: jax.Array,
        latents: Float[Array, "B V h w C"] | None = None,
    ) -> UInt8[Array, "B F V H W 3"]:
        """The future images that the model expects; of a model without video, the present repeated.

        ``latents``: of the present, where the tokenizer saw more than the observation's image.
        """
        model = self.definition.bind(params.model)
        if imagining_mode(model) is None:
            count = (len(model.interface.frame_steps) - 1) * params.tokenizer.config.tubelet
            return jnp.repeat(observation.images[:, -1:], count, axis=1)
        return decode_future(params.tokenizer, *self.imagine_latents(params, observation, rng, latents))

    def imagine_latents(
        self,
        params: PolicyParams,
        observation: Observation,
        rng: jax.Array,
        latents: Float[Array, "B V h w C"] | None = None,
    ) -> tuple[Float[Array, "B 1 V h w C"], Float[Array, "B t V h w C"]]:
        """Latents of the present, and of the future frames that the model expects; arguments as of ``imagine``.

        Raises:
          ValueError: the model has no video.
        """
        model = self.definition.bind(params.model)
        mode = imagining_mode(model)
        if mode is None:
            raise ValueError(f"{model.spec.name} imagines no video; choose a system that does (`wam zoo`)")
        if latents is None:
            known = self._now(model, params, observation)
        else:
            known = self._known(model, latents[:, None], observation)
        future = generate(model, known, rng, mode, want=("video",), steps=self.steps)["video"]
        return known.values["video"], future

    def _act_on(
        self,
        model: WorldActionModel,
        params: PolicyParams,
        policy_state: PolicyState,
        observation: Observation,
        rng: jax.Array,
    ) -> tuple[Float[Array, "B k A"], PolicyState]:
        """A causal model's next block of actions, given all that happened before."""
        images, frames = observation.images, model.layout.frames_per_block

        def first(tokens: State):
            latents, tokens = params.tokenizer.start(images[:, -1])
            return jnp.repeat(latents[:, None], frames, 1), tokens

        def further(tokens: State):
            latents = []
            for part in jnp.split(images, frames, axis=1):
                frame, tokens = params.tokenizer.step(tokens, part)
                latents.append(frame)
            return jnp.stack(latents, 1), tokens

        latents, tokens = jax.lax.cond(policy_state.history.started, further, first, policy_state.tokens)
        known = self._known(model, latents, observation)
        history, context = observe(model, policy_state.history, known, policy_state.executed)
        now = newest(model, known)
        acting = tuple(policy_state.executed)
        found = sample(model, now, rng, self.mode, want=acting, steps=self.steps, context=context)
        actions = jnp.asarray(self.codec.decode(found["action"]))
        # What was given, not what was wanted: limits cut it.
        executed = {**{name: found[name] for name in acting}, "action": jnp.asarray(self.codec.encode(actions))}
        return actions, PolicyState(history, executed, tokens)

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

    def _now(self, model: WorldActionModel, params: PolicyParams, observation: Observation) -> Known:
        """What is known without a past."""
        return self._known(model, params.tokenizer.start(observation.images[:, -1])[0][:, None], observation)

    def _known(self, model: WorldActionModel, latents: Array, observation: Observation) -> Known:
        proprio = jnp.asarray(self.proprio.normalise(observation.proprio))
        return present(model, latents, proprio, observation)


def present(
    model: WorldActionModel,
    latents: Float[Array, "B t V h w C"],
    proprio: Float[Array, "B P"],
    said: Batch | Observation,
    cameras: Bool[Array, "B V"] | None = None,
) -> Known:
    """What is known at control time: the newest frames, one state, the instruction and the robot of ``said``.

    ``cameras`` tells which of them are there; None: all.
    """
    data = {"video": latents, "state": proprio[:, None]}
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


def decode_future(
    tokenizer: Tokenizer, present: Float[Array, "B 1 V h w C"], future: Float[Array, "B t V h w C"]
) -> UInt8[Array, "B F V H W 3"]:
    """Images of future frames; decoders may need what came before."""
    return tokenizer.decode(jnp.concatenate([present, future], 1))[:, 1:]


def imagining_mode(model: WorldActionModel) -> str | None:
    """The mode that gives video: "video", else "joint", else "policy"; None if there is none."""
    for name in ("video", "joint", "policy"):
        found = [mode for mode in model.spec.modes if mode.name == name and not mode.given]
        if any(move.stream == "video" for mode in found for stage in mode.stages for move in stage.moves):
            return name
    return None
