"""Where Deno is, whether it will do, and what it is told of this process: nearly nothing."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dspy.primitives.python_interpreter import (  # type: ignore[import-untyped]
    MAX_DENO_VERSION,
    MIN_DENO_VERSION,
    _find_deno_executable,
)

from bridge.protocol.errors import SANDBOX_MISSING, BridgeError

# Which modules run code that a language model writes, and what they need for it.
NEEDED: Final[Mapping[str, str]] = {"dspy.ProgramOfThought": "deno", "dspy.CodeAct": "deno", "dspy.RLM": "deno"}
ADVICE: Final = (
    "install it where the workers run: `pip install 'dspool[sandbox]'` (or Deno 2 on their PATH), then restart them"
)
# What Deno needs to find its cache, and to fetch Pyodide from npm for its first start. A key of the worker's is not
# among them: Deno would hand none to the code it runs, but it need not have any.
_ENVIRONMENT: Final = frozenset(
    {"PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "DENO_DIR", "DENO_CERT", "DENO_TLS_CA_STORE", "SSL_CERT_FILE",
     "NPM_CONFIG_REGISTRY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
)  # fmt: skip
_VERSION_S: Final = 10.0


def require(owner: str) -> str:
    """Return the path of Deno's binary. Raises BridgeError(SANDBOX_MISSING), which says that `owner` needs it."""
    found: str | None = shutil.which(_find_deno_executable())
    if found is None:
        raise _missing(owner, "and there is none here")
    file = os.stat(found)
    version = _version(found, file.st_ino, file.st_size)
    if version is None or not MIN_DENO_VERSION <= version < MAX_DENO_VERSION:
        told = "a Deno that does not tell its version" if version is None else f"Deno {'.'.join(map(str, version))}"
        raise _missing(owner, f"and {found} is {told}; it takes Deno 2")
    return found


def environment() -> dict[str, str]:
    """Return the environment that Deno gets."""
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return {
        **kept,
        "DENO_DIR": cache_folder(),
        "DENO_NO_PACKAGE_JSON": "1",
        "DENO_NO_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
    }


def cache_folder() -> str:
    """Return the folder where Deno keeps what it has fetched."""
    if given := os.environ.get("DENO_DIR"):
        return given
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deno")


def missing(owner: str, why: str) -> BridgeError:
    """Return the SANDBOX_MISSING for a sandbox that does not start. owner: who needs it, for the message."""
    details = {"sandbox": "deno", "module": owner if owner in NEEDED else ""}
    return BridgeError(SANDBOX_MISSING, f"{owner} runs generated code in a sandbox: {why}", details=details)


def _missing(owner: str, why: str) -> BridgeError:
    return missing(owner, f"it needs Deno, {why}; {ADVICE}")


@functools.lru_cache(maxsize=8)
def _version(path: str, inode: int, size: int) -> tuple[int, ...] | None:
    """Return the version of a binary. inode, size: the file's; another one in its place is asked again."""
    try:
        told = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=False, env=environment(), timeout=_VERSION_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"deno (\d+)\.(\d+)\.(\d+)", told.stdout)
    return tuple(map(int, match.groups())) if match else None
