"""A trained model back from its directory, ready to act: nothing else is needed."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from wam_jax.nn.lora import Lora, with_lora
from wam_jax.nn.module import Definition, by_path, define, paths
from wam_jax.objectives.hidden_alignment import AlignedModel, AlignmentConfig
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sharding import param_shardings, placed, replicated
from wam_jax.training.run import open_run
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import make_spec


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model from a run directory.

    Attributes:
      policy, params: what acts (``params.model`` is the moving average).
      mesh: where its parameters live.
      step: of the checkpoint.
      meta: the checkpoint's JSON part.
    """

    policy: Policy
    params: PolicyParams
    mesh: Mesh
    step: int
    meta: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Rows of the pictures that it sees."""
        return self.meta["identity"]["tokenizer"]["image_size"][0]

    def untrained(self) -> PolicyParams:
        """Parameters of the same policy at its random start, for a baseline."""
        definition = self.policy.definition
        shardings = param_shardings(self.mesh, definition.axes(), definition.shapes())
        init = jax.jit(definition.init, out_shardings=shardings)
        return dataclasses.replace(self.params, model=init(jax.random.key(self.meta["identity"]["seed"])))


def fingerprint(trained: Trained) -> str:
    """Changes when a run is trained anew in another way, or longer."""
    told = json.dumps([trained.meta["identity"], trained.step], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def define_model(identity: dict[str, Any], training: bool = False) -> Definition[WorldActionModel]:
    """The definition of the model that a checkpoint's ``identity`` describes; ``training``: with what is dropped."""
    spec = make_spec(identity["model"]["name"], identity["model"]["size"], **identity["model"]["options"])
    sizes = identity["interface"]
    interface = Interface(
        **{**sizes, "latent_shape": tuple(sizes["latent_shape"]), "frame_steps": tuple(sizes["frame_steps"])}
    )
    aligned = identity.get("alignment") if training else None
    if aligned:
        alignment = AlignmentConfig(**{**aligned, "layers": tuple(aligned["layers"])})
        definition: Definition[WorldActionModel] = define(lambda rngs: AlignedModel(spec, interface, alignment, rngs))
    else:
        definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    lora = identity.get("lora")
    return with_lora(definition, Lora(**lora)) if lora else definition


def load_trained(directory: Path, mesh: Mesh) -> Trained:
    """The newest checkpoint of a run, or an exported folder.

    Raises:
      CheckpointError: if there is none.
    """
    run = open_run(directory)
    definition = define_model({**run.identity, "lora": None})
    shardings, dtypes = paths(param_shardings(mesh, definition.axes(), definition.shapes())), run.dtypes()
    like = {path: placed(x, shardings[path], dtypes[path]) for path, x in paths(definition.shapes()).items()}
    tokenizer = jax.device_put(run.tokenizer(), replicated(mesh))
    params = PolicyParams(model=run.load(by_path(like)), tokenizer=tokenizer)
    return Trained(
        Policy(definition=definition, codec=run.codec, proprio=run.proprio), params, mesh, run.step, run.meta
    )
