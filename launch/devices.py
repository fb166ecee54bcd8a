"""Which devices a command runs on. Must be called before anything touches a JAX array."""

import os
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wam_jax import console, processes
from wam_jax.sharding import make_mesh

_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


class DeviceError(RuntimeError):
    """The accelerator that was asked for is not there."""


def cache_directory() -> Path:
    """Where compiled programs are kept between runs: $WAM_CACHE, or ~/.cache/wam_jax."""
    return Path(os.environ.get("WAM_CACHE", Path.home() / ".cache" / "wam_jax"))


def start(config: ConfigDict, several: bool = False) -> Mesh:
    """Picks the platform, turns on the compile cache, and builds the mesh.

    ``several``: the command can be one of ``config.distributed`` processes.

    Raises:
      DeviceError: if ``config.platform`` names an accelerator that JAX does not find (it never falls back to the CPU in
        silence), or the other processes are not found.
    """
    if config.distributed and not several:
        raise DeviceError("config.distributed=True, but of all commands only `wam train` runs in several processes")
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    devices = _devices(config.platform, config.cpu_devices, config.distributed)
    mesh = make_mesh(config.mesh.to_dict(), devices)
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    hosts = f" of {jax.process_count()} processes" if config.distributed else ""
    console.log(f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){hosts}, mesh: {shape}")
    return mesh


def _devices(platform: str, cpu_devices: int, distributed: bool) -> list[jax.Device]:
    if platform not in ("auto", *_PLATFORMS):
        raise DeviceError(f"platform {platform!r} is unknown (has: auto, {', '.join(_PLATFORMS)}); set config.platform")
    if cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if distributed:
        try:
            processes.join()
        except RuntimeError as error:
            raise DeviceError(str(error)) from error
    if platform == "auto":
        return jax.devices()
    try:
        if platform == "cpu":
            jax.config.update("jax_platforms", "cpu")
        return jax.devices(_PLATFORMS[platform])
    except RuntimeError as error:
        extra = {"gpu": "cuda", "tpu": "tpu"}[platform]
        raise DeviceError(
            f"config.platform={platform} but JAX finds only: {', '.join(sorted({d.platform for d in jax.devices()}))}; "
            f"install it with: pip install -e '.[{extra}]', or set --config.platform=auto"
        ) from error
