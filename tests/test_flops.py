"""FLOPs of a jaxpr equal what one counts by hand, through every construct that holds a jaxpr."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from wam_jax.flops import Flops, count_flops

M, K, N = 3, 5, 7
ROWS = jax.ShapeDtypeStruct((M, K), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((K, K), jnp.float32)
LAYERS = jax.ShapeDtypeStruct((6, K, K), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((K,), jnp.float32)
SQUARE_FLOPS = 2 * K**3


def square(x):
    return x @ x


def scanned(x, layers):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0]


@pytest.mark.parametrize(
    ("equation", "left", "right", "expected"),
    [
        ("mk,kn->mn", (M, K), (K, N), 2 * M * K * N),
        ("bmk,bkn->bmn", (4, M, K), (4, K, N), 2 * 4 * M * K * N),
        ("bqhd,bkhd->bhqk", (2, M, 4, K), (2, N, 4, K), 2 * 2 * 4 * M * N * K),
        ("mkl,kln->mn", (M, K, 2), (K, 2, N), 2 * M * K * 2 * N),
        ("k,k->", (K,), (K,), 2 * K),
        ("m,n->mn", (M,), (N,), 2 * M * N),
    ],
)
def test_matmul_is_two_operations_a_multiplication_batch_included(equation, left, right, expected):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (left, right)]
    assert count_flops(functools.partial(jnp.einsum, equation), *arrays).total == expected


def test_elementwise_work_is_not_counted():
    assert count_flops(lambda x: jnp.tanh(x).sum() + 1, ROWS) == Flops()


def test_convolution_counts_kernel_positions_times_input_channels_of_a_group():
    images, kernel = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((3, 3, 2, 9), jnp.float32)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    assert count_flops(convolve, images, kernel) == Flops(convolution=2 * (2 * 4 * 4 * 9) * (3 * 3 * 2))


def test_scan_counts_every_turn_and_nests():
    assert count_flops(scanned, ROWS, LAYERS).total == 6 * 2 * M * K * K

    def twice(x, layers):
        return jax.lax.scan(lambda x, _: (scanned(x, layers), None), x, length=4)[0]

    assert count_flops(twice, SQUARE, LAYERS).total == 4 * 6 * SQUARE_FLOPS


def test_xla_counts_the_body_of_a_scan_once_which_is_why_this_module_exists():
    compiled = jax.jit(scanned).lower(SQUARE, LAYERS).compile()
    said = compiled.cost_analysis()
    assert said is not None
    assert SQUARE_FLOPS <= said["flops"] < 2 * SQUARE_FLOPS
    assert count_flops(scanned, SQUARE, LAYERS).total == 6 * SQUARE_FLOPS


def test_a_backward_pass_costs_two_forward_passes_and_remat_one_more():
    def gradient(layer):
        def loss(x, layers):
            return jax.lax.scan(lambda x, w: (layer(x, w), None), x, layers)[0].sum()

        return jax.grad(loss, argnums=(0, 1))

    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    forward = count_flops(scanned, SQUARE, LAYERS).total * 2
    assert count_flops(gradient(layer), SQUARE, LAYERS).total == 3 * forward
    assert count_flops(gradient(jax.checkpoint(layer)), SQUARE, LAYERS).total == 4 * forward


def test_cond_counts_its_most_expensive_branch():
    def choose(flag, x):
        return jax.lax.cond(flag, lambda x: x, lambda x: x @ x @ x, x)

    assert count_flops(choose, jax.ShapeDtypeStruct((), bool), SQUARE).total == 2 * SQUARE_FLOPS


def test_while_counts_one_turn_and_says_so():
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 10, square, x)

    assert count_flops(loop, SQUARE) == Flops(matmul=SQUARE_FLOPS, unbounded_loops=1)
    harmless = count_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x + 1, x), SQUARE)
    assert harmless.unbounded_loops == 0


def _custom_jvp(function):
    function = jax.custom_jvp(function)
    function.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
    return function


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.named_call, _custom_jvp])
def test_wrappers_cost_nothing(wrap):
    assert count_flops(wrap(square), SQUARE).total == SQUARE_FLOPS


def test_custom_vjp_counts_forward_and_its_own_backward():
    @jax.custom_vjp
    def f(x):
        return x @ x

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g @ x @ x,))
    assert count_flops(f, SQUARE).total == SQUARE_FLOPS
    assert count_flops(jax.grad(lambda x: f(x).sum()), SQUARE).total == 3 * SQUARE_FLOPS


def test_vmap_multiplies():
    assert count_flops(jax.vmap(lambda w, v: w @ v), LAYERS, jax.ShapeDtypeStruct((6, K), jnp.float32)) == count_flops(
        jnp.matmul, jax.ShapeDtypeStruct((6 * K, K), jnp.float32), VECTOR
    )


def test_shard_map_counts_all_devices_whatever_the_mesh():
    mesh = Mesh(jax.devices()[:8], ("data",))
    rows = jax.ShapeDtypeStruct((16, K), jnp.float32)
    spec = PartitionSpec("data")
    sharded = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec)
    assert count_flops(sharded, rows, SQUARE) == count_flops(jnp.matmul, rows, SQUARE)


def test_pallas_kernels_count_every_cell_of_their_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    def tiled(x, w):
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((16, K), jnp.float32),
            grid=(4,),
            in_specs=[pl.BlockSpec((4, K), lambda i: (i, 0)), pl.BlockSpec((K, K), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((4, K), lambda i: (i, 0)),
        )(x, w)

    rows = jax.ShapeDtypeStruct((16, K), jnp.float32)
    assert count_flops(tiled, rows, SQUARE) == count_flops(jnp.matmul, rows, SQUARE)
