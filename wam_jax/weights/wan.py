"""Wan's video transformers (2.1, 2.2) as the video expert of a world action model, and systems that start from one.

Wan 2.1: arXiv 2503.20314; the tensors are those of ``WanTransformer3DModel`` (diffusers) or ``WanModel``
(Wan-Video/Wan2.1, wan/modules/model.py). The trunk computes what they compute:

- text to video: all frames are noisy, so the model runs its future alone (``predict`` with the noisy group only), one
  frame longer than the video: rotary positions are relative, so it does not matter that they count from 1;
- first frame to video (2.2 TI2V): the zoo's ``wan``, the first frame being clean at noise level 0;
- image to video (2.1 I2V): ``Stream.given_channels`` and ``Expert.image_width``.

Wan's time is 1000 times our noise level, its velocity is ours (noise - data), and it sees text padding
(``Spec.padded_text``).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from wam_jax.nn.module import Definition, Params
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Spec
from wam_jax.weights import mapping
from wam_jax.weights.interpolate import Flat, Path, interpolate_expert
from wam_jax.weights.mapping import Source, Tensors, WeightMap, layer_norm, linear

# From diffusers' names to those of the Wan repositories, one rule after another.
_ORIGINAL_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("}.scale_shift_table", "}.modulation"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
)


def wan_map(spec: Spec, stream: str = "video", original: bool = False) -> WeightMap:
    """Where a Wan transformer has the weights of a stream, its expert and their conditioning.

    What else the model has (other experts and streams, the token that stands for missing frames) is not in the table.

    Args:
      spec: its expert must have Wan's shape: attention width num_heads * head_dim, text, no further conditions.
      stream: of video.
      original: names of the Wan repositories; else diffusers'.
    """
    expert, embedder = spec.expert_of(stream), "condition_embedder"
    table: WeightMap = {
        "maps": {stream: _stream(spec.patch_size)},
        "conditioning": {
            expert.name: {
                "first": linear(f"{embedder}.time_embedder.linear_1"),
                "second": linear(f"{embedder}.time_embedder.linear_2"),
                "project": linear(f"{embedder}.time_proj"),
            }
        },
        "text_in": {
            expert.name: {
                "first": linear(f"{embedder}.text_embedder.linear_1"),
                "second": linear(f"{embedder}.text_embedder.linear_2"),
            }
        },
        "trunk": {"blocks": {expert.name: _block(spec.num_heads, expert.image_width > 0)}},
    }
    if expert.image_width:
        table["image_in"] = {
            expert.name: {
                "norm_in": layer_norm(f"{embedder}.image_embedder.norm1"),
                "first": linear(f"{embedder}.image_embedder.ff.net.0.proj"),
                "second": linear(f"{embedder}.image_embedder.ff.net.2"),
                "norm_out": layer_norm(f"{embedder}.image_embedder.norm2"),
            }
        }
    return jax.tree.map(_renamed, table) if original else table


def _stream(patch_size: int) -> WeightMap:
    kernel = Source("patch_embedding.weight", "o c 1 p q -> (p q c) o", {"p": patch_size, "q": patch_size})
    return {
        "project": {"linear": {"kernel": kernel, "bias": Source("patch_embedding.bias")}},
        "head": {
            "modulation": Source("scale_shift_table", "1 two d -> two d"),
            "project": {"linear": linear("proj_out")},
        },
    }


def _block(heads: int, image: bool) -> WeightMap:
    crossing = {"projections": _projections("blocks.{}.attn2", None)}
    if image:
        crossing["image_key"] = linear("blocks.{}.attn2.add_k_proj")
        crossing["image_value"] = linear("blocks.{}.attn2.add_v_proj")
        crossing["image_key_norm"] = {"scale": Source("blocks.{}.attn2.norm_added_k.weight")}
    return {
        "modulation": Source("blocks.{}.scale_shift_table", "1 six d -> six d"),
        "attention": {
            "self_attention": _projections("blocks.{}.attn1", heads),
            "text_norm": layer_norm("blocks.{}.norm2"),
            "text_attention": crossing,
        },
        "ffn": {"up": linear("blocks.{}.ffn.net.0.proj"), "down": linear("blocks.{}.ffn.net.2")},
    }


def _projections(name: str, rotary_heads: int | None) -> WeightMap:
    """One attention. Rotary positions turn Wan's channels (2i, 2i + 1) of a head, but ours (i, i + Dh / 2)."""
    turned: WeightMap = {}
    for ours, theirs in (("query", "q"), ("key", "k")):
        turned[ours], turned[f"{ours}_norm"] = (
            linear(f"{name}.to_{theirs}"),
            {"scale": Source(f"{name}.norm_{theirs}.weight")},
        )
    if rotary_heads is not None:
        turned = jax.tree.map(lambda source: _halved(source, rotary_heads), turned)
    return {**turned, "value": linear(f"{name}.to_v"), "output": linear(f"{name}.to_out.0")}


def _halved(source: Source, heads: int) -> Source:
    theirs, ours = "(h i two)", "(h two i)"
    pattern = f"{theirs} d -> d {ours}" if source.pattern else f"{theirs} -> {ours}"
    return dataclasses.replace(source, pattern=pattern, sizes={"h": heads, "two": 2})


def _renamed(source: Source) -> Source:
    name = source.name
    for theirs, originally in _ORIGINAL_NAMES:
        name = name.replace(theirs, originally)
    return dataclasses.replace(source, name=name)


class Started(NamedTuple):
    """Parameters to start training from, and where each array came from.

    ``origin``: by path, "checkpoint", "interpolated" (from the video expert) or "new".
    """

    params: Params
    origin: dict[str, str]

    def __str__(self) -> str:
        """Values by origin, and what is new."""
        sizes = {"/".join(map(str, path)): array.size for path, array in flatten_dict(self.params).items()}
        lines = []
        for origin in ("checkpoint", "interpolated", "new"):
            paths = [path for path in self.origin if self.origin[path] == origin]
            lines += (
                [f"{sum(sizes[path] for path in paths):,} values in {len(paths)} arrays: {origin}"] if paths else []
            )
        new = sorted({re.sub(r"/(kernel|bias|scale)$", "", p) for p, origin in self.origin.items() if origin == "new"})
        return "\n".join([*lines, *(f"  {path}" for path in new)])


def load_video_expert(
    definition: Definition[WorldActionModel],
    shardings: Params | None,
    checkpoint: Tensors,
    key: jax.Array,
    action: Literal["new", "interpolated"] = "new",
) -> Started:
    """A world action model whose video expert is a Wan checkpoint's.

    Args:
      definition: the model.
      shardings: where each parameter lives; None: on the default device.
      checkpoint: a Wan transformer of the video expert's shape, with the names of diffusers or of Wan's repositories.
      key: of what is new; it starts as ``definition.init(key)`` has it.
      action: the actions' expert: new, or interpolated from the video expert (Fast-WAM).

    Raises:
      WeightsMismatch: the checkpoint's tensors are not those of the video expert.
      ValueError: the action expert cannot be interpolated, or there is none.
    """
    abstract = definition.shapes()
    spec, shapes = definition.bind(abstract).spec, flatten_dict(abstract)
    places = dict.fromkeys(shapes) if shardings is None else flatten_dict(shardings)
    like = {path: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=places[path]) for path, s in shapes.items()}
    table = wan_map(spec, original="head.head.weight" in checkpoint.shapes())
    named = unflatten_dict({path: like[path] for path in flatten_dict(table) if path in like})
    params = flatten_dict(mapping.load(table, named, checkpoint))
    origin = dict.fromkeys(params, "checkpoint")
    if action == "interpolated":
        narrow = interpolate_expert(params, like, spec.expert_of("video").name, spec.expert_of("action").name)
        params, origin = params | narrow, origin | dict.fromkeys(narrow, "interpolated")
    rest = [path for path in like if path not in params]
    params |= _init(definition, rest, places, key)
    origin |= dict.fromkeys(rest, "new")
    return Started(unflatten_dict(params), {"/".join(map(str, path)): origin[path] for path in like})


def _init(definition: Definition, paths: Sequence[Path], places: Mapping[Path, Any], key: jax.Array) -> Flat:
    """Fresh parameters, these only: the compiler drops what is not returned, so nothing else is ever made."""

    def init(key: jax.Array) -> list[jax.Array]:
        params = flatten_dict(definition.init(key))
        return [params[path] for path in paths]

    arrays = jax.jit(init, out_shardings=[places[path] for path in paths])(key)
    return dict(zip(paths, arrays, strict=True))
