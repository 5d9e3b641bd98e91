"""Reads `dspool.yaml` as YAML's safe subset, remembering the line of every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import yaml
from pydantic import SecretStr

from orchestrator.config.model import KeyPath, type_at
from orchestrator.config.source import Layer, PlainLoader, expand

MAX_FILE_BYTES: Final = 1024 * 1024
# Aliases can make a small file a huge tree.
_MAX_NODES: Final = 20_000
_MAP_TAG: Final = "tag:yaml.org,2002:map"
_SEQUENCE_TAG: Final = "tag:yaml.org,2002:seq"
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


def read_yaml(data: bytes, shown: str, environ: Mapping[str, str]) -> Layer:
    """Read a file's content; `shown` names the file in problems, `environ` fills `${NAME}`."""
    layer = Layer(origins={(): shown})
    if len(data) > MAX_FILE_BYTES:
        layer.problem(shown, (), f"is larger than {MAX_FILE_BYTES} bytes")
        return layer
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        layer.problem(f"{shown}:{data.count(10, 0, exc.start) + 1}", (), "is not UTF-8 text")
        return layer
    try:
        loader = PlainLoader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as exc:
        message = f"is not YAML: {exc.problem or exc.context}"
        # What is missing at the end of the file is missed on the line after the last.
        line = exc.problem_mark.line if exc.problem_mark else 0
        if "${" in "".join(text.splitlines()[line : line + 1]):
            message += "; between { and } a ${NAME} needs quotes"
        layer.problem(_at(shown, exc.problem_mark), (), message)
        return layer
    except (yaml.YAMLError, RecursionError) as exc:
        layer.problem(shown, (), f"is not YAML: {str(exc) or type(exc).__name__}".splitlines()[0])
        return layer
    if isinstance(root, yaml.MappingNode):
        layer.tree = _Reader(loader, shown, environ, layer).mapping(root, ())
    elif root is not None and not (isinstance(root, yaml.ScalarNode) and loader.construct_object(root) is None):
        layer.problem(_at(shown, root.start_mark), (), "must hold keys and values, such as `pools:`")
    return layer


def _at(shown: str, mark: yaml.Mark | None) -> str:
    return f"{shown}:{mark.line + 1}" if mark else shown


def _means_a_value(node: yaml.ScalarNode, path: KeyPath) -> bool:
    """Return whether what replaces `${SIZE}` is to be read as YAML: where a number belongs, in quotes or not."""
    wanted = type_at(path)
    return node.style is None if wanted in (Any, None) else wanted not in (str, SecretStr)


class _Reader:
    """Turns nodes into plain data; notes problems and lines in the layer."""

    def __init__(self, loader: yaml.SafeLoader, shown: str, environ: Mapping[str, str], layer: Layer) -> None:
        # Some of these methods carry no types of their own.
        self._resolve: Callable[..., str] = loader.resolve
        self._construct: Callable[..., Any] = loader.construct_object
        self._merge: Callable[..., None] = loader.flatten_mapping
        self._shown = shown
        self._environ = environ
        self._layer = layer
        self._nodes = 0
        self._open: set[int] = set()  # the collections being read: an alias to one of them has no end
        self._flattened: set[int] = set()

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Return a mapping's data."""
        if not self._flatten(node, path):
            return {}
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is not None:
                here = (*path, key)
                self._layer.origins[here] = _at(self._shown, key_node.start_mark)
                result[key] = self._value(value_node, here)
        return result

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            if self._nodes == _MAX_NODES + 1:
                self._problem(node, path, f"the file holds more than {_MAX_NODES} values (are there nested aliases?)")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(node, path, "is an alias of something that it is part of")
            return None
        if node.tag not in (_MAP_TAG, _SEQUENCE_TAG):
            self._problem(node, path, f"tag {node.tag} is not supported")
            return None
        self._open.add(id(node))
        try:
            return self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        finally:
            self._open.discard(id(node))

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self._layer.origins[(*path, index)] = _at(self._shown, item.start_mark)
            result.append(self._value(item, (*path, index)))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if "${" in node.value:
            text, wrong = expand(node.value, self._environ)
            for message in wrong:
                self._problem(node, path, message)
            if wrong or not _means_a_value(node, path):
                return text
            tag = self._resolve(yaml.ScalarNode, text, (True, False))
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        try:
            return self._construct(node)
        except yaml.MarkedYAMLError as exc:
            self._problem(node, path, str(exc.problem))
        except ValueError as exc:
            self._problem(node, path, f"cannot be read: {exc}")
        return None

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return str(node.value)
        written = f" {node.value}" if isinstance(node, yaml.ScalarNode) else ""
        self._problem(node, path, f"key{written} must be text: put it in quotes")
        return None

    def _flatten(self, node: yaml.MappingNode, path: KeyPath) -> bool:
        """Check for duplicate keys, then put the pairs of `<<` first. Return False if that cannot be done."""
        if id(node) in self._flattened:
            return True
        self._flattened.add(id(node))
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE_TAG:
                if (first := lines.get(key_node.value)) is not None:
                    message = f"stands here a second time; the first is on line {first}"
                    self._problem(key_node, (*path, key_node.value), message)
                lines.setdefault(key_node.value, key_node.start_mark.line + 1)
        try:
            self._merge(node)
        except (yaml.MarkedYAMLError, RecursionError) as exc:
            self._problem(node, path, f"cannot merge: {getattr(exc, 'problem', 'endless')}")
            return False
        return True

    def _problem(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self._layer.problem(_at(self._shown, node.start_mark), path, message)
