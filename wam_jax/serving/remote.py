"""A policy that is somewhere else: it is asked over a websocket, from within a compiled rollout."""

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.encoders import words
from wam_jax.nn.module import define
from wam_jax.policy import Policy, PolicyParams, PolicyState
from wam_jax.serving.wire import ANSWER_SECONDS, LIMIT, PING_SECONDS, pack, unpack
from wam_jax.training.restore import Trained
from wam_jax.types import Observation
from wam_jax.wam.lens import Lens

_OPEN_SECONDS = 10
# What a server has to say of its policy: the parts of a checkpoint's description that are read.
_NEEDED = (
    "identity.codec",
    "identity.proprio",
    "identity.interface.action_horizon",
    "identity.interface.proprio_size",
    "identity.interface.cameras",
    "identity.interface.frame_steps",
    "identity.tokenizer.image_size",
    "identity.data.cameras",
    "config.data.cameras",
    "config.demos.tasks",
)
# And what it may.
DESCRIBED = (
    *_NEEDED,
    "identity.interface.embodiments",
    "identity.seed",
    "config.data.embodiments",
    "config.demos.object_shapes",
)


class RemoteError(RuntimeError):
    """No policy answers at an address, or its answer is a complaint."""


def is_address(name: str | Path) -> bool:
    """Whether a policy is named by an address (``ws://HOST:PORT``) and not by a folder."""
    return str(name).startswith(("ws://", "wss://"))


class Connection:
    """A websocket to a policy; one question at a time.

    Attributes:
      description: what the server says of its policy.

    Raises:
      RemoteError: nobody answers there.
    """

    def __init__(self, address: str):
        self.address, self._lock = address, threading.Lock()
        self.description = self._open()

    def _open(self) -> Mapping[str, Any]:
        """Connects; what is said first."""
        try:
            self._socket: ClientConnection = connect(
                self.address,
                compression=None,
                max_size=LIMIT,
                open_timeout=_OPEN_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=None,  # pings only keep the connection: questions have a patience of their own
                proxy=None,
            )
            described = unpack(self._received(_OPEN_SECONDS))
        except (OSError, WebSocketException, ValueError) as error:
            raise RemoteError(f"no policy answers at {self.address} ({error}); start one with `wam serve`") from error
        if not isinstance(described, Mapping):
            raise RemoteError(f"the policy at {self.address} does not describe itself")
        return described

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a message; asked once more, on another connection, if this one is lost.

        Raises:
          RemoteError: the server complains, is gone, or serves something else by now.
        """
        with self._lock:
            try:
                return self._asked(message)
            except (OSError, WebSocketException):
                self._socket.close()
                if self._open().get("fingerprint") != self.description.get("fingerprint"):
                    raise RemoteError(f"another policy is at {self.address} by now") from None
            try:
                return self._asked(message)
            except (OSError, WebSocketException) as error:
                raise RemoteError(f"the policy at {self.address} is gone ({error})") from error

    def _asked(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        self._socket.send(pack(message))
        return unpack(self._received(ANSWER_SECONDS))

    def _received(self, seconds: float) -> bytes:
        found = self._socket.recv(timeout=seconds)
        if isinstance(found, str):
            raise RemoteError(f"the policy at {self.address} says: {found}")
        return found

    def close(self) -> None:
        self._socket.close()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RemotePolicy(Policy):
    """Acts by asking; keeps no past.

    Attributes:
      connection: to the server.
      cameras: names of what an observation's images are of.
      shape: of a chunk of actions, (K, A).
    """

    connection: Connection
    cameras: tuple[str, ...]
    shape: tuple[int, int]

    def block(self) -> None:
        return None

    def init_state(self, params: PolicyParams, observation: Observation) -> None:
        return None

    def images(self, params: PolicyParams) -> tuple[int, ...]:
        return (0,)

    def act(
        self, params: PolicyParams, policy_state: PolicyState | None, observation: Observation, rng: jax.Array
    ) -> tuple[Float[Array, "B K A"], PolicyState | None]:
        """One chunk of raw robot actions for each observation; the same key, the same actions.

        Raises:
          ValueError: it is to choose among several.
        """
        if self.candidates > 1:
            raise ValueError("a policy that is elsewhere gives one chunk; set evaluation.candidates=1")
        size = len(observation.proprio)
        seen = (observation.images[:, -1], observation.proprio, observation.text, observation.embodiment)
        given = jax.ShapeDtypeStruct((size, *self.shape), jnp.float32)
        return jax.pure_callback(self._ask, given, *seen, jax.random.key_data(rng)), None

    def _ask(self, images: Any, proprio: Any, text: Any, embodiment: Any, key: Any) -> Float[np.ndarray, "B K A"]:
        images = np.asarray(images)
        message = {
            "images": {name: images[:, view] for view, name in enumerate(self.cameras)},
            "proprio": np.asarray(proprio, np.float32),
            "prompt": words.words(text),
            "embodiment": np.asarray(embodiment),
            "key": np.asarray(key),
        }
        actions = np.asarray(self.connection.ask(message).get("actions"))
        wanted = (len(images), *self.shape)
        if actions.dtype != np.float32 or actions.shape != wanted:
            told = f"{actions.dtype}{list(actions.shape)}"
            raise RemoteError(f"the policy at {self.connection.address} gives {told}, not float32{list(wanted)}")
        if not np.isfinite(actions).all():
            raise RemoteError(f"the policy at {self.connection.address} gives actions that are no numbers")
        return actions

    def look(
        self, params: PolicyParams, observation: Observation, rng: jax.Array, lens: Lens
    ) -> tuple[Float[Array, "B K A"], Float[Array, "B S L H n"] | None]:
        """Refused.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"nobody can look into the policy at {self.connection.address}; do it where its run is")

    def watch(
        self, params: PolicyParams, frames: UInt8[Array, "B S V H W 3"], execute: int
    ) -> Float[Array, "B R V h w C"]:
        """Zeros: its latents are not known."""
        return jnp.zeros((*frames[:, ::execute].shape[:3], 1, 1, 1))

    def imagine(
        self,
        params: PolicyParams,
        observation: Observation,
        rng: jax.Array,
        latents: Float[Array, "B V h w C"] | None = None,
    ) -> UInt8[Array, "B F V H W 3"]:
        """The present: what it expects is not known."""
        return observation.images[:, -1:]


def _is_told(told: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(told, Mapping) or part not in told:
            return False
        told = told[part]
    return True


def _nothing(rngs: nnx.Rngs) -> Any:
    """The model is elsewhere."""
    return nnx.Module()


def load_remote(address: str, mesh: Mesh) -> Trained:
    """The policy at an address, as if it were here, but for its parameters.

    Raises:
      RemoteError: there is none, it says too little of itself, or it remembers its past.
    """
    connection = Connection(address)
    told = connection.description
    if missing := [name for name in _NEEDED if not _is_told(told, name)]:
        raise RemoteError(f"the policy at {address} does not say its {missing[0]}")
    if told.get("remembers"):
        raise RemoteError(f"the policy at {address} remembers one past; batches of episodes need one that does not")
    identity = {**told["identity"], "fingerprint": told.get("fingerprint")}
    said = {"text_encoder": words.NAME, "text_tokens": words.LENGTH}
    config = {**told["config"], "data": {**told["config"]["data"], **said}}
    codec = ActionCodec.from_dict(identity["codec"])
    policy = RemotePolicy(
        definition=define(_nothing),
        codec=codec,
        proprio=Affine.from_dict(identity["proprio"]),
        connection=connection,
        cameras=tuple(identity["data"]["cameras"]),
        shape=(identity["interface"]["action_horizon"], codec.action_size),
    )
    meta = {"identity": identity, "config": config}
    return Trained(policy, PolicyParams(model={}, tokenizer=None), mesh, told.get("step", 0), meta)  # type: ignore[arg-type]
