"""Collectives of compiled programs equal hand counts; memory is the compiler's; a refusal is understood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wam_jax.compiled import Collective, OutOfMemory, Traffic, collectives, memory, out_of_memory

LAYERS, WIDTH, ROWS = 6, 32, 16
FLOAT = 4  # bytes
ALL, ROW = PartitionSpec(), PartitionSpec("data")


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def text_of(function, *arguments) -> str:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text is not None
    return text


def shard_mapped(mesh, function, out_specs, shape=(ROWS, WIDTH)):
    """The text of ``function`` on each device's part of an array that is cut along data."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=ROW, out_specs=out_specs, check_vma=False)
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, ROW))
    return text_of(mapped, array)


@pytest.mark.parametrize(
    ("kind", "function", "out_specs", "payload", "sent"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "data"), ALL, 4, 3),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "data", tiled=True), ROW, 1, 3 / 4),
        ("all-reduce", lambda x: jax.lax.psum(x, "data"), ALL, 1, 2 * 3 / 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), ROW, 1, 3 / 4),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), ROW, 1, 1),
    ],
)
def test_bytes_of_each_kind_in_parts_of_what_a_device_holds(mesh, kind, function, out_specs, payload, sent):
    part = ROWS // 4 * WIDTH * FLOAT
    traffic = collectives(shard_mapped(mesh, function, out_specs))
    assert traffic == Traffic({kind: Collective(1, payload * part, int(sent * part))})


def test_a_group_is_one_axis_of_the_mesh(mesh):
    text = shard_mapped(mesh, lambda x: jax.lax.psum(x, ("data", "model")), ALL)
    assert collectives(text).kinds["all-reduce"].sent == 2 * 7 / 8 * (ROWS // 4 * WIDTH * FLOAT)


def layers_loss(layers, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0].sum()


def sharded_inputs(mesh):
    layers = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "data"))
    )
    return layers, jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, ROW))


def test_collectives_in_a_scan_count_once_a_layer_forward_and_backward(mesh):
    text = text_of(jax.grad(layers_loss), *sharded_inputs(mesh))
    traffic = collectives(text)
    one_layer = WIDTH * WIDTH * FLOAT
    gathers = traffic.kinds["all-gather"]
    assert gathers.count == 2 * LAYERS  # forward, and for the gradient of x
    assert gathers.payload == 2 * LAYERS * one_layer
    assert gathers.sent == gathers.payload * 3 / 4
    summed = [traffic.kinds[kind] for kind in ("all-reduce", "reduce-scatter") if kind in traffic.kinds]
    assert sum(c.count for c in summed) >= LAYERS
    assert sum(c.payload for c in summed) >= LAYERS * one_layer
    assert traffic.unknown_loops == 0


def test_nested_scans_multiply(mesh):
    def twice(layers, x):
        return jax.lax.scan(lambda total, _: (total + layers_loss(layers, x + total), None), 0.0, length=5)[0]

    text = text_of(twice, *sharded_inputs(mesh))
    assert collectives(text).kinds["all-gather"].count == 5 * LAYERS


def test_the_dearer_branch_of_a_cond_counts(mesh):
    def choose(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.psum(jax.lax.psum(x, "data") + x, "data"), lambda x: x, x)

    assert collectives(shard_mapped(mesh, choose, ROW)).kinds["all-reduce"].count == 2


def test_a_loop_without_a_known_end_counts_once_and_is_reported(mesh):
    def until(x):
        return jax.lax.while_loop(lambda x: jax.lax.psum(x.sum(), "data") < 10, lambda x: jax.lax.psum(x, "data"), x)

    traffic = collectives(shard_mapped(mesh, until, ROW))
    assert traffic.kinds["all-reduce"].payload == ROWS // 4 * WIDTH * FLOAT
    assert traffic.unknown_loops == 1


def test_one_device_sends_nothing():
    text = text_of(jax.grad(layers_loss), jnp.ones((2, 4, 4)), jnp.ones((3, 4)))
    assert collectives(text) == Traffic({})
    with pytest.raises(ValueError, match="no ENTRY computation in this text; pass compiled"):
        collectives("")


# What the TPU compiler writes, shortened: a loop without a known_trip_count, an all-gather repeated by the fusions that
# start, continue and end it, and a reduce-scatter that is a fusion.
TPU = """
HloModule jit_step, is_scheduled=true, num_partitions=4

%start (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  %ag.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=14, replica_groups=mesh['a'=4,'b'=1] {'a'}
  ROOT %c = (bf16[1,8]{1,0}, /*index=1*/bf16[4,8]{1,0:T(8,128)S(1)}) custom-call(%ag.1), custom_call_target="Start"
}

%done (p.1: bf16[1,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.2 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=14, replica_groups=mesh['a'=4,'b'=1] {'a'}
}

%all-reduce-scatter.clone (input: f32[8,8]) -> f32[2,8] {
  %input = f32[8,8]{1,0:T(8,128)} parameter(0)
  %ar = f32[8,8]{1,0:T(8,128)} all-reduce(%input), channel_id=10, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %ds = f32[2,8]{1,0:T(8,128)} slice(%ar), slice={[0:2], [0:8]}
}

%body (q: (s32[], bf16[1,8], f32[8,8])) -> (s32[], bf16[1,8], f32[8,8]) {
  %one = s32[]{:T(128)} constant(1)
  %q = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %i.copy = s32[]{:T(128)S(6)} copy(%i)
  %x = bf16[1,8]{1,0} get-tuple-element(%q), index=1
  %y = f32[8,8]{1,0} get-tuple-element(%q), index=2
  %next = s32[]{:T(128)} add(%i.copy, %one)
  %s = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) fusion(%x), kind=kCustom, calls=%start, backend_config={"x":"a (b)"}
  %x.1 = bf16[1,8]{1,0} get-tuple-element(%s), index=0
  %d = bf16[4,8]{1,0} fusion(%x.1), kind=kCustom, calls=%done
  %rs = f32[2,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.clone
  ROOT %t = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[8,8]{1,0}) tuple(%next, %x, %y)
}

%condition (r: (s32[], bf16[1,8], f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  %r = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%r), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: bf16[1,8], b: f32[8,8]) -> f32[8,8] {
  %a = bf16[1,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %gs = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%a), channel_id=20, replica_groups=[1,4]<=[4], dimensions={0}
  %gd = bf16[4,8]{1,0} all-gather-done(%gs)
  %init = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[8,8]{1,0}) tuple(%zero, %a, %b)
  %w = (s32[]{:T(128)}, bf16[1,8]{1,0}, f32[8,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,8]{1,0} get-tuple-element(%w), index=2
}
"""
GATHER, SCATTER = 4 * 8 * 2, 8 * 8 * 4


def test_the_tpu_compilers_forms():
    assert collectives(TPU) == Traffic(
        {
            "all-gather": Collective(31, 31 * GATHER, 31 * GATHER * 3 // 4),
            "reduce-scatter": Collective(30, 30 * SCATTER, 30 * SCATTER * 3 // 4),
        }
    )


@pytest.mark.parametrize(
    ("old", "new", "turns"),
    [
        ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(10)", 20),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(4)", 8),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}', 7),
    ],
)
def test_turns_of_a_loop_follow_start_and_step_or_the_compilers_note(old, new, turns):
    assert collectives(TPU.replace(old, new)).kinds["reduce-scatter"].count == turns


@pytest.mark.parametrize(
    ("old", "new"),
    [("direction=LT", "direction=NE"), ("%limit = s32[]{:T(128)} constant(30)", "%limit = s32[] parameter(1)")],
)
def test_a_loop_that_is_not_understood_is_reported(old, new):
    traffic = collectives(TPU.replace(old, new))
    assert (traffic.kinds["reduce-scatter"].count, traffic.unknown_loops) == (1, 1)


def test_memory_of_a_donated_argument_counts_once():
    array = _square(256)
    size = 256 * 256 * FLOAT
    kept = memory(jax.jit(lambda x: x + 1).lower(array).compile())
    donated = memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile())
    assert (kept.arguments, kept.outputs, kept.aliased, kept.peak) == (size, size, 0, 2 * size)
    assert (donated.arguments, donated.outputs, donated.aliased, donated.peak) == (size, size, size, size)
    assert kept.temporaries == donated.temporaries == 0


def test_temporaries_are_what_the_peak_holds_beside_arguments_and_outputs():
    size = 512 * 512 * FLOAT
    used = memory(jax.jit(lambda x: jnp.sort(x, 0) @ jnp.sort(x, 1)).lower(_square(512)).compile())
    assert used.peak == used.arguments + used.outputs + used.temporaries
    assert 2 * size <= used.temporaries < 3 * size


def _square(size):
    return jax.ShapeDtypeStruct((size, size), jnp.float32)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (553.06G) "
            "exceeds available HBM (95.74G).",
            OutOfMemory(round(553.06 * 2**30), round(95.74 * 2**30)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm. Exceeded hbm "
            "capacity by 768.0M.",
            OutOfMemory(round(16.5 * 2**30), round(15.75 * 2**30)),
        ),
        ("RESOURCE_EXHAUSTED: scoped vmem", None),
    ],
)
def test_a_refusal_for_memory_is_understood(message, expected):
    assert out_of_memory(RuntimeError(message)) == expected
