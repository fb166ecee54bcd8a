"""Exact attention on each platform: which kernel, and what it needs around it.

XLA writes the logits of every query and key to memory; cuDNN on GPUs and splash attention on TPUs keep them on the
chip. Every backend here has the signature and the meaning of ``wam_jax.nn.attention.attend``.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Bool, Float, Int

from wam_jax.sharding import activation_spec, ambient_mesh, mesh_axis_size

Backend = Literal["xla", "cudnn", "splash"]
Kernel = Callable[[Array, Array, Array, Array | None], Array]

RESIDUALS = "attention"  # what splash's backward pass needs besides its inputs; a remat policy may save it by this name
LANES = 128  # a TPU's vector width: token blocks and head sizes are multiples of it
QUERY_BLOCK, KEY_BLOCK = 512, 1024  # at most: they and their logits have to fit a core's fast memory
WORTH_SPLASH = 512 * 512  # queries times keys: where XLA's logits begin to take more than 1 MiB a head
WORTH_CUDNN = 64  # queries, and keys: one tile of its kernels


def choose(platform: str, dtype: jnp.dtype, head_dim: int, num_queries: int, num_keys: int) -> Backend:
    """The backend for a platform ("cpu", "gpu", "tpu") and the sizes of a problem.

    cuDNN takes bfloat16 and float16, and head sizes that are multiples of 8 up to 128 (256 from Hopper on); splash
    attention takes bfloat16 and float32, and any head size to 256. The rest, small problems and CPUs go to XLA.
    """
    if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and min(num_queries, num_keys) >= WORTH_CUDNN:
        return "cudnn" if head_dim % 8 == 0 and (head_dim <= 128 or head_dim <= _cudnn_head_limit()) else "xla"
    if platform == "tpu" and dtype in (jnp.bfloat16, jnp.float32) and num_queries * num_keys >= WORTH_SPLASH:
        return "splash" if head_dim <= 256 else "xla"
    return "xla"


def _cudnn_head_limit() -> int:
    """Source: ``check_is_flash_attention`` in JAX's ``cudnn/fused_attention_stablehlo.py``."""
    capability = jax.local_devices(backend="gpu")[0].compute_capability  # like "9.0"
    return 256 if float(capability) >= 9 else 128


def xla(
    query: Float[Array, "B Nq H Dh"],
    key: Float[Array, "B Nk H Dh"],
    value: Float[Array, "B Nk H Dh"],
    key_mask: Bool[Array, "B Nk"] | None = None,
) -> Float[Array, "B Nq H Dh"]:
    """Plain operations, on every platform and mesh."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def cudnn(
    query: Float[Array, "B Nq H Dh"],
    key: Float[Array, "B Nk H Dh"],
    value: Float[Array, "B Nk H Dh"],
    key_mask: Bool[Array, "B Nk"] | None = None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B Nq H Dh"]:
    """cuDNN's fused attention, on one GPU.

    Given a mask, JAX would hand cuDNN a dense bias, which is slow (jax#35114). Attention does not care about the order
    of its keys: those that the mask keeps go first, and cuDNN is told how many they are. Lengths are padded to even
    ones, because JAX refuses odd ones in training, bias or not (``check_is_flash_attention`` in its
    ``cudnn/fused_attention_stablehlo.py``). ``implementation="xla"`` runs the same preparation anywhere.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    lengths = jnp.full(len(key), num_keys, jnp.int32) if num_keys % 2 else None
    if key_mask is not None:
        key, value, lengths = kept_first(key, value, key_mask)
    query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    attended = jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation=implementation
    )
    return attended[:, :num_queries]


def kept_first(
    key: Float[Array, "B N H Dh"], value: Float[Array, "B N H Dh"], key_mask: Bool[Array, "B N"]
) -> tuple[Float[Array, "B N H Dh"], Float[Array, "B N H Dh"], Int[Array, " B"]]:
    """Keys and values with those that the mask keeps in front, and how many these are (at least one)."""
    order = jnp.argsort(~key_mask, axis=1, stable=True)
    take = jax.vmap(lambda x, index: x.at[index].get(unique_indices=True, mode="promise_in_bounds"))
    lengths = jnp.maximum(jnp.sum(key_mask, axis=1, dtype=jnp.int32), 1)
    return take(key, order), take(value, order), lengths


def splash(
    query: Float[Array, "B Nq H Dh"],
    key: Float[Array, "B Nk H Dh"],
    value: Float[Array, "B Nk H Dh"],
    key_mask: Bool[Array, "B Nk"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B Nq H Dh"]:
    """Pallas' splash attention with full visibility, on one TPU core; ``interpret`` runs it anywhere, slowly.

    Lengths are padded to whole blocks, and padded keys are masked as another segment.
    """
    num_queries, num_keys, heads, head_dim = query.shape[1], key.shape[1], query.shape[2], query.shape[3]
    wide = head_dim * query.dtype.itemsize > 512  # float32 heads of more than 128
    query_block = block_size(num_queries, QUERY_BLOCK)
    key_block = block_size(num_keys, KEY_BLOCK // 2 if wide else KEY_BLOCK)
    # The kernel does not scale. In bfloat16 the factor itself would be rounded, and with it every logit alike.
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    query, key, value = _tiles(query, query_block), _tiles(key, key_block), _tiles(value, key_block)
    segments = _segments(key_mask, query.shape[2], num_keys, key.shape)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((query.shape[2], key.shape[2]))] * heads),
        block_sizes=_block_sizes(query_block, key_block),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    attended = jax.vmap(kernel)(query, key, value, segments)
    return rearrange(attended[:, :, :num_queries, :head_dim], "b h n d -> b n h d")


def block_size(length: int, limit: int) -> int:
    """The multiple of 128, at most ``limit``, whose fewest copies cover ``length`` with the least padding."""
    blocks = -(-length // limit)
    return LANES * -(-length // (blocks * LANES))


def _block_sizes(query: int, key: int) -> splash_attention_kernel.BlockSizes:
    return splash_attention_kernel.BlockSizes(
        block_q=query, block_q_dq=query, block_q_dkv=query, block_kv=key, block_kv_dq=key, block_kv_dkv=key
    )


def _tiles(x: Float[Array, "B N H Dh"], block: int) -> Float[Array, "B H Np Dp"]:
    """Heads before tokens; tokens padded to whole blocks and head sizes to whole lanes, with zeros."""
    tokens, head_dim = -x.shape[1] % block, -x.shape[3] % LANES
    return rearrange(jnp.pad(x, ((0, 0), (0, tokens), (0, 0), (0, head_dim))), "b n h d -> b h n d")


def _segments(
    key_mask: Bool[Array, "B Nk"] | None, padded_queries: int, num_keys: int, padded_keys: tuple[int, ...]
) -> splash_attention_kernel.SegmentIds | None:
    """Segment 1 for queries and kept keys, 0 for masked and padded keys; None where every key is kept."""
    size, _, length, _ = padded_keys
    if key_mask is None and length == num_keys:
        return None
    kept = jnp.ones((size, num_keys), bool) if key_mask is None else key_mask
    ids = jnp.pad(kept, ((0, 0), (0, length - num_keys))).astype(jnp.int32)
    return splash_attention_kernel.SegmentIds(q=jnp.ones((size, padded_queries), jnp.int32), kv=ids)


def per_shard(
    kernel: Kernel,
    query: Float[Array, "B Nq H Dh"],
    key: Float[Array, "B Nk H Dh"],
    value: Float[Array, "B Nk H Dh"],
    key_mask: Bool[Array, "B Nk"] | None = None,
) -> Float[Array, "B Nq H Dh"]:
    """Runs a kernel for one device on each shard of the ambient mesh (on the whole, where there is no mesh).

    Each device has its part of the batch, of the heads and of the queries, and all keys: they are gathered over the
    context axis.

    Raises:
      ValueError: if the batch or the heads do not divide by their mesh axes.
    """
    mesh = ambient_mesh()
    if mesh is None:
        return kernel(query, key, value, key_mask)
    num_queries = query.shape[1]
    query = jnp.pad(query, ((0, 0), (0, -num_queries % mesh_axis_size("context")), (0, 0), (0, 0)))
    queries = activation_spec(mesh, query.shape, ("batch", "tokens", "heads", None))
    keys = activation_spec(mesh, key.shape, ("batch", None, "heads", None))
    mask = activation_spec(mesh, key.shape[:2], ("batch", None))
    # A kernel does not say along which axes its output varies, so that cannot be checked.
    run = jax.shard_map(kernel, mesh=mesh, in_specs=(queries, keys, keys, mask), out_specs=queries, check_vma=False)
    return run(query, key, value, key_mask)[:, :num_queries]


BACKENDS: dict[Backend, Kernel] = {
    "xla": xla,  # XLA itself divides plain operations over a mesh
    "cudnn": partial(per_shard, cudnn),
    "splash": partial(per_shard, splash),
}
