"""The language models of a worker, by the names that the configuration gives them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy import lm15
from dspy.utils.exceptions import LMError  # type: ignore[import-untyped]

from bridge.loop_thread import LoopThread
from bridge.protocol.errors import INVALID_REQUEST, LM_ERROR, BridgeError, closest, not_found
from bridge.worker.lm.errors import redact
from bridge.worker.lm.offline import MODEL, PREFIX, OfflineAsyncEngine, OfflineEngine, read_options
from bridge.worker.lm.provider import (
    DEFAULT_MAX_CONCURRENCY,
    DEFAULT_TIMEOUT_S,
    Provider,
    ProviderAsyncEngine,
    ProviderEngine,
    Route,
)
from bridge.worker.lm.rollout import RolloutLM

DEFAULT_NAME = "default"
_KEYS = frozenset({"model", "api_key", "api_base", "params", "timeout_s", "max_concurrency"})


class LanguageModels:
    """Builds each language model once, when it is first asked for. Thread-safe.

    specs: name -> {model, api_key, api_base, params, timeout_s, max_concurrency}; only `model` is required. An
    offline model ignores all but `model` and `params`, so that a configuration can switch to it and back.
    """

    def __init__(self, specs: Mapping[str, Mapping[str, Any]]) -> None:
        self._specs = {name: dict(spec) for name, spec in specs.items()}
        self._lock = threading.Lock()
        self._built: dict[str, dspy.LM] = {}
        self._providers: list[Provider] = []
        self._loop = LoopThread("lm-io")

    def get(self, name: str = "") -> dspy.LM:
        """Return the model of that name, "" is "default".

        Raises BridgeError: NOT_FOUND for an unknown name, INVALID_REQUEST for a wrong entry, LM_ERROR for a model
        that DSPy cannot reach.
        """
        name = name or DEFAULT_NAME
        found = self._built.get(name)
        if found is not None:
            return found
        if name not in self._specs:
            raise not_found("language model", name, self._specs, advice="language models are configured under `lms`")
        with self._lock:
            if name not in self._built:
                self._built[name] = self._build(name, self._specs[name])
            return self._built[name]

    def names(self) -> list[str]:
        """Return the configured names, sorted."""
        return sorted(self._specs)

    def close(self) -> None:
        """Close every connection and end the I/O thread. Idempotent."""
        with self._lock:
            providers, self._providers = self._providers, []
        for provider in providers:
            provider.close()
        self._loop.close()

    def _build(self, name: str, spec: Mapping[str, Any]) -> dspy.LM:
        _check_keys(name, spec)
        model, params = str(spec["model"]), dict(spec.get("params") or {})
        try:
            if model.startswith(PREFIX):
                options = read_options(model)
                return self._lm(MODEL, OfflineEngine(options), OfflineAsyncEngine(options), params)
            provider = Provider(_route(model, spec), self._loop)
            lm = self._lm(model, ProviderEngine(provider), ProviderAsyncEngine(provider), params)
        except BridgeError as exc:
            raise BridgeError(exc.code, f"lms.{name}: {exc.message}", details={"path": f"lms.{name}.model"}) from None
        except (ValueError, TypeError) as exc:
            text = f"lms.{name} is not usable: {redact(str(exc), _secrets(spec))}"
            raise BridgeError(INVALID_REQUEST, text, details={"path": f"lms.{name}"}) from None
        except (LMError, lm15.LM15Error) as exc:
            text = f"lms.{name}: {model} cannot be reached: {redact(str(exc), _secrets(spec))}"
            details = {
                "type": type(exc).__name__,
                "provider": model.partition("/")[0],
                "status": None,
                "path": f"lms.{name}.model",
            }
            raise BridgeError(LM_ERROR, text, details=details) from None
        self._providers.append(provider)
        return lm

    def _lm(self, model: str, engine: Any, async_engine: Any, params: Mapping[str, Any]) -> dspy.LM:
        return RolloutLM(
            model,
            engine=engine,
            async_engine=async_engine,
            num_retries=0,
            cache=False,
            **params,
        )


def _check_keys(name: str, spec: Mapping[str, Any]) -> None:
    for key in spec:
        if key not in _KEYS:
            hint = "".join(f"; did you mean {known!r}?" for known in closest(key, _KEYS)[:1])
            text = f"lms.{name} has no key {key!r}{hint} (keys: {', '.join(sorted(_KEYS))})"
            raise BridgeError(INVALID_REQUEST, text, details={"path": f"lms.{name}.{key}"})
    if not spec.get("model") or not isinstance(spec["model"], str):
        text = f"lms.{name}.model must name a model, like 'openai/gpt-4o-mini' or 'offline/knn'"
        raise BridgeError(INVALID_REQUEST, text, details={"path": f"lms.{name}.model"})


def _route(model: str, spec: Mapping[str, Any]) -> Route:
    return Route(
        model=model,
        api_key=spec.get("api_key") or None,
        api_base=spec.get("api_base") or None,
        timeout_s=float(spec.get("timeout_s") or DEFAULT_TIMEOUT_S),
        max_concurrency=int(spec.get("max_concurrency") or DEFAULT_MAX_CONCURRENCY),
    )


def _secrets(spec: Mapping[str, Any]) -> list[str]:
    return [str(spec["api_key"])] if spec.get("api_key") else []
