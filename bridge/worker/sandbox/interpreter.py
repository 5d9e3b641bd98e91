"""DSPy's interpreter, made so that it ends with the call that it works for."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from dspy.primitives.code_interpreter import CodeInterpreterError  # type: ignore[import-untyped]
from dspy.primitives.python_interpreter import PythonInterpreter  # type: ignore[import-untyped]

from bridge.worker.call import Call, current_call
from bridge.worker.sandbox import deno

_OWNER: Final = "this program"
# Instead of the one module that DSPy's runner takes from deno.land: npm is the only server that a first start needs.
_IMPORTS: Final = Path(__file__).with_name("imports.json")
_ERROR_CHARS: Final = 500


class Interpreter(PythonInterpreter):  # type: ignore[misc]
    """One Deno process with one Pyodide in it: for one call of one module, which makes it and shuts it down.

    Generated code in it has no file, no network, no variable of the environment and no process; it reaches what is
    outside by the tools that its module gives it. It is killed when the call is cancelled or out of time.
    Raises BridgeError(SANDBOX_MISSING) where there is no Deno, or where it cannot load Pyodide.
    """

    def __init__(self) -> None:
        deno.require(_OWNER)
        self._forget: Callable[[], None] = lambda: None
        self._timer: threading.Timer | None = None
        super().__init__()
        self.deno_command.insert(2, f"--import-map={_IMPORTS}")

    @staticmethod
    def _get_deno_dir(deno_executable: str = "deno") -> str:
        return deno.cache_folder()

    def _spawn_process(self) -> None:
        call = current_call.get()
        if call is not None:
            call.step()
        process = subprocess.Popen(
            self.deno_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", env=deno.environment(),
        )  # fmt: skip
        self.deno_process = process
        if call is not None:
            self._end_with(call)
        try:
            self._health_check()
        except CodeInterpreterError as exc:
            _check(call)
            told = f"{exc} {process.stderr.read() if process.stderr else ''}"
            why = f"Deno is there, but it does not start Pyodide ({told[-_ERROR_CHARS:].strip()})"
            fetched = f"the first start fetches it from npm into {deno.cache_folder()}"
            raise deno.missing(_OWNER, f"{why}; {fetched}") from exc

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run code. Raises CallStopped when the call ends meanwhile, else what DSPy's interpreter raises."""
        call = current_call.get()
        if call is not None:
            call.step()
        try:
            return super().execute(code, variables)
        except CodeInterpreterError:
            _check(call)
            raise

    def shutdown(self) -> None:
        """Kill the process: it has nothing to keep, and generated code might not let it end. Idempotent."""
        process: Any = self.deno_process
        self._forget()
        if self._timer is not None:
            self._timer.cancel()
        if process is not None:
            process.kill()
            process.wait()
        super().shutdown()
        if process is not None:
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):  # what was not written yet has no reader any more
                    pipe.close()

    def _end_with(self, call: Call) -> None:
        self._forget = call.on_stop(self._kill)
        remaining_s = call.remaining_s()
        if remaining_s is not None and remaining_s <= threading.TIMEOUT_MAX:
            self._timer = threading.Timer(remaining_s, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def _kill(self) -> None:
        process = self.deno_process
        if process is not None:
            process.kill()


def _check(call: Call | None) -> None:
    """Tell what ended a sandbox, if it was the end of its call."""
    if call is not None:
        call.check()
