"""Sampling: exact with an oracle, the same with and without caches, and only what is needed."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.module import define
from wam_jax.objectives.flow_matching import known_from_batch
from wam_jax.policy import present
from wam_jax.types import StreamData
from wam_jax.wam.history import acting_streams, empty_history, generate, nothing_executed, observe
from wam_jax.wam.layout import Layout
from wam_jax.wam.lens import Shown
from wam_jax.wam.model import Known, Noisy, WorldActionModel
from wam_jax.wam.sample import level_table, needed_moves, sample
from wam_jax.wam.spec import Mode, Move, Stage
from wam_jax.wam.visibility import FIRST_FRAME_CAUSAL, ISOLATED, sees_imagined


def oracle(data):
    """A ``predict`` that knows the data x, so its velocity is exact: ε - x = (x_t - x) / t."""

    def predict(self, context, groups, known, noisy, streams):
        found = {}
        for name in streams:
            state, clean = noisy[name], data[name][:, None]
            level = state.level.reshape(*state.level.shape, *[1] * (clean.ndim - 3))
            predicted = self.spec.stream(name).role == "predicted"
            found[name] = clean if predicted else (state.values - clean) / level
        return found, Shown({})

    return predict


def now(model, batch) -> Known:
    return present(model, jnp.asarray(batch.latents[:, :1]), jnp.asarray(batch.proprio[:, 0]), batch)


def bound(tiny, name, **changes):
    definition = tiny.define(name, **changes)
    return definition.bind(tiny.params(definition))


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", ["fast_wam", "x_wam", "unipi", "mimic_video"])
def test_the_oracle_samples_the_data_whatever_the_schedule(tiny, batch, name, solver, monkeypatch):
    model = bound(tiny, name)
    data = {
        "video": jnp.asarray(batch.latents[:, 1:]),
        "features": jnp.asarray(batch.latents[:, 1:]),
        "depth": jnp.asarray(batch.streams["depth"].values[:, 1:]),
        "action": jnp.asarray(batch.actions),
    }
    monkeypatch.setattr(WorldActionModel, "predict", oracle(data))
    mode = model.spec.mode("policy")
    # Heun looks at the end of its last step, where an oracle divides by zero: stop just before.
    stages = tuple(dataclasses.replace(s, solver=solver, steps=min(s.steps, 8)) for s in mode.stages)
    if solver == "heun":
        stages = tuple(
            dataclasses.replace(s, moves=tuple(dataclasses.replace(m, to=max(m.to, 1e-3)) for m in s.moves))
            for s in stages
        )
        if name in ("unipi",):
            pytest.skip("reads a finished video")
    model.spec = dataclasses.replace(model.spec, modes=(dataclasses.replace(mode, stages=stages),))
    found = sample(model, now(model, batch), jax.random.key(0), want=("action",))
    np.testing.assert_allclose(found["action"], batch.actions, atol=1e-2 if solver == "heun" else 1e-4)


# One of each way to cache: a prefix, a held pass at fixed noise, a finished video, queries, a partly denoised video.
@pytest.mark.parametrize(
    "name",
    [
        "fast_wam",
        "agra",
        "uva",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fast_wam_idm", "mimic_video", "motus")),
    ],
)
def test_cached_sampling_equals_uncached(tiny, batch, name, monkeypatch):
    model = bound(tiny, name, registers=2) if name == "motus" else bound(tiny, name)

    def run():
        return jax.jit(lambda known: sample(model, known, jax.random.key(3), steps=2))(now(model, batch))

    cached = run()
    monkeypatch.setattr(Layout, "constant", lambda self, groups, moving: ())
    for stream, values in run().items():
        np.testing.assert_allclose(cached[stream], values, atol=2e-4, rtol=1e-4, err_msg=stream)


def test_what_is_constant_runs_once(tiny, batch, monkeypatch):
    model, ran = bound(tiny, "agra"), []
    run = WorldActionModel._run

    def spy(self, context, groups, *rest, **options):
        ran.append(sorted({g.stream for g in groups}))
        return run(self, context, groups, *rest, **options)

    monkeypatch.setattr(WorldActionModel, "_run", spy)
    sample(model, now(model, batch), jax.random.key(0), want=("action",))
    # The present and the pass at noise 1 once; then the action steps, which are one traced scan, see only their own.
    assert ran == [["features", "state", "video"], ["action"]]


def test_dropping_the_future_changes_actions_by_nothing(tiny, batch):
    """GigaWorld-Policy: nothing if the future is another one; the rounding of other matrix shapes if it is absent."""
    model = bound(tiny, "gigaworld_policy")
    known, key = now(model, batch), jax.random.key(0)
    alone = sample(model, known, key, "policy", want=("action",), steps=3)["action"]
    beside = sample(model, known, key, "joint", steps=3)
    assert set(beside) == {"action", "video"}
    np.testing.assert_allclose(alone, beside["action"], rtol=1e-5, atol=1e-5)
    run = jax.jit(lambda noise: model.predict(model.begin(known), groups, known, {**states, "video": noise}, names)[0])
    names = ("action", "video")
    groups = model.layout.needed(names)
    shapes = {n: (8, 1, *model.layout.future_shape(model.spec.stream(n))) for n in names}
    states = {
        n: Noisy(values=jax.random.normal(key, shape), level=jnp.full((8, 1, 1), 0.5)) for n, shape in shapes.items()
    }
    other = Noisy(values=-states["video"].values, level=states["video"].level)
    one, another = run(states["video"]), run(other)
    np.testing.assert_array_equal(one["action"], another["action"])
    assert np.abs(one["video"] - another["video"]).max() > 1e-2


def test_only_moves_that_matter_are_kept(tiny):
    model = bound(tiny, "x_wam")
    plan = model.spec.mode("policy")
    (first,) = needed_moves(model, plan, ("action",))
    assert [move.stream for move in first.moves] == ["video", "action"]
    assert [[m.stream for m in s.moves] for s in needed_moves(model, plan, ("depth",))] == [
        ["video", "action"],
        ["video", "depth"],
    ]
    fast = bound(tiny, "fast_wam")
    assert [[m.stream for m in s.moves] for s in needed_moves(fast, fast.spec.mode("policy"), ("action",))] == [
        ["action"]
    ]


def test_level_tables():
    np.testing.assert_allclose(level_table(Move("a"), 1.0, 4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(level_table(Move("a", to=0.8), 1.0, 2), [1, 0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(level_table(Move("a", steps=2), 1.0, 4), [1, 1, 0.5, 0.5, 0])  # waits between its steps
    np.testing.assert_allclose(level_table(Move("a", shift=5.0), 1.0, 2), [1, 5 * 0.5 / 3, 0], rtol=1e-6)
    again = level_table(Move("a", shift=5.0), level_table(Move("a", shift=5.0), 1.0, 2)[1], 1)
    np.testing.assert_allclose(again, [5 * 0.5 / 3, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="stream 'a' has 9 steps in a stage of 4; raise the stage's steps"):
        level_table(Move("a", steps=9), 1.0, 4)


def test_guidance_of_one_changes_nothing_and_more_does(tiny, batch):
    model = bound(tiny, "fast_wam")

    def action(guidance: float):
        stages = (Stage(moves=(Move("action", guidance=guidance),), steps=2),)
        model.spec = dataclasses.replace(model.spec, modes=(Mode(name="policy", stages=stages),))
        return sample(model, now(model, batch), jax.random.key(0))["action"]

    plain = action(1.0)
    assert np.abs(action(2.0) - plain).max() > 1e-3
    np.testing.assert_allclose(action(1.0 + 1e-6), plain, atol=1e-3)


def test_guidance_also_drops_text_that_is_part_of_the_sequence(tiny, batch):
    model = bound(tiny, "videovla", conditions=(), action_conditions=())

    def action(guidance: float):
        moves = (Move("video", guidance=guidance), Move("action", guidance=guidance))
        model.spec = dataclasses.replace(
            model.spec, modes=(Mode(name="policy", stages=(Stage(moves=moves, steps=2),)),)
        )
        return sample(model, now(model, batch), jax.random.key(0))["action"]

    assert np.abs(action(3.0) - action(1.0)).max() > 1e-3


def test_a_branch_can_be_read_out_in_a_stage_of_its_own(tiny, batch):
    model = bound(tiny, "x_wam")
    first = Stage(moves=(Move("video"), Move("action")), steps=2)
    later = Stage(moves=(Move("depth"),), steps=1)
    model.spec = dataclasses.replace(model.spec, modes=(Mode(name="policy", stages=(first, later)),))
    found = sample(model, now(model, batch), jax.random.key(0))
    assert found["depth"].shape == batch.streams["depth"].values[:, 1:].shape


def test_an_imagined_state_is_seen(tiny, batch):
    """Actions that are read off a state that was denoised before."""
    base = tiny.spec("unipi")
    state = dataclasses.replace(base.stream("video"), name="state", kind="state")
    spec = dataclasses.replace(
        base,
        streams=(base.stream("video"), state, base.stream("action")),
        visibility=FIRST_FRAME_CAUSAL & ISOLATED | sees_imagined("action", "state"),
        modes=(
            Mode(
                name="policy", stages=(Stage(moves=(Move("state"),), steps=2), Stage(moves=(Move("action"),), steps=1))
            ),
        ),
    )
    definition = define(lambda rngs: WorldActionModel(spec, tiny.interface, rngs))
    model = definition.bind(tiny.params(definition))
    one, other = (sample(model, now(model, batch), jax.random.key(seed))["action"] for seed in (0, 1))
    assert np.abs(one - other).max() > 1e-4  # the noise of the state is all that differs


def test_a_camera_that_is_absent_is_absent_from_what_is_imagined(tiny, batch):
    """Actions that are read off imagined frames know nothing of it: not even what was guessed for it."""
    model, frame = bound(tiny, "unipi"), jnp.asarray(batch.latents[:, :1])
    cameras = jnp.zeros((len(batch.actions), 2), bool).at[:, 0].set(True)

    def act(latents, cameras=None):
        known = present(model, latents, jnp.asarray(batch.proprio[:, 0]), batch, cameras)
        return sample(model, known, jax.random.key(0), want=("action",))["action"]

    other = frame.at[:, :, 1].add(5.0)
    np.testing.assert_array_equal(act(frame, cameras), act(other, cameras))
    np.testing.assert_allclose(act(frame, jnp.ones_like(cameras)), act(frame), atol=1e-6)
    assert np.abs(act(frame, cameras) - act(frame)).max() > 1e-4


def test_a_given_future_of_the_wrong_length_is_refused(tiny, batch):
    model = bound(tiny, "uwm", registers=2)
    with pytest.raises(ValueError, match=r"uwm: given 'action' has shape \(3, 4\), the future has \(4, 4\)"):
        sample(model, now(model, batch), jax.random.key(0), "world_model", given={"action": jnp.zeros((8, 3, 4))})


def test_given_streams_are_used_and_asked_for(tiny, batch):
    model = bound(tiny, "uwm", registers=2)
    known, key = now(model, batch), jax.random.key(0)

    def video(actions):
        return sample(model, known, key, "world_model", given={"action": actions}, steps=2)["video"]

    actions = jnp.asarray(batch.actions)
    assert np.abs(video(actions) - video(actions + 1)).max() > 1e-3
    with pytest.raises(ValueError, match=r"uwm: mode 'world_model' is given \['action'\], got \[\]"):
        sample(model, known, key, "world_model")


def test_a_mode_that_lacks_a_stream_says_so(tiny, batch):
    model = bound(tiny, "uwm", registers=2)
    model.spec = dataclasses.replace(model.spec, modes=(Mode(name="policy", stages=(Stage(moves=(Move("action"),)),)),))
    with pytest.raises(ValueError, match="uwm: mode 'policy' depends on 'video'; move it, give it, or name it missing"):
        sample(model, now(model, batch), jax.random.key(0))
    idm = bound(tiny, "fast_wam_idm")
    idm.spec = dataclasses.replace(idm.spec, modes=(Mode(name="policy", stages=(Stage(moves=(Move("action"),)),)),))
    with pytest.raises(ValueError, match="mode 'policy' reads the imagined 'video'; give it, or move it to 0"):
        sample(idm, now(idm, batch), jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "chunk", "options"),
    [
        ("dreamzero", 1, {}),
        ("lingbot_va", 1, {}),
        ("repwam", 1, {}),
        pytest.param("repwam", 2, {}, id="repwam-pairs"),
        pytest.param("repwam", 1, {"latent_actions": True}, id="repwam-joint"),
    ],
)
def test_rolling_cache_equals_the_whole_window(tiny, batch, name, chunk, options):
    """After two real observations, a block is predicted as teacher forcing predicts it with the window in full view."""
    rng = np.random.default_rng(4)
    frames, actions = 1 + 2 * chunk, 4 * chunk
    steps = tuple(range(0, 2 * frames, 2))
    interface = dataclasses.replace(tiny.interface, frame_steps=steps, action_horizon=actions)
    spec = dataclasses.replace(tiny.spec(name, **options), chunk_frames=chunk)
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    model = definition.bind(tiny.params(definition))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(8, *shape)).astype(np.float32)

    batch = dataclasses.replace(
        batch,
        latents=normal(frames, interface.cameras, *interface.latent_shape),
        image_mask=np.ones((8, frames, interface.cameras), bool),
        actions=normal(actions, interface.action_size),
        action_mask=np.ones((8, actions, interface.action_size), bool),
        proprio=normal(frames, interface.proprio_size),
        proprio_mask=np.ones((8, frames, interface.proprio_size), bool),
        streams={
            "latent_action": StreamData(
                values=normal(frames - 1, interface.latent_action_size), mask=np.ones((8, frames - 1), bool)
            )
        },
    )
    window = known_from_batch(model, batch, jnp.asarray(batch.latents))
    future = {s.name: normal(1, *model.layout.future_shape(s)) for s in model.spec.streams if s.role == "denoised"}
    level = jnp.full((8, 1, 1), 0.6)

    def at(block: int) -> Known:
        """The frames of a block, the state at its end."""
        seen = slice(1 + (block - 1) * chunk, 1 + block * chunk) if block else slice(0, 1)
        return present(model, window.values["video"][:, seen], window.proprio[:, block * chunk], batch)

    names = [n for n in model.spec.generated if n != "action" or name != "lingbot_va"]  # its actions wait for the video

    @jax.jit
    def run():
        noisy = {n: Noisy(values=jnp.asarray(v), level=level) for n, v in future.items()}
        groups = model.layout.needed(names, 2)
        whole = model.predict(model.begin(window), groups, window, noisy, names)[0]
        history, _ = observe(model, empty_history(model, at(0)), at(0), None)
        executed = {s.name: window.values[s.name][:, slice(*model.layout.span(s, 1))] for s in acting_streams(model)}
        history, context = observe(model, history, at(1), executed)
        late = {n: Noisy(values=jnp.asarray(v)[:, :, v.shape[2] // 2 :], level=level) for n, v in future.items()}
        new = [g for g in model.layout.needed(names, 1) if not g.clean]
        return whole, model.predict(context, new, at(1), late, names)[0]

    whole, rolled = run()
    for stream in names:
        expected = whole[stream]
        np.testing.assert_allclose(rolled[stream], expected, atol=2e-4, rtol=1e-3, err_msg=stream)


def test_the_oldest_block_leaves_and_the_newest_comes_last(tiny, batch):
    model = bound(tiny, "dreamzero", history=2)
    known = now(model, batch)
    histories = [empty_history(model, known)]
    for shift in range(3):
        seen = dataclasses.replace(known, values={**known.values, "video": known.values["video"] + shift})
        histories.append(observe(model, histories[-1], seen, nothing_executed(model, 8))[0])
    size = len(histories[0].cache.groups) // 2
    assert [float(h.time) for h in histories] == [0, 0, 2, 4]
    assert [g.block for g in histories[0].cache.groups] == [-1] * size + [0] * size
    assert not any(bool(e.present.any()) for e in histories[0].cache.entries)
    assert [bool(e.present.any()) for e in histories[1].cache.entries[:size]] == [False] * size
    for older, newer in itertools.pairwise(histories[1:]):
        kept, was_new = newer.cache.entries[:size], older.cache.entries[size:]
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(was_new), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("options", [{}, {"latent_actions": True}], ids=["actions", "joint"])
def test_generate_goes_on_block_after_block(tiny, batch, options):
    model = bound(tiny, "repwam", **options)
    found = jax.jit(lambda known: generate(model, known, jax.random.key(0)))(now(model, batch))
    assert found["video"].shape == batch.latents[:, 1:].shape
    assert found["action"].shape == batch.actions.shape
    assert ("latent_action" in found) == bool(options)
