"""Equal programs are compiled once in a process, whichever functions they come from.

Most of the time of a test goes to compiling, and tests that run a command line, a page or a
training compile what others compiled before, from functions that were made anew. JAX looks a
program up by its function; here it is looked up by its text.
"""

import inspect
import threading

import jax
from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.lib.mlir import passmanager

NUMBER = 512  # of programs at most, those used last, so that a long run does not fill the memory
ARGUMENTS = ["backend", "module", "executable_devices", "options", "host_callbacks"]


def share():
    """Lets JAX take an equal program that was compiled before, in versions that compile alike."""
    if jax.__version_info__ < (0, 9):
        return  # a program that runs several times at once on a CPU gives other numbers there
    compile_program = getattr(compiler, "backend_compile_and_load", None)
    if compile_program is None or [*inspect.signature(compile_program).parameters] != ARGUMENTS:
        return
    programs = {}

    def compile_once(backend, module, executable_devices, options, host_callbacks):
        arguments = backend, module, executable_devices, options, host_callbacks
        text = _text(module)
        if host_callbacks or "callback" in text:  # it has the address of a Python function
            return compile_program(*arguments)
        key = text, options.SerializeAsString(), tuple(executable_devices), backend
        program = programs.pop(key, None) or compile_program(*arguments)
        programs[key] = program
        if len(programs) > NUMBER:
            del programs[next(iter(programs))]
        return program

    compiler.backend_compile_and_load = compile_once
    mlir.make_ir_context = _contexts(mlir.make_ir_context)


def _contexts(make):
    """Lets programs be lowered in one context after another, which takes 3 ms of 17 to make."""
    local = threading.local()

    def context():
        left = getattr(local, "left", 0)
        if not left:  # a new one, as a context keeps all types and constants that it has seen
            local.context, left = make(), NUMBER
        local.left = left - 1
        return local.context

    return context


def _text(module):
    """The program without what it does not use, such as the numbers that JAX gives to checks."""
    with module.context:
        copy = module.operation.clone()
        passmanager.PassManager.parse("builtin.module(func.func(canonicalize))").run(copy)
    return str(copy)
