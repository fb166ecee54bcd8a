"""A policy behind an address acts as it does here; mistakes are answered, and nothing that is sent is executed."""

import contextlib
import dataclasses
import pickle
import threading
import urllib.request

import hypothesis
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.encoders import words
from wam_jax.policy import Policy, PolicyParams
from wam_jax.serving.remote import Connection, RemoteError, is_address, load_remote
from wam_jax.serving.server import HEALTH, PolicyService, listen, open_server
from wam_jax.serving.wire import WireError, pack, unpack
from wam_jax.sharding import make_mesh
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.training.restore import Trained
from wam_jax.types import Observation, Text

PROMPTS = ["lift the red cube", "lift the blue cube"]
CAMERAS = ("front", "wrist")


def encode(prompts):
    """Features that tell the prompts apart, of the tiny models' width."""
    rows = [np.random.default_rng(len(prompt)).normal(size=(4, 5)) for prompt in prompts]
    return Text(features=jnp.asarray(np.stack(rows), jnp.float32), mask=jnp.ones((len(prompts), 4), bool))


def make_trained(tiny, system, **changes):
    sizes = {"patch_size": 4, "channels": 2, "width": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = TokenizerConfig(image_size=(16, 16), **sizes)
    tokenizer = FrozenTokenizer(define_tokenizer(config).init(jax.random.key(0)), jnp.zeros(2), jnp.ones(2), config)
    definition = tiny.define(system)
    codec, proprio = ActionCodec(np.zeros(4, bool), Affine.identity(4)), Affine.identity(3)
    identity = {
        "codec": codec.to_dict(),
        "proprio": proprio.to_dict(),
        "interface": {
            "action_horizon": 4,
            "proprio_size": 3,
            "embodiments": 2,
            "cameras": 2,
            "frame_steps": [0, 2, 4],
        },
        "tokenizer": {"image_size": [16, 16]},
        "data": {"cameras": list(CAMERAS)},
    }
    meta = {
        "identity": {**identity, **changes},
        "config": {"data": {"cameras": list(CAMERAS)}, "demos": {"tasks": ["reach"]}, "secret": 1},
    }
    policy = Policy(definition=definition, codec=codec, proprio=proprio)
    params = PolicyParams(model=tiny.params(definition), tokenizer=tokenizer)
    return Trained(policy, params, make_mesh({"data": 1}, jax.devices()[:1]), 7, meta)


@contextlib.contextmanager
def served(trained, port=0):
    sock = listen("127.0.0.1", port)
    with open_server(PolicyService(trained, encode), sock) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{sock.getsockname()[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def here(tiny):
    return make_trained(tiny, "fast_wam")


@pytest.fixture(scope="module")
def address(here):
    with served(here) as found:
        yield found


def message(size=None, **changes):
    """A good one."""
    random = np.random.default_rng(0)
    lead = () if size is None else (size,)
    images = {name: random.integers(0, 255, (*lead, 16, 16, 3), np.uint8) for name in CAMERAS}
    prompt = PROMPTS[0] if size is None else PROMPTS[:size]
    return {"images": images, "proprio": random.normal(size=(*lead, 3)).astype(np.float32), "prompt": prompt, **changes}


def observe(told):
    """The same as the policy sees it."""
    images = np.stack([told["images"][name] for name in CAMERAS], -4)
    batch = images.reshape(-1, 1, 2, 16, 16, 3)
    prompts = told["prompt"] if isinstance(told["prompt"], list) else [told["prompt"]]
    return Observation(
        images=jnp.asarray(batch),
        proprio=jnp.asarray(told["proprio"]).reshape(-1, 3),
        text=encode(prompts),
        embodiment=jnp.zeros(len(batch), jnp.int32),
    )


@hypothesis.given(
    arrays.arrays(
        hypothesis.strategies.sampled_from(["<f4", "<f8", "|u1", "<i4", "|b1", "<u4"]),
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=4, min_side=0),
    )
)
def test_arrays_come_over_the_wire_as_they_were(array):
    found = unpack(pack({"x": array, "said": "ü", "n": 3}))
    assert (found["x"].dtype, found["x"].shape, found["said"], found["n"]) == (array.dtype, array.shape, "ü", 3)
    np.testing.assert_array_equal(found["x"], array)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "complaint"),
    [
        ("|O", [1], pickle.dumps([print]), r"an array's type is '\|O'"),
        ("V8", [1], b"8" * 8, "an array's type is 'V8'"),
        ("nonsense", [1], b"", "an array's type is 'nonsense'"),
        ("<f4", [2], b"1234", r"an array of shape \[2\] and type float32 does not have as many bytes"),
        ("<f4", [-1], b"1234", r"an array's shape is \[-1\]"),
        ("<f4", [2**62, 2**62], b"", "does not have as many bytes"),
    ],
)
def test_arrays_that_are_none_are_refused(dtype, shape, data, complaint):
    raw = {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}
    with pytest.raises(WireError, match=complaint):
        unpack(msgpack.packb(raw))


@hypothesis.given(hypothesis.strategies.binary(max_size=64))
def test_bytes_are_a_message_or_an_error(data):
    try:
        found = unpack(data)
    except WireError as error:
        assert str(error).startswith(("the message is no msgpack", "an array's", "an array of"))  # noqa: PT017
    else:  # data, and nothing that could do something
        plain = (type(None), bool, int, float, str, bytes, list, dict, np.ndarray, np.generic)
        assert isinstance(found, (*plain, msgpack.ExtType, msgpack.Timestamp))


def test_words_come_back_from_their_features():
    encoded = words.text_encoder().encode([*PROMPTS, "héb die Tasse"], words.LENGTH)
    text = Text(features=jnp.asarray(encoded.features), mask=jnp.asarray(encoded.mask))
    assert words.words(text) == [*PROMPTS, "héb die Tasse"]


def test_what_is_served_acts_as_it_does_here(here, address):
    key = jax.random.key(3)
    act = jax.jit(here.policy.act)
    connection = Connection(address)
    for told in (message(), message(2)):
        wanted, _ = act(here.params, None, observe(told), key)
        found = connection.ask({**told, "key": np.asarray(jax.random.key_data(key))})["actions"]
        assert found.shape == ((4, 4) if told["prompt"] == PROMPTS[0] else (2, 4, 4))
        np.testing.assert_array_equal(found, np.asarray(wanted).reshape(found.shape))
    other = connection.ask({**message(), "prompt": "reach the green sphere", "key": np.zeros(2, np.uint32)})
    assert np.abs(other["actions"] - connection.ask({**message(), "key": np.zeros(2, np.uint32)})["actions"]).max() > 0
    connection.close()


def test_a_remote_policy_is_the_policy(here, address):
    """The words go with the observation, as features: text encoders need not agree."""
    remote = load_remote(address, here.mesh)
    assert remote.meta["config"]["data"]["text_encoder"] == words.NAME
    assert remote.image_size == 16
    told = message(2)
    seen, encoded = observe(told), words.text_encoder().encode(PROMPTS, words.LENGTH)
    said = Observation(
        images=seen.images, proprio=seen.proprio, embodiment=seen.embodiment,
        text=Text(features=jnp.asarray(encoded.features), mask=jnp.asarray(encoded.mask)),
    )  # fmt: skip
    key = jax.random.key(5)
    found, memory = remote.policy.act(remote.params, remote.policy.init_state(remote.params, said), said, key)
    wanted, _ = jax.jit(here.policy.act)(here.params, None, seen, key)
    assert memory is None
    np.testing.assert_array_equal(found, wanted)


BAD = [
    ({"prompt": None}, "prompt is no text"),
    ({"images": {"front": np.zeros((16, 16, 3), np.uint8)}}, "images are of front; send those of front, wrist"),
    (
        {"images": dict.fromkeys(CAMERAS, np.zeros((8, 16, 3), np.uint8))},
        r"images\['front'\] is uint8\[8, 16, 3\]; send uint8\[16, 16, 3\]",
    ),
    ({"images": dict.fromkeys(CAMERAS, np.zeros((16, 16, 3), np.float32))}, r"images\['front'\] is float32"),
    ({"proprio": np.zeros(2, np.float32)}, r"proprio is float32\[2\]; send float32\[3\]"),
    ({"proprio": np.full(3, np.nan, np.float32)}, "proprio holds what is no number"),
    ({"key": np.zeros(3, np.uint32)}, r"key is uint32\[3\]; send uint32\[2\]"),
    ({"embodiment": "arm"}, "embodiment is <U3"),
    ({"embodiment": 2}, "embodiment is 2; the policy knows 2, from 0 on"),
    ({"images": dict.fromkeys(CAMERAS, np.zeros((2, 16, 16, 3), np.uint8))}, r"proprio is float32\[3\]"),
    (
        {
            "images": dict.fromkeys(CAMERAS, np.zeros((0, 16, 16, 3), np.uint8)),
            "proprio": np.zeros((0, 3), np.float32),
            "prompt": [],
        },
        "the batch is empty",
    ),
]


def test_mistakes_are_answered_and_the_connection_stays(address):
    connection = Connection(address)
    for changes, complaint in BAD:
        with pytest.raises(RemoteError, match=complaint):
            connection.ask(message(**changes))
    with pytest.raises(RemoteError, match="the message has no 'images'; send images, proprio, prompt"):
        connection.ask({})
    assert connection.ask(message())["actions"].shape == (4, 4)
    connection.close()
    with connect(address) as raw:
        raw.recv()
        raw.send("hello")
        assert raw.recv() == "the message is text; send msgpack"
        raw.send(b"\xc1")
        assert "the message is no msgpack" in raw.recv()


def test_it_says_what_is_needed_and_no_more(here, address):
    connection = Connection(address)
    assert connection.description["config"] == {"data": {"cameras": list(CAMERAS)}, "demos": {"tasks": ["reach"]}}
    connection.close()


def test_web_pages_are_refused(address):
    with pytest.raises(InvalidStatus, match="HTTP 403"):
        connect(address, origin="http://somewhere").close()


def test_it_says_that_it_is_well(address):
    with urllib.request.urlopen(address.replace("ws", "http", 1) + HEALTH) as answer:
        assert answer.status == 200


def test_a_causal_policy_remembers_by_connection_until_told_otherwise(tiny):
    with served(make_trained(tiny, "repwam")) as address:
        first, second = Connection(address), Connection(address)
        told = message(key=np.zeros(2, np.uint32))
        begin, after = (first.ask(told)["actions"] for _ in range(2))
        assert np.abs(begin - after).max() > 1e-4
        np.testing.assert_array_equal(second.ask(told)["actions"], begin)
        np.testing.assert_array_equal(first.ask({**told, "reset": True})["actions"], begin)
        with pytest.raises(RemoteError, match="remembers one past; batches of episodes need one that does not"):
            load_remote(address, make_mesh({"data": 1}, jax.devices()[:1]))
        first.close(), second.close()


def test_a_lost_connection_is_made_again_unless_to_another_policy(tiny, here):
    with served(here) as address:
        connection = Connection(address)
        wanted = connection.ask(message(key=np.zeros(2, np.uint32)))["actions"]
    port = int(address.rsplit(":", 1)[1])
    with served(here, port):
        found = connection.ask(message(key=np.zeros(2, np.uint32)))["actions"]
        np.testing.assert_array_equal(found, wanted)
    with served(dataclasses.replace(here, step=8), port), pytest.raises(RemoteError, match="another policy is at"):
        connection.ask(message())
    with pytest.raises(RemoteError, match="no policy answers at"):
        connection.ask(message())


def test_a_remote_policy_chooses_among_no_candidates(here, address):
    remote = load_remote(address, here.mesh)
    several = dataclasses.replace(remote.policy, candidates=3)
    with pytest.raises(ValueError, match=r"a policy that is elsewhere gives one chunk; set evaluation\.candidates=1"):
        several.act(remote.params, None, observe(message()), jax.random.key(0))


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"cannot listen at 127\.0\.0\.1:{port} .*; choose another --host or --port"
        ):
            listen("127.0.0.1", port)


def test_a_policy_that_says_too_little_is_refused(tiny):
    trained = make_trained(tiny, "fast_wam")
    del trained.meta["identity"]["codec"]
    with served(trained) as address, pytest.raises(RemoteError, match=r"does not say its identity\.codec"):
        load_remote(address, trained.mesh)


def test_where_nobody_answers():
    with pytest.raises(RemoteError, match=r"no policy answers at ws://127\.0\.0\.1:1 .*; start one with `wam serve`"):
        Connection("ws://127.0.0.1:1")
    assert is_address("ws://127.0.0.1:1")
    assert not is_address("runs/quickstart")
