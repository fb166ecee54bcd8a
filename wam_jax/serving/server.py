"""A policy behind a websocket, in openpi's protocol: a description first, then actions for every observation.

A client connects and is sent what the policy is (``PolicyService.description``; ``DESCRIBED`` is what clients here read
of any server). Then, for each observation,

    {"images": {camera: uint8[H, W, 3]}, "proprio": f32[P], "prompt": "lift the red cube"}

it gets ``{"actions": f32[K, A]}``, raw robot actions. With an axis before all of these (and a list of prompts) it is a
batch. A policy that reads several images (``image_ages`` of the description, in control steps) takes them as
``[I, H, W, 3]``. One that remembers (``remembers``) does so for each connection, until ``"reset": True``; it takes all
K actions for executed, so execute them before asking again. Optional are ``"embodiment"`` (which of its robots; 0) and
``"key"``, uint32[2], which decides its noise. Mistakes are answered with a line of text, and the connection stays.
"""

import http
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from wam_jax import console
from wam_jax.serving.remote import DESCRIBED
from wam_jax.serving.wire import ANSWER_SECONDS, LIMIT, PING_SECONDS, WireError, pack, unpack
from wam_jax.training.restore import Trained, fingerprint
from wam_jax.types import Observation, Text

HEALTH = "/healthz"
_KEYS = ("images", "proprio", "prompt")


class PolicyService:
    """A policy that answers messages.

    Args:
      trained: the policy.
      encode: its text encoder.
    """

    def __init__(self, trained: Trained, encode: Callable[[Sequence[str]], Text]):
        identity = trained.meta["identity"]
        self.trained, self._encode = trained, encode
        self._act, self._start = jax.jit(trained.policy.act), jax.jit(trained.policy.init_state)
        self._lock = threading.Lock()  # connections share the device
        self.image_size: tuple[int, int] = tuple(identity["tokenizer"]["image_size"])
        self.cameras: tuple[str, ...] = tuple(identity["data"]["cameras"])
        self.ages = trained.policy.images(trained.params)
        self.description = {
            **_selected(trained.meta, DESCRIBED),
            "fingerprint": fingerprint(trained),
            "step": trained.step,
            "image_ages": list(self.ages),
            "remembers": trained.policy.block() is not None,
        }

    def session(self) -> "Session":
        """For one client."""
        return Session(self)

    def observation(self, message: Any) -> tuple[Observation, bool]:
        """What a message shows, as a batch; and whether it is one.

        Raises:
          WireError: something is missing or has another shape.
        """
        if not isinstance(message, Mapping):
            raise WireError(f"the message is a {type(message).__name__}; send a dictionary with {', '.join(_KEYS)}")
        if missing := [key for key in _KEYS if key not in message]:
            raise WireError(f"the message has no {missing[0]!r}; send {', '.join(_KEYS)}")
        several = len(self.ages) > 1
        shape = (*([len(self.ages)] if several else []), *self.image_size, 3)
        pictures = message["images"]
        if not isinstance(pictures, Mapping) or set(pictures) != set(self.cameras):
            given = ", ".join(map(str, pictures)) if isinstance(pictures, Mapping) else type(pictures).__name__
            raise WireError(f"images are of {given or 'no camera'}; send those of {', '.join(self.cameras)}")
        batched = np.ndim(pictures[self.cameras[0]]) == len(shape) + 1
        images = [_array(f"images[{name!r}]", pictures[name], np.uint8, shape, batched) for name in self.cameras]
        proprio_size = self.trained.meta["identity"]["interface"]["proprio_size"]
        proprio = _array("proprio", message["proprio"], np.float32, (proprio_size,), batched)
        prompts = message["prompt"] if batched else [message["prompt"]]
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise WireError("prompt is no text; send one, and for a batch a list of them")
        if len({len(prompts), len(proprio), *map(len, images)}) != 1:
            raise WireError(f"a batch of {len(images[0])} images has {len(proprio)} proprio and {len(prompts)} prompts")
        robot = np.asarray(message.get("embodiment", 0))
        if robot.dtype.kind not in "iu" or robot.shape not in ((), (len(prompts),)):
            raise WireError(
                f"embodiment is {robot.dtype}{list(robot.shape)}; send a number, or one for each of a batch"
            )
        robots = self.trained.meta["identity"]["interface"].get("embodiments", 1)
        if robot.min() < 0 or robot.max() >= robots:
            raise WireError(f"embodiment is {robot.tolist()}; the policy knows {robots}, from 0 on")
        if not prompts:
            raise WireError("the batch is empty")
        if not np.isfinite(proprio).all():
            raise WireError("proprio holds what is no number")
        stacked = np.stack(images, -4)  # before H, W, 3
        return Observation(
            images=jnp.asarray(stacked if several else stacked[:, None]),
            proprio=jnp.asarray(proprio),
            text=self._text(tuple(prompts)),
            embodiment=jnp.broadcast_to(jnp.asarray(robot, jnp.int32), (len(prompts),)),
        ), batched

    def _text(self, prompts: tuple[str, ...]) -> Text:
        distinct = tuple(dict.fromkeys(prompts))
        encoded = self._encode(distinct)
        rows = np.array([distinct.index(prompt) for prompt in prompts])
        return Text(features=jnp.asarray(encoded.features)[rows], mask=jnp.asarray(encoded.mask)[rows])

    def act(self, memory: Any, observation: Observation, key: jax.Array) -> tuple[np.ndarray, Any]:
        """Actions, and the memory after."""
        with self._lock:
            actions, memory = self._act(self.trained.params, memory, observation, key)
            return np.asarray(actions, np.float32), memory

    def start(self, observation: Observation) -> Any:
        """The memory before the first observation."""
        with self._lock:
            return self._start(self.trained.params, observation)


class Session:
    """One client's conversation: its memory, and how often it asked."""

    def __init__(self, service: PolicyService):
        self._service, self._memory, self._size, self._asked = service, None, 0, 0

    def answer(self, message: Any) -> dict[str, Any]:
        """Actions for an observation.

        Raises:
          WireError: the message is not one.
        """
        began = time.monotonic()
        observation, batched = self._service.observation(message)
        size = len(observation.proprio)
        if message.get("reset") or size != self._size:
            self._memory, self._size = self._service.start(observation), size
        self._asked += 1
        if (key := message.get("key")) is None:
            chosen = jax.random.key(self._asked)
        else:
            chosen = jax.random.wrap_key_data(jnp.asarray(_array("key", key, np.uint32, (2,), False)[0]))
        actions, self._memory = self._service.act(self._memory, observation, chosen)
        milliseconds = 1000 * (time.monotonic() - began)
        return {"actions": actions if batched else actions[0], "server_timing": {"infer_ms": milliseconds}}


def _array(name: str, given: Any, dtype: Any, shape: tuple[int, ...], batched: bool) -> np.ndarray:
    """What was given, as a batch.

    Raises:
      WireError: it has another type or shape.
    """
    found = np.asarray(given)
    of_kind = found.dtype == dtype or (dtype == np.float32 and found.dtype.kind in "fiu")
    if not of_kind or found.shape[int(batched) :] != shape or found.ndim != len(shape) + batched:
        what = f"{found.dtype}{list(found.shape)}"
        raise WireError(f"{name} is {what}; send {np.dtype(dtype)}{list(shape)}, or a batch of that")
    found = found.astype(dtype)
    return found if batched else found[None]


def _selected(meta: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parts of a nested dictionary that are named (``a.b.c``), as far as they are there."""
    found: dict[str, Any] = {}
    for name in names:
        *folders, leaf = name.split(".")
        source: Any = meta
        for folder in folders:
            source = source.get(folder, {})
        if leaf in source:
            target = found
            for folder in folders:
                target = target.setdefault(folder, {})
            target[leaf] = source[leaf]
    return found


def listen(host: str, port: int) -> socket.socket:
    """A port to serve at; 0 takes any free one.

    Raises:
      ValueError: it is taken or not allowed, or the host is not this machine's.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"cannot listen at {host}:{port} ({error}); choose another --host or --port") from error


def open_server(service: PolicyService, sock: socket.socket) -> Server:
    """A server at a port; ``serve_forever`` and ``shutdown`` are its methods."""

    def converse(connection: ServerConnection) -> None:
        session = service.session()
        try:
            connection.send(pack(service.description))
            for message in connection:
                connection.send(_answer(session, message))
        except ConnectionClosed:
            return

    def health(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == HEALTH else None

    return serve(
        converse,
        sock=sock,
        compression=None,
        max_size=LIMIT,
        origins=[None],  # programs have none; a web page in a browser of this machine has one, and is refused
        ping_interval=PING_SECONDS,
        ping_timeout=ANSWER_SECONDS,
        process_request=health,
    )


def _answer(session: Session, message: str | bytes) -> str | bytes:
    """Packed actions, or a complaint."""
    try:
        if isinstance(message, str):
            raise WireError("the message is text; send msgpack")
        return pack(session.answer(unpack(message)))
    except WireError as error:
        return str(error)
    except Exception as error:  # whatever it is, one client's message must not end the conversation
        console.log(f"an observation could not be answered: {type(error).__name__}: {error}")
        return f"{type(error).__name__}: {error}"
