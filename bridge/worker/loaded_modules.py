"""The project's modules in memory: which source each was made of, and how they make room for another version.

A module that was made of another source than is wanted, or that uses such a one, is made anew; what is not touched by
the change stays. The modules of before live on for the programs that were made of them, but are not found by name any
more: what those import while they run, and had not imported before, they get of the version that was loaded last.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

from bridge.worker import sources
from bridge.worker.sources import Source, Sources

Identity = tuple[str, str]

_known: Final[weakref.WeakKeyDictionary[ModuleType, Identity]] = weakref.WeakKeyDictionary()
# Of modules that a program may import later, while it runs: the sources that they were among when it was loaded.
_expected: Final[dict[str, Sources]] = {}


def note() -> None:
    """Remember what the project's modules that are in memory are made of. To be called right after they were imported.

    What is not noted is taken to be made of the source that is there when a program is first loaded that needs it.
    """
    _note(sources.in_memory())


def bring(wanted: Sources) -> ModuleType:
    """Return the module that a target is in, made of these sources. One at a time. Raises whatever its code raises.

    If that fails, all modules that were there before are there again.
    """
    if not wanted.is_kept or not wanted.modules:
        return importlib.import_module(wanted.root)
    root = wanted.root or _name_of_file(wanted)
    if not wanted.root and root in sys.modules:
        return sys.modules[root]
    stale = {name for name, module in _present(wanted) if _is_stale(wanted, name, module)}
    if stale and wanted.root:
        stale.add(root)
    elif root in sys.modules:
        return sys.modules[root]
    concerned = {*wanted.modules, root} - {""}
    concerned |= {above for name in concerned for above in _packages_of(name)}
    before = {name: sys.modules.get(name) for name in concerned}
    _displace(stale)
    finder = _Finder(wanted, root)
    folder = "" if wanted.root else os.path.dirname(wanted.modules[""].file)
    sys.meta_path.insert(0, finder)
    if folder:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(root)
    except BaseException:
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
        raise
    finally:
        sys.meta_path.remove(finder)
        if folder in sys.path:
            sys.path.remove(folder)
    _expected.update({name: wanted for name in wanted.modules if name and name not in sys.modules})
    return module


def _name_of_file(wanted: Sources) -> str:
    """Return the name of the module of a file: of its own for each path and content, also of what it needs."""
    path = wanted.modules[""].file.encode("utf-8", "surrogateescape")
    return f"dspool_file_{hashlib.sha256(path + wanted.sha256.encode()).hexdigest()[:16]}"


def _note(found: Sources) -> None:
    for name, module in _present(found):
        _known[module] = found.identity(name)


def _present(wanted: Sources) -> Iterator[tuple[str, ModuleType]]:
    """Yield those of the modules that are in memory and the project's: others are not to be touched."""
    for name in wanted.modules:
        module = sys.modules.get(name) if name else None
        file = getattr(module, "__file__", None)
        if isinstance(module, ModuleType) and isinstance(file, str) and not sources.is_installed(file):
            yield name, module


def _is_stale(wanted: Sources, name: str, module: ModuleType) -> bool:
    """Tell whether a module is made of another source; one that is seen for the first time is not."""
    identity = wanted.identity(name)
    known = _known.get(module)
    if known is None:
        known = _expected.pop(name, wanted).identity(name)
        if known == identity:
            _known[module] = identity
    return known != identity


def _displace(stale: Iterable[str]) -> None:
    """Take modules out of memory's names, and out of the packages that they are in.

    A package that stays is replaced by a copy first, so that what holds it goes on to find its old modules in it.
    """
    gone = {name: sys.modules.pop(name) for name in sorted(stale) if name in sys.modules}
    copies: dict[str, ModuleType] = {}
    for name in gone:
        for above in _packages_of(name):
            package = sys.modules.get(above)
            if above not in gone and above not in copies and type(package) is ModuleType:
                copies[above] = sys.modules[above] = _copied(package)
    for name, copy in copies.items():
        parent, _, own = name.rpartition(".")
        if parent in copies:
            setattr(copies[parent], own, copy)
    for name, module in gone.items():
        parent, _, own = name.rpartition(".")
        if parent in copies and vars(copies[parent]).get(own) is module:
            delattr(copies[parent], own)


def _packages_of(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _copied(package: ModuleType) -> ModuleType:
    copy = ModuleType(package.__name__)
    vars(copy).update(vars(package))
    if package in _known:
        _known[copy] = _known[package]
    return copy


class _Finder(MetaPathFinder):
    """Finds the modules of some sources in memory."""

    def __init__(self, wanted: Sources, root: str) -> None:
        self._wanted = wanted
        self._root = root

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of theirs."""
        known = "" if name == self._root and not self._wanted.root else name
        source = self._wanted.modules.get(known) if name else None
        if source is None:
            return None
        loader = _Loader(name, source, self._wanted.identity(known))
        folders = [os.path.dirname(source.file)] if source.is_package else None
        return importlib.util.spec_from_file_location(
            name, source.file, loader=loader, submodule_search_locations=folders
        )


class _Loader(SourceFileLoader):
    """Makes a module of a text in memory; compiled files, which go by time and size alone, are not looked at."""

    def __init__(self, name: str, source: Source, identity: Identity) -> None:
        super().__init__(name, source.file)
        self._text = source.text
        self._identity = identity

    def get_code(self, fullname: str) -> CodeType:
        """Compile the text."""
        code: CodeType = self.source_to_code(self._text, self.path)
        return code

    def get_source(self, fullname: str) -> str:
        """Return the text."""
        return importlib.util.decode_source(self._text)

    def exec_module(self, module: ModuleType) -> None:
        """Run the text; of a package that is made anew, the modules that stay are there before."""
        prefix = f"{module.__name__}."
        for name, one in list(sys.modules.items()):
            if name.startswith(prefix) and "." not in (own := name.removeprefix(prefix)):
                setattr(module, own, one)
        super().exec_module(module)
        _known[module] = self._identity
