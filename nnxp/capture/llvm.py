"""LLVM: machine code of kernels, made by llvmlite (the extra ``fast``), and its cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from nnxp.capture.llvm_kernels import Kernel
from nnxp.capture.llvm_ops import POINTER, SIZE, emit_loop
from nnxp.capture.ops import Buffer, address
from nnxp.files import write_atomically


class Function:
    """A compiled function of kernels.

    Parameters
    ----------
    kernels : sequence of Kernel
    code : bytes
        The object file.
    addresses : list of int
        The table that the function reads its pointers from.
    """

    def __init__(self, kernels: Sequence[Kernel], code: bytes, addresses: list[int]) -> None:
        self._arrays = [x for kernel in kernels for x in kernel.arrays]
        self._table = np.array([max(x, 0) for x in addresses], np.uintp)
        name = next(_names)
        library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol("run")
        for kernel in kernels:
            for function, place in kernel.functions.items():
                library.import_symbol(function, place)
        self._tracker = library.link(_compiler()[0], f"nnxp{name}")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._run = kind(self._tracker["run"])
        self._place = ctypes.c_void_p(self._table.ctypes.data)
        self._examples: tuple[Buffer, ...] | None = None

    def place(self, examples: tuple[Buffer, ...]) -> None:
        """Set the examples that each `GatherKernel` reads."""
        if self._examples is not examples:
            self._table[: len(examples)] = [address(x) for x in examples]
            self._examples = examples  # kept alive

    def __call__(self, times: int = 1) -> None:
        """Run the kernels `times` times."""
        self._run(self._place, times)


_names = itertools.count()


Section: TypeAlias = tuple[int, Sequence[Kernel]]
"""Kernels to run in order, and how many times to do so."""


def compile_kernels(*sections: Section) -> Function:
    """Return a function that runs the kernels of all sections in order."""
    kernels = [kernel for _, each in sections for kernel in each]
    used = dict.fromkeys(x for kernel in kernels for x in kernel.addresses)
    examples = sorted((x for x in used if x < 0), reverse=True)
    addresses = [*examples, *(x for x in used if x >= 0)]
    return Function(kernels, _object_code(_module(sections, addresses)), addresses)


def _module(sections: Sequence[Section], addresses: list[int]) -> str:
    """Return the intermediate representation of a function that runs the kernels."""
    module = ir.Module()
    nothing = ir.VoidType()
    run = ir.Function(module, ir.FunctionType(nothing, [POINTER, SIZE]), "run")
    builder = ir.IRBuilder(run.append_basic_block())
    pointers = {}
    for i, each in enumerate(addresses):
        place = builder.gep(run.args[0], [SIZE(i)], source_etype=POINTER)
        pointers[each] = builder.load(place, typ=POINTER)
    known: dict[tuple[object, ...], ir.Function] = {}

    def function_of(kernel: Kernel) -> ir.Function:
        form = kernel.form() or (id(kernel),)
        if form not in known:
            known[form] = _add_function(module, f"kernel{len(known)}", kernel)
        return known[form]

    functions = [[(function_of(x), x) for x in kernels] for _, kernels in sections]

    def call_all(_: ir.Value, __: None) -> None:
        for (times, _), calls in zip(sections, functions, strict=True):

            def call_each(_: ir.Value, __: None, calls: Any = calls) -> None:
                for function, kernel in calls:
                    builder.call(function, [pointers[x] for x in kernel.addresses])

            emit_loop(builder, times, call_each)

    emit_loop(builder, run.args[1], call_all)
    builder.ret_void()
    return str(module)


def _add_function(module: ir.Module, name: str, kernel: Kernel) -> ir.Function:
    """Add a function that runs a kernel, given a pointer for each of its addresses."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER] * len(kernel.addresses))
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for argument in function.args:
        # No two overlap unless both are only read.
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block())
    kernel.emit(builder, dict(zip(kernel.addresses, function.args, strict=True)))
    builder.ret_void()
    return function


_MAX_CACHED = 500  # files, of 10 to 100 kB


@functools.cache
def _compiler() -> tuple[Any, Any]:
    """Return the linker and the target machine of this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True, reloc="pic"
    )
    return llvm.create_lljit_compiler(machine), machine


def _object_code(text: str) -> bytes:
    """Return the machine code, from the user's cache if it was compiled before."""
    machine = _compiler()[1]
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    key = repr((text, llvm.llvm_version_info, processor))
    path = _cache_folder()
    if path is not None:
        path /= hashlib.sha256(key.encode()).hexdigest() + ".o"
        code = _read(path)
        if code is not None:
            return code
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.loop_interleaving = True
    tuning.loop_unrolling = False  # it takes ten times as long to compile, and gains nothing
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    code = cast(bytes, machine.emit_object(module))
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            oldest = sorted(path.parent.glob("*.o"), key=lambda x: x.stat().st_mtime)
            for each in oldest[: -_MAX_CACHED + 1]:
                each.unlink(missing_ok=True)
            write_atomically(path, hashlib.sha256(code).digest() + code)
        except OSError:  # a full or read-only disk; it is compiled again next time
            pass
    return code


def _read(path: Path) -> bytes | None:
    """Return cached code; None if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[32:]
    return code if hashlib.sha256(code).digest() == data[:32] else None


def _cache_folder() -> Path | None:
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("nnxp", appauthor=False) / "compiled"
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None
