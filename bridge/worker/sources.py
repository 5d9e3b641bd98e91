"""The sources of a program: the file that its target is in, and the modules of the project that this needs.

They are found in the text of the import statements: nothing of them is run. What belongs to the project is what is not
installed: no standard library, no folder of installed packages, none of this distribution's own. Imports nothing but
the standard library, and what does so: zygotes do, before they import anything else.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import sys
import sysconfig
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridge.worker import plain_files

# Of the file of a target.
MAX_FILE_BYTES: Final = 16 << 20
# Of one program. What is beyond is not looked at.
MAX_FILES: Final = 2_000
# Sources that are kept with a version, in all and packed: every worker is told of them.
MAX_KEPT_BYTES: Final = 1 << 20
MAX_PACKED_BYTES: Final = 256 << 10

_FORMAT: Final = 1  # of packed sources
_TEXT: Final = "latin-1"  # a character for each byte, whatever its encoding

_OURS: Final = Path(__file__).resolve().parents[2]
_OUR_NAMES: Final = ("bridge", "orchestrator", "pools", "signatures")
_OUR_FOLDERS: Final = tuple(f"{_OURS / name}{os.sep}" for name in _OUR_NAMES)
_INSTALLED: Final = ("site-packages", "dist-packages")
_LIBRARY: Final = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})
_PARSED_TEXTS: Final = 4_096


class Source(NamedTuple):
    """The text of one module. name: "" for the file of a target that names a file. file: its absolute path."""

    name: str
    file: str
    is_package: bool
    text: bytes


class Sources:
    """The sources of one program, by the names of the modules.

    root: the module that the target is in, "" for a file's. is_kept: whether they travel with a version; those of
    installed packages do not. sha256: of all names and texts, wherever the files are.
    """

    def __init__(self, root: str, modules: Mapping[str, Source], *, is_kept: bool = True) -> None:
        self.root = root
        self.modules = dict(sorted(modules.items()))
        self.is_kept = is_kept
        self._digests = {name: hashlib.sha256(source.text).digest() for name, source in self.modules.items()}
        self._uses: dict[str, frozenset[str]] = {}
        self.sha256 = _digest(self._digests.items())

    def identity(self, name: str) -> tuple[str, str]:
        """Return what a module in memory must have been made of to be this one: its file; it and all that it uses."""
        reached, pending = {name}, [name]
        while pending:
            new = self._used_by(pending.pop()) - reached
            reached |= new
            pending += new
        return self.modules[name].file, _digest((one, self._digests[one]) for one in sorted(reached))

    def pack(self) -> bytes | None:
        """Return them as they are kept with a version, None if they are too large or not to be kept."""
        sources = list(self.modules.values())
        if not self.is_kept or not sources or sum(len(source.text) for source in sources) > MAX_KEPT_BYTES:
            return None
        rows = [[one.name, one.file, one.is_package, one.text.decode(_TEXT)] for one in sources]
        packed = zlib.compress(json.dumps([_FORMAT, self.root, rows]).encode())
        return packed if len(packed) <= MAX_PACKED_BYTES else None

    def _used_by(self, name: str) -> frozenset[str]:
        found = self._uses.get(name)
        if found is None:
            source = self.modules[name]
            named = _imports(source, self._digests[name]).used
            found = self._uses[name] = frozenset(one for one in named if one in self.modules)
        return found


def unpack(packed: bytes) -> Sources:
    """Return the sources that `Sources.pack` packed. Raises ValueError for anything else."""
    try:
        # A byte of a text takes six where it has to be escaped.
        data = zlib.decompressobj().decompress(packed, 8 * MAX_KEPT_BYTES)
        form, root, rows = json.loads(data)
        found = [Source(name, file, is_package, text.encode(_TEXT)) for name, file, is_package, text in rows]
    except (zlib.error, ValueError, TypeError, AttributeError) as exc:
        raise ValueError(f"sources that cannot be read: {exc}") from exc
    if form != _FORMAT:
        raise ValueError(f"sources of a format that is not known here: {form!r}")
    return Sources(root, {source.name: source for source in found})


def read(where: str, search: Sequence[str] | None = None) -> Sources:
    """Return the sources of a module, `package.module` or the path of a file, as they are on disk now.

    search: the folders in which modules are looked for; None = `sys.path`. A module that is not found, or has no
    source, has none. Raises OSError for a file that cannot be read, or is too large.
    """
    folders = list(sys.path if search is None else search)
    importlib.invalidate_caches()
    if where.endswith(".py"):
        walk = _Walk([os.path.dirname(where), *folders])
        walk.add(Source("", where, is_package=False, text=plain_files.read(where, MAX_FILE_BYTES)))
        walk.follow()
        return Sources("", walk.found)
    walk = _Walk(folders)
    place = walk.place(where)
    if place is None or place.file is None or not place.file.endswith(".py"):
        return Sources(where, {})
    if is_installed(place.file):
        return Sources(where, {where: _source(where, place.file, place)}, is_kept=False)
    walk.add_module(where)
    walk.follow()
    walk.add_package(where.partition(".")[0])
    return Sources(where, walk.found)


def files(target: Any, python_path: Iterable[str | Path] = ()) -> list[Path]:
    """Return the files whose change makes another version of a program with this target, those that exist now.

    python_path: folders that workers look in first, as configured. Runs nothing of the user's. A target that names no
    file has none; a pickled program has those of its folder.
    """
    if isinstance(target, Mapping) and isinstance(pickled := target.get("pickled"), str):
        path = Path(pickled)
        return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    if not isinstance(target, str):
        return []
    where = target.rpartition(":")[0]
    try:
        found = read(where, [*map(str, python_path), *sys.path])
    except OSError:
        return [Path(where)]  # it may come back
    return sorted({Path(source.file) for source in found.modules.values()})


def in_memory() -> Sources:
    """Return the sources, as they are on disk now, of the project's modules that are imported."""
    walk = _Walk(list(sys.path))
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        place = walk.place(name) if isinstance(file, str) and not is_installed(file) else None
        if place is not None and place.file == file:
            walk.add_module(name)
    walk.follow()
    return Sources("", walk.found)


def is_installed(file: str) -> bool:
    """Tell whether a file is no project's: of the standard library, an installed package, or this distribution."""
    return (
        not file.endswith(".py")
        or any(name in file.split(os.sep) for name in _INSTALLED)
        or file.startswith((*_LIBRARY, *_OUR_FOLDERS))
    )


# --- the walk ---------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a module is. file: None for a namespace. folders: of its submodules, None if it is no package."""

    file: str | None
    folders: Sequence[str] | None


class _Walk:
    """Goes from module to module by the import statements in them."""

    def __init__(self, search: list[str]) -> None:
        self._search = search
        self._places: dict[str, _Place | None] = {}
        self._pending: deque[Source] = deque()
        self.found: dict[str, Source] = {}

    def add(self, source: Source) -> None:
        """Take a source, if there is room for it."""
        if source.name not in self.found and len(self.found) < MAX_FILES:
            self.found[source.name] = source
            self._pending.append(source)

    def add_module(self, name: str) -> None:
        """Take a module of the project and the packages that it is in, as far as they are found."""
        for one in itertools.accumulate(name.split("."), "{}.{}".format):
            place = None if one in self.found else self.place(one)
            if place is not None and place.file is not None and not is_installed(place.file):
                try:
                    self.add(_source(one, place.file, place))
                except OSError:
                    continue  # its import will tell

    def add_package(self, name: str) -> None:
        """Take all modules of a package: what is imported by a name that is made while it runs is among them."""
        place = self.place(name)
        for folder in (place.folders or ()) if place is not None else ():
            for module in _modules_below(folder, name, MAX_FILES):
                self.add_module(module)

    def follow(self) -> None:
        """Take what the sources import, and what that imports."""
        while self._pending:
            source = self._pending.popleft()
            for name in sorted(_imports(source, hashlib.sha256(source.text).digest()).needed):
                self.add_module(name)

    def place(self, name: str) -> _Place | None:
        """Return where a module is, None if it is not found."""
        if name not in self._places:
            self._places[name] = self._locate(name)
        return self._places[name]

    def _locate(self, name: str) -> _Place | None:
        parent, _, _ = name.rpartition(".")
        if not parent:
            if name in _OUR_NAMES or name in sys.builtin_module_names:
                return None
            return _look(name, self._search) or _ask(name)
        above = self.place(parent)
        if above is None or above.folders is None or (above.file is not None and is_installed(above.file)):
            return None
        return _look(name, above.folders)


def _look(name: str, folders: Sequence[str]) -> _Place | None:
    """Look for a module in folders. The finder of Python's own would ask for the packages that it is in, imported."""
    portions: list[str] = []
    for folder in folders:
        finder = pkgutil.get_importer(folder or os.getcwd())
        spec = None if finder is None else finder.find_spec(name)
        if spec is not None and spec.loader is not None:
            return _place(spec)
        portions += [] if spec is None else spec.submodule_search_locations or []
    return _Place(None, portions) if portions else None


def _ask(name: str) -> _Place | None:
    """Ask the other finders: a project can be installed so that only one of its own knows where it is."""
    for finder in sys.meta_path:
        ask = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if ask is None or finder is PathFinder else ask(name, None)
        if spec is not None:
            return _place(spec)
    return None


def _place(spec: ModuleSpec) -> _Place:
    folders = spec.submodule_search_locations
    file = os.path.abspath(spec.origin) if spec.has_location and spec.origin else None
    return _Place(file, None if folders is None else list(folders))


def _source(name: str, file: str, place: _Place) -> Source:
    return Source(name, file, is_package=place.folders is not None, text=Path(file).read_bytes())


def _modules_below(folder: str, package: str, most: int) -> Iterator[str]:
    """Yield the names of at most so many modules in a package's folder and the folders below it, in order."""
    count = 0
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if one.isidentifier() and one != "__pycache__")
        inner = os.path.relpath(path, folder)
        prefix = package if inner == "." else f"{package}.{inner.replace(os.sep, '.')}"
        for name in sorted(names):
            stem, dot, ending = name.partition(".")
            if dot and ending == "py" and stem.isidentifier():
                yield prefix if stem == "__init__" else f"{prefix}.{stem}"
                count += 1
                if count >= most:
                    return


# --- import statements ------------------------------------------------------------------------------


class _Imported(NamedTuple):
    """Names in import statements. used: what its code can see. needed: what must be there for that too."""

    used: frozenset[str]
    needed: frozenset[str]


_parsed: dict[tuple[str, bool, bytes], _Imported] = {}


def _imports(source: Source, digest: bytes) -> _Imported:
    key = (source.name, source.is_package, digest)
    found = _parsed.get(key)
    if found is None:
        if len(_parsed) >= _PARSED_TEXTS:
            _parsed.clear()
        found = _parsed[key] = _read_imports(source)
    return found


def _read_imports(source: Source) -> _Imported:
    try:
        tree = ast.parse(source.text)
    except (SyntaxError, ValueError, RecursionError):
        return _Imported(frozenset(), frozenset())  # what is wrong is told by its import
    package = source.name if source.is_package else source.name.rpartition(".")[0]
    used: set[str] = set()
    needed: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                used.add(alias.name)
                if alias.asname is None:
                    used.add(alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            used |= {base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")} if base else set()
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            used.add(name)
    for name in used:
        needed.update(itertools.accumulate(name.split("."), "{}.{}".format))
    return _Imported(frozenset(used), frozenset(needed))


def _base(node: ast.ImportFrom, package: str) -> str:
    """Return the module that a `from … import` names, "" if there is none above it."""
    if not node.level:
        return node.module or ""
    above = package.split(".") if package else []
    if node.level > len(above):
        return ""
    return ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])])


def _imported_by_call(node: ast.Call) -> str | None:
    """Return the name in `import_module("name")` or `__import__("name")`."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        name = node.args[0].value
        return name if isinstance(name, str) and name and not name.startswith(".") else None
    return None


def _digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return one digest of names and digests, in the order given."""
    total = hashlib.sha256()
    for name, digest in parts:
        total.update(name.encode("utf-8", "surrogatepass") + b"\0" + digest)
    return total.hexdigest()
