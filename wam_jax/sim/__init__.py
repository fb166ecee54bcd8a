"""The tabletop simulator, in MJX."""

import contextlib
import io

# It prints that NVIDIA's warp is absent, which nothing but impl="warp" needs (`Tabletop` says so).
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx as mjx
