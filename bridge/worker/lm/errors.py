"""Errors of language models, as they travel; no credential travels with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dspy.utils.exceptions import LMConfigurationError, LMError, is_retryable_lm_error  # type: ignore[import-untyped]

from bridge.protocol.errors import LM_ERROR, BridgeError

_REDACTED = "[redacted]"
_ADVICE = re.compile(r"\n\n  (?:credential came from:|To fix:)")
# What looks like a credential although nobody told us: the usual prefixes, and authorization headers.
_CREDENTIAL = re.compile(
    r"\b(?:sk|pk|gsk|xai|key)-[A-Za-z0-9_\-]{8,}|\bAIza[A-Za-z0-9_\-]{20,}|(?<=Bearer )[^\s\"',}]{4,}"
)


def translate(exc: BaseException) -> BridgeError | None:
    """Return the error that a caller sees for an error of DSPy's LM layer, None if `exc` is none of those.

    The code is LM_ERROR; details hold `type`, `provider`, `status` and `retry_after_s` (each None if unknown).
    """
    if not isinstance(exc, LMError):
        return None
    model = exc.model or "the language model"
    # The engine's advice is for those who call it by themselves: keys in the environment, retries of one's own.
    message = _ADVICE.split(exc.message or "", maxsplit=1)[0].strip() or type(exc).__name__
    wrong = isinstance(exc, LMConfigurationError) or exc.status in (401, 403)
    advice = "; check its entry under `lms` in the configuration" if wrong else ""
    return BridgeError(
        LM_ERROR,
        redact(f"{model} failed: {message}{advice}"),
        retryable=is_retryable_lm_error(exc),
        details={
            "type": type(exc).__name__,
            # As configured: the engine's own name can be of one of several ways to speak to it ("openai-chat").
            "provider": (exc.model or "").rpartition("/")[0].partition("/")[0] or exc.provider or None,
            "status": exc.status,
            "retry_after_s": exc.retry_after,
        },
    )


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text without the secrets and without what looks like a credential."""
    for secret in secrets:
        text = text.replace(secret, _REDACTED)
    return _CREDENTIAL.sub(_REDACTED, text)


def redact_error(exc: BaseException, secrets: Iterable[str]) -> None:
    """Take the secrets out of an error, and out of those it was raised from, before anybody prints them."""
    secrets = tuple(secrets)
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        error.args = tuple(redact(arg, secrets) if isinstance(arg, str) else arg for arg in error.args)
        for name in ("message", "provider_code", "request_id"):
            text = getattr(error, name, None)
            if isinstance(text, str):
                setattr(error, name, redact(text, secrets))
        waiting += [error.__cause__, error.__context__]
