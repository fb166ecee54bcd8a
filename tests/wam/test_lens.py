"""A lens shows what it says, changes what the reader reads and nothing else, and costs nothing where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.evaluation.grounding import diagnose
from wam_jax.nn.rotary import rotary_table, rotate
from wam_jax.wam.lens import Lens, read_through
from wam_jax.wam.model import Known
from wam_jax.wam.sample import ATTENTION, sample

TOKENS = 8  # of a frame: two cameras of 4 x 4 latents, 2 x 2 a token
# One of each way that actions read video: joint attention to a prefix, taps over a bridge, a bridge in every layer.
# And, slow: queries that are read out by a diffusion head.
READ = pytest.mark.parametrize("name", ["fast_wam", "agra", "h_bridge", pytest.param("uva", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def rollouts(tiny, batch):
    """By system: (lens, video latents) -> what is sampled; two steps, and a copy for every structure of a lens."""

    def make(name: str):
        definition = tiny.define(name)
        params = tiny.params(definition)

        @jax.jit
        def run(lens, latents):
            model = definition.bind(params)
            values = {s.name: latents[:, :1] for s in model.spec.streams if s.kind == "video" and s.data_of is None}
            values |= {s.name: jnp.asarray(batch.proprio[:, :1]) for s in model.spec.streams if s.kind == "state"}
            known = Known(
                values=values, present={}, counted={}, proprio=jnp.asarray(batch.proprio[:, :1]),
                text=batch.text, embodiment=jnp.asarray(batch.embodiment),
            )  # fmt: skip
            return sample(model, known, jax.random.key(0), want=("action",), steps=2, lens=lens)

        return run

    made = {}
    return lambda name: made.setdefault(name, make(name))


def lens(change: np.ndarray) -> Lens:
    return Lens(
        attention=True,
        change=jnp.broadcast_to(jnp.asarray(change, jnp.float32), (8, TOKENS, TOKENS)),
        frame_tokens=TOKENS,
    )


@READ
def test_no_change_changes_nothing_and_attention_is_a_share(rollouts, batch, name):
    run, latents = rollouts(name), jnp.asarray(batch.latents)
    plain, seen = run(None, latents), run(lens(np.eye(TOKENS)), latents)
    assert ATTENTION not in plain
    np.testing.assert_allclose(seen["action"], plain["action"], atol=2e-5, rtol=1e-4)
    attention = np.asarray(seen[ATTENTION])
    steps = 1 if name == "uva" else 2  # its queries do not change from step to step
    assert attention.shape == (8, steps, 2, 4, TOKENS)  # samples, steps, layers, heads, positions
    assert attention.min() > 0
    assert attention.sum(-1).max() <= 1 + 1e-5


@READ
def test_actions_whose_tokens_read_zeros_do_not_know_the_video(rollouts, batch, name):
    run, blind = rollouts(name), lens(np.zeros((TOKENS, TOKENS)))
    latents = jnp.asarray(batch.latents)
    seeing = lens(np.eye(TOKENS))
    assert np.abs(run(seeing, latents)["action"] - run(seeing, -latents)["action"]).max() > 1e-3
    np.testing.assert_array_equal(run(blind, latents)["action"], run(blind, -latents)["action"])


def test_attention_to_the_present_alone_is_a_part_of_that_to_all_frames(rollouts, batch):
    run, latents = rollouts("agra"), jnp.asarray(batch.latents)
    whole, part = (
        np.asarray(run(Lens(attention=True, present=present, frame_tokens=TOKENS), latents)[ATTENTION])
        for present in (False, True)
    )
    assert (part > 0).all()
    assert (part < whole).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uwm", "dreamzero", "gigaworld_policy", "videovla", "x_wam"])
def test_diagnostics_need_no_code_for_a_system(rollouts, batch, name):
    run, latents = rollouts(name), jnp.asarray(batch.latents)
    masks = np.zeros((8, 2, 2, 16, 16), bool)  # scenes, parts, cameras; 2 x 2 tokens of 8 x 8 pixels
    masks[:, 0, :, :8, :8] = masks[:, 1, 1, 8:, 8:] = True

    def act(lens: Lens):
        found = run(lens, latents)
        return found["action"], found.get(ATTENTION)

    found = diagnose(act, ("hand", "object"), masks, (2, 2))
    np.testing.assert_allclose(found.area, [2 / 8, 1 / 8, 3 / 8])
    assert found.in_mask is not None
    np.testing.assert_allclose(found.in_mask[2], found.in_mask[0] + found.in_mask[1], atol=1e-5)
    assert found.in_mask.min() > 0
    assert found.in_mask.max() < 1
    assert found.sensitivity["zero"].moved


def test_contents_move_and_positions_stay():
    rng = np.random.default_rng(0)
    content, value = (jnp.asarray(rng.normal(size=(1, 6, 2, 4)), jnp.float32) for _ in range(2))
    positions = rng.uniform(0, 5, (6, 3)).astype(np.float32)
    table, order = rotary_table(positions, 4), np.array([1, 2, 0])
    both = np.concatenate([order, 3 + order])  # frame by frame
    change = jnp.asarray(np.eye(3)[order][None], jnp.float32)
    query = jnp.asarray(rng.normal(size=(1, 2, 2, 4)), jnp.float32)
    pairs, attention = read_through(change, None, query, [(rotate(content, table), value)], [True], [positions], None)
    assert attention is None
    np.testing.assert_allclose(pairs[0][0], rotate(content[:, both], table), atol=1e-5)
    np.testing.assert_allclose(pairs[0][1], value[:, both], atol=1e-6)


def test_attention_is_where_the_key_is_like_the_query():
    keys = 40 * jnp.eye(4)[None, :, None]  # four tokens, one head
    looking_at_2 = jnp.broadcast_to(keys[:, 2:3], (1, 3, 1, 4))
    other = jnp.zeros((1, 5, 1, 4))
    pairs = [(other, other), (keys, keys)]
    _, attention = read_through(None, 2, looking_at_2, pairs, [False, True], [None, None], None)
    np.testing.assert_allclose(attention, [[[1.0, 0.0]]], atol=1e-6)  # position 0 of the second frame
    mask = jnp.ones((1, 9), bool).at[:, 7].set(False)  # without that one, all are alike
    _, attention = read_through(None, 2, looking_at_2, pairs, [False, True], [None, None], mask)
    np.testing.assert_allclose(attention, [[[1 / 8, 2 / 8]]], atol=1e-6)


def test_layers_are_those_of_the_trunk(tiny, batch):
    definition = tiny.define("agra")
    model = definition.bind(tiny.params(definition))
    known = Known(
        values={"video": jnp.asarray(batch.latents), "state": jnp.asarray(batch.proprio)}, present={}, counted={},
        proprio=jnp.asarray(batch.proprio), text=batch.text, embodiment=jnp.asarray(batch.embodiment),
    )  # fmt: skip
    groups = [g for g in model.layout.context if g.stream == "video"]
    plain = model.extend(model.begin(known), groups, known).cache
    shown = model.extend(model.begin(known, lens=Lens(layers=(0, 1))), groups, known).cache
    for before, entry in zip(plain.entries, shown.entries, strict=True):
        assert entry.layers.shape == (2, *entry.hidden.shape)
        np.testing.assert_array_equal(entry.layers[-1], entry.hidden)
        np.testing.assert_array_equal(entry.hidden, before.hidden)
        assert np.abs(entry.layers[0] - entry.hidden).max() > 1e-3
