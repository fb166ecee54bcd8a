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
from typing import Literal

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from wam_jax.nn.module import Definition, Params
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Spec
from wam_jax.weights import mapping
from wam_jax.weights.interpolate import Path, check_interpolation, counterparts, interpolate_expert
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


class WanTransformer:
    """A Wan transformer as what a world action model starts from: its video expert, and by wish its action expert.

    Answers ``training.source.ParamSource``.

    Attributes:
      interpolated: paths of the actions' expert that are made from the video expert's weights (Fast-WAM).
    """

    def __init__(
        self,
        definition: Definition[WorldActionModel],
        checkpoint: Tensors,
        action: Literal["new", "interpolated"] = "new",
    ):
        """``checkpoint``: of the video expert's shape, with the names of diffusers or of Wan's repositories.

        Raises:
          ValueError: the action expert is to be interpolated and cannot be, or there is none.
        """
        shapes = definition.shapes()
        self._spec, self._flat, self._checkpoint = definition.bind(shapes).spec, flatten_dict(shapes), checkpoint
        table = flatten_dict(wan_map(self._spec, original="head.head.weight" in checkpoint.shapes()))
        self._table = {path: source for path, source in table.items() if path in self._flat}
        self.interpolated = self._narrow() if action == "interpolated" else ()

    def _narrow(self) -> tuple[Path, ...]:
        video, action = self._experts
        check_interpolation(self._flat, video, action)
        found = counterparts(self._flat, video, action)
        return tuple(path for path, wide in found.items() if wide in self._table)

    @property
    def _experts(self) -> tuple[str, str]:
        return self._spec.expert_of("video").name, self._spec.expert_of("action").name

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters that it gives, by path."""
        return {"/".join(path): self._flat[path].shape for path in (*self._table, *self.interpolated)}

    def load(self, like: Params) -> Params:
        """These parameters, laid out as ``like``.

        Raises:
          WeightsMismatch: the checkpoint's tensors are not those of the video expert.
        """
        flat = flatten_dict(like)
        video = unflatten_dict({path: flat[path] for path in self._table})
        params = flatten_dict(mapping.load(unflatten_dict(self._table), video, self._checkpoint))
        if self.interpolated:
            params |= interpolate_expert(params, {path: flat[path] for path in self.interpolated}, *self._experts)
        return unflatten_dict(params)
