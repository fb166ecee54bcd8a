"""A trained policy back from its directory, post-trained or not, ready to act."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.transforms import ActionCodec
from wam_jax.nn.module import Definition, Params
from wam_jax.posttraining.adapters import AdapterConfig, Adapters, define_adapters
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.corrected import CorrectedParams, CorrectedPolicy, CorrectedRemotePolicy
from wam_jax.posttraining.eyes import present_size
from wam_jax.posttraining.residual import ResidualConfig, ResidualPolicy, define_residual
from wam_jax.serving.remote import RemotePolicy, is_address, load_remote
from wam_jax.sharding import placed, replicated
from wam_jax.training.checkpoint import CheckpointError, Checkpoints
from wam_jax.training.restore import Trained, fingerprint, load_trained

ADAPTERS = "adapters"  # folder of a post-trained run


def define_correction(
    identity: dict[str, Any], base: Trained
) -> tuple[CorrectedPolicy, Definition[Adapters], Definition[ResidualPolicy]]:
    """The policy that a run's ``identity["correction"]`` describes, and the definitions of what corrects it."""
    chunks = ActionCodec.from_dict(identity["chunks"])
    adapters, view = _adapters(identity), ChunkView.from_dict(identity["view"])
    told = base.meta["identity"]["interface"]
    config = ResidualConfig(**_with_tuples(identity["residual"]))
    remote = isinstance(base.policy, RemotePolicy)
    residual = define_residual(
        config,
        identity["adapters"]["size"],
        told["cameras"],
        told["proprio_size"],
        config.bounds(chunks),
        None if remote else present_size(base.policy.definition.bind(base.policy.definition.shapes())),
    )
    shared = {field.name: getattr(base.policy, field.name) for field in dataclasses.fields(base.policy)}
    kind = CorrectedRemotePolicy if remote else CorrectedPolicy
    return kind(**shared, adapters=adapters, residual=residual, chunks=chunks, view=view), adapters, residual


def _adapters(identity: dict[str, Any]) -> Definition[Adapters]:
    codec = identity["chunks"]
    sizes = AdapterConfig(**_with_tuples(identity["adapters"]))
    return define_adapters(sizes, identity["channels"], codec["block"], len(codec["cumulative"]))


def _with_tuples(saved: dict[str, Any]) -> dict[str, Any]:
    """A config's fields, which JSON gave back as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}


def load_params(directory: Path, definition: Definition, mesh: Mesh) -> Params:
    """What acts of a run's newest checkpoint, on every device."""
    checkpoints = Checkpoints(directory / "checkpoints")
    like = jax.tree.map(lambda x: placed(x, replicated(mesh)), definition.shapes())
    found = checkpoints.load_acting(like)
    checkpoints.close()
    return found


def load_base(name: str | Path, mesh: Mesh) -> Trained:
    """The policy of a run, or at an address (``ws://HOST:PORT``).

    Raises:
      CheckpointError, RemoteError: there is none.
    """
    return load_remote(str(name), mesh) if is_address(name) else load_trained(Path(name), mesh)


def load_policy(name: str | Path, mesh: Mesh) -> Trained:
    """As ``load_base``; of a residual's run, the policy that it corrects with it.

    Raises:
      CheckpointError, RemoteError: there is none, or the policy that it corrects is not where it was.
    """
    directory = Path(name)
    meta = None if is_address(name) else _meta(directory)
    if meta is None or "correction" not in meta["identity"]:
        return load_base(name, mesh)
    identity, step = meta["identity"]["correction"], meta["step"]
    path = identity["base"]
    if not is_address(path) and not Path(path).exists():
        raise CheckpointError(f"{directory} corrects the policy of {path}, which is not here; put it back")
    base = load_base(path, mesh)
    if fingerprint(base) != identity["base_fingerprint"]:
        raise CheckpointError(f"{directory} corrects another policy than {path} now is; train it anew")
    # The best of a run is kept within it, the adapters beside both.
    adapters_folder = next((d / ADAPTERS for d in (directory, directory.parent) if (d / ADAPTERS).is_dir()), None)
    if adapters_folder is None:
        raise CheckpointError(f"{directory} has no adapters beside it; post-train it anew")
    policy, adapters, residual = define_correction(identity, base)
    params = CorrectedParams(
        model=base.params.model,
        tokenizer=base.params.tokenizer,
        adapters=load_params(adapters_folder, adapters, mesh),
        residual=load_params(directory, residual, mesh),
    )
    own = {name: meta["identity"].get(name) for name in ("correction", "posttrain", "seed")}
    interface = {**base.meta["identity"]["interface"], "action_horizon": policy.chunks.block_steps}
    described = {**base.meta["identity"], "interface": interface, "corrected": own}
    return dataclasses.replace(base, policy=policy, params=params, step=step, meta={**base.meta, "identity": described})


def _meta(directory: Path) -> dict[str, Any] | None:
    """Of the newest checkpoint; None where there is none."""
    if not (directory / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(directory / "checkpoints")
    found = None if checkpoints.latest is None else {**checkpoints.meta(), "step": checkpoints.latest}
    checkpoints.close()
    return found
