"""Read a converted model back: the skeleton from its source, then the saved weights and layers."""

from __future__ import annotations

from quantasr.artifact import Artifact
from quantasr.engines.torch_native.backends import find_backend
from quantasr.engines.torch_native.convert import install
from quantasr.engines.torch_native.engine import NativeEngine
from quantasr.engines.torch_native.folder import Skeleton, read, read_plan, restore
from quantasr.engines.torch_native.half import compute_in
from quantasr.errors import ArtifactError
from quantasr.quantize.fold import bake_parametrizations
from quantasr.sources import rebuild_model


def reload(artifact: Artifact, threads: int = 0, *, trust: bool = False) -> NativeEngine:
    """The engine of a native artifact; see :func:`quantasr.engines.torch_native.load`."""
    row, tensors = read(artifact.folder)
    backend = find_backend(str(row.get("backend")))
    model = rebuild_model(str(row.get("source")), artifact.folder, trust=trust)
    model.make_exportable()
    bake_parametrizations(model.module)
    try:
        plan = read_plan(row, backend)
        skeleton = Skeleton(str(row["source"]), list(map(str, row["folded"])), list(map(str, row["halves"])))
        weights = restore(model.module, skeleton, tensors, plan)
        compute_in(model.module, model.graph, artifact.compute)
        install(model.module, plan, weights)
    except ArtifactError as error:
        raise ArtifactError(f"{artifact.folder}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{artifact.folder}: its layers do not fit its model: {error}: make it again") from None
    model.module.eval().requires_grad_(False)
    return NativeEngine(model, backend.name, artifact.compute, threads)
