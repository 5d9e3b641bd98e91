"""The sandbox for code that a language model writes: Pyodide (Python in WebAssembly) in Deno, as DSPy runs it.

| module | needs |
|---|---|
| ProgramOfThought, CodeAct, RLM | Deno 2 |

Nothing here runs code in the worker itself, nor in a plain Python process: without the sandbox these modules refuse.
"""

from bridge.worker.sandbox.deno import ADVICE, NEEDED, require
from bridge.worker.sandbox.interpreter import Interpreter

__all__ = ["ADVICE", "NEEDED", "Interpreter", "require"]
