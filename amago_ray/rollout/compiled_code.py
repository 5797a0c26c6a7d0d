"""Programs of tensors that PyTorch's compiler has made into code, kept in files for all processes of a machine.

The numbers of weights are not in the code: it reads them where they lie.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from amago_ray.atomic_files import write_atomically
from amago_ray.nets.compiled_files import LOCKED_S, code_folder, processor

# Random numbers are drawn by PyTorch itself, the same ones as without a compiler; of weights, no number is in the code.
OPTIONS = {
    "fallback_random": True,
    "always_keep_tensor_constants": True,
    "aot_inductor.use_runtime_constant_folding": False,
}

Run = Callable[[list[Tensor]], list[Tensor]]


def compiled_code(program: ExportedProgram, given: list[Tensor], module: nn.Module) -> Run:
    """What the compiler has made of a program, now or earlier on, for the weights where they lie in `module`.

    given: what the program was traced with. The code does not look at the shapes and dtypes that it gets: they have to
    be those. Raises whatever the compiler does, and PermissionError for a folder that others may write into.
    """
    from filelock import FileLock

    _name_constants(program)
    weights: dict[str, Tensor] = {**program.constants}
    weights |= dict(module.named_parameters(remove_duplicate=False))
    weights |= dict(module.named_buffers(remove_duplicate=False))
    compiled = code_folder() / f"{_fingerprint(program, given, weights)}.pt2"
    with FileLock(compiled.with_suffix(".lock"), timeout=LOCKED_S):
        model = None
        if compiled.exists():
            with suppress(RuntimeError, OSError, ValueError):  # damaged
                model = _load(compiled)
        if model is None:
            compile_program(program, compiled)
            model = _load(compiled)
    held = {name: weights[name] for name in model.get_constant_fqns()}
    model.load_constants(held, check_full_update=True, user_managed=True)
    # A call of `model` itself would take apart what is a list already.
    return partial(_run, model.loader, held)


def _name_constants(program: ExportedProgram) -> None:
    """Make buffers of tensors that are plain attributes, or made by the code: the compiler keeps the names of those."""
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:
            spec.kind, spec.persistent = InputKind.BUFFER, False


def compile_program(program: ExportedProgram, out: Path) -> None:
    """Write the code into a file, which is whole or not there."""
    import torch._inductor as compiler

    aside = out.with_suffix(".unfinished")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    made = compiler.aoti_compile_and_package(
        program, package_path=str(aside / "step.pt2"), inductor_configs=dict(OPTIONS)
    )
    write_atomically(out, lambda partial: shutil.move(made, partial))
    shutil.rmtree(aside, ignore_errors=True)


def _load(compiled: Path) -> Any:
    """The loader unpacks the file into a folder of its own, which it leaves behind where a process is killed, and which
    it needs no longer than this takes."""
    import torch._inductor as compiler

    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory() as unpacked:
        os.environ["TMPDIR"] = unpacked
        try:
            return compiler.aoti_load_package(str(compiled), run_single_threaded=True)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def _run(loader: Any, held: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """held: the weights, which have to live as long as the code that reads them."""
    return loader.run(tensors)


def _fingerprint(program: ExportedProgram, given: list[Tensor], weights: Mapping[str, Tensor]) -> str:
    """Of all that compiled code depends on."""

    def layout(x: Tensor) -> tuple[Any, ...]:
        return x.dtype, tuple(x.shape), x.stride()

    layouts = [layout(x) for x in given], sorted((name, layout(x)) for name, x in weights.items())
    machine = platform.node(), torch.backends.cpu.get_cpu_capability(), processor(), torch.get_num_threads()
    graph = program.graph_module.print_readable(print_output=False)
    return hashlib.sha256(repr((torch.__version__, OPTIONS, machine, layouts, graph)).encode()).hexdigest()
