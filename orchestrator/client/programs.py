"""The remote methods for deployed programs: their versions, their aliases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.client.calls import ProgramVersion, absolute_target
from orchestrator.client.remote import remote
from orchestrator.client.request import Call, check_name
from orchestrator.client.request import mapping as check_mapping
from orchestrator.errors import InvalidRequest


class ProgramsApi:
    """What can be asked of programs.

    A version of a program never changes; it is named by its number, or by an alias. A program is called by its name,
    which means its alias "live", as "qa@canary" by another alias, or as "qa@7" by the number of a version that has an
    alias. A call is of the version that its name meant when it was accepted, whatever is deployed while it runs.
    """

    @remote
    def deploy(
        self, name: str, target: str | Mapping[str, Any], *, pool: str = "general",
        state: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None, alias: str = "live",
        warm: bool = False, note: str = "", deadline_s: float | None = None,
    ) -> Call[ProgramVersion]:  # fmt: skip
        """Deploy a program under a name, loaded in a worker before this answers; return the version.

        target: "package.module:QA", "file.py:QA" (from this directory), or {"module": "dspy.Predict", "signature":
        "…"}, where a `Signature` class may stand for its text. state: what dspy's dump_state returned. alias: names
        the version from now on. warm: every ready worker of the pool has loaded it before that. What the alias names
        already is not deployed again. Raises RemoteError with the traceback if it does not load: then nothing has
        changed.
        """
        return deploy_call(
            name, target, pool, state, config, deadline_s, alias=check_name("alias", alias), warm=warm, note=note
        )

    @remote
    def programs(self) -> Call[list[dict[str, Any]]]:
        """Return the deployed programs, each as its live version is, with its `aliases` and how many `versions`."""
        return Call("programs.list")

    @remote
    def versions(self, name: str) -> Call[list[dict[str, Any]]]:
        """Return the versions of a program, the oldest first, each with its `aliases`. Raises NotFound."""
        return Call("programs.versions", _named(name))

    @remote
    def program_version(self, name: str, version: int | str = "live") -> Call[dict[str, Any]]:
        """Return a version whole, with its `state`; version: its number, or an alias. Raises NotFound."""
        return Call("programs.version", {**_named(name), "version": _check_version("version", version)})

    @remote
    def diff(self, name: str, a: int | str, b: int | str) -> Call[dict[str, Any]]:
        """Return what two versions of a program (numbers, or aliases) differ in; see docs/programs.md.

        `same` is true if in nothing. Else there are, where they differ: `instructions`, `fields`, `demos` by predictor,
        `predictors`, `target`, `config`, `pool`, `signature`, `inputs`, `outputs`, `source`.
        """
        return Call("programs.diff", {**_named(name), "a": _check_version("a", a), "b": _check_version("b", b)})

    @remote
    def alias(self, name: str, alias: str, version: int | str) -> Call[dict[str, Any]]:
        """Have an alias name a version (a number, or what another alias names).

        Returns {name, alias, version, previous}: previous is what it named before, None if it is new. Raises NotFound.
        """
        args = {**_named(name), "alias": check_name("alias", alias), "version": _check_version("version", version)}
        return Call("programs.alias", args)

    @remote
    def unalias(self, name: str, alias: str) -> Call[None]:
        """Remove an alias; "live" cannot be. Raises NotFound, InvalidRequest."""
        args = {**_named(name), "alias": check_name("alias", alias)}
        return Call("programs.unalias", args, read=lambda _: None)

    @remote
    def rollback(self, name: str, version: int | str | None = None) -> Call[dict[str, Any]]:
        """Have "live" name an earlier version: the one that it named before, or the one given.

        Returns {name, alias, version, previous}. Raises NotFound.
        """
        wanted = None if version is None else _check_version("version", version)
        return Call("programs.rollback", {**_named(name), "version": wanted})

    @remote
    def undeploy(self, name: str) -> Call[None]:
        """Remove a program with all its versions. What runs of it ends as it would. Raises NotFound."""
        return Call("programs.undeploy", _named(name), read=lambda _: None)


def deploy_call(
    name: str, target: Any, pool: str | None, state: Mapping[str, Any] | None, config: Mapping[str, Any] | None,
    deadline_s: float | None = None, **more: Any,
) -> Call[ProgramVersion]:  # fmt: skip
    """Return the call that deploys."""
    args = {
        "name": check_name("name", name),
        "target": absolute_target(dict(target) if isinstance(target, Mapping) else target),
        "pool": pool,
        "state": None if state is None else dict(check_mapping("state", state)),
        "config": None if config is None else dict(check_mapping("config", config)),
        **more,
    }
    return Call("programs.deploy", args, deadline_s=deadline_s, read=ProgramVersion.of)


def _named(name: str) -> dict[str, Any]:
    return {"name": check_name("name", name)}


def _check_version(path: str, version: Any) -> int | str:
    if isinstance(version, str) and version:
        return version
    if isinstance(version, int) and not isinstance(version, bool) and version > 0:
        return version
    raise InvalidRequest(f"{path} must be a version's number or an alias, got {version!r}", path=path)
