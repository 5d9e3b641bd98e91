"""Pickled programs: their digests, what is refused before anything is unpickled, and what is unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import dspy
import pytest

from bridge.protocol.errors import BridgeError
from bridge.worker import pickled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as DSPy saves it."""
    path = tmp_path_factory.mktemp("pickled") / "saved"
    dspy.Predict("question -> answer").save(path, save_program=True)
    return path


class Bomb:
    """What tells that it was unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def refused(target: Any, *, is_allowed: bool = True) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        pickled.read(target, is_allowed=is_allowed)
    assert caught.value.code == "INVALID_REQUEST"
    return caught.value


def pinned(path: Path) -> dict[str, str]:
    return {"pickled": str(path), "sha256": pickled.digest(path)}


def test_the_digest_of_a_folder_is_that_of_the_command_that_is_told(folder: Path) -> None:
    (folder / "more").mkdir(exist_ok=True)
    (folder / "more" / "ä b.txt").write_text("x")
    command = "find . -type f | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum"
    told = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert told.split()[0] == pickled.digest(folder)
    pickle = pickled.unpickle(pickled.read(pinned(folder), is_allowed=True))
    assert list(pickle.signature.fields) == ["question", "answer"]


def test_a_file_and_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "program.pkl"
    file.write_bytes(cloudpickle.dumps(dspy.Predict("a -> b")))
    assert pickled.digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert list(pickled.unpickle(pickled.read(pinned(file), is_allowed=True)).signature.fields) == ["a", "b"]


def test_it_is_refused_where_it_is_not_allowed(folder: Path) -> None:
    error = refused(pinned(folder), is_allowed=False)
    assert error.details["path"] == "target.pickled"
    assert "security.allow_pickled_programs" in error.message


@pytest.mark.parametrize("change", ["file", "another", "removed", "emptied"])
def test_what_is_not_what_was_pinned_is_never_unpickled(tmp_path: Path, change: str) -> None:
    saved, mark = tmp_path / "saved", tmp_path / "it was unpickled"
    dspy.Predict("a -> b").save(saved, save_program=True)
    target = pinned(saved)
    match change:
        case "file":
            (saved / "program.pkl").write_bytes(cloudpickle.dumps(Bomb(mark)))
        case "another":
            (saved / "more.txt").write_text("x")
        case "removed":
            (saved / "metadata.json").unlink()
        case "emptied":
            (saved / "metadata.json").write_text("")
    assert refused(target).details["path"] in ("target.sha256", "target.pickled")
    assert not mark.exists()


@pytest.mark.parametrize("pin", [None, "", "ab", "g" * 64, 5])
def test_a_pin_that_is_none(folder: Path, pin: Any) -> None:
    assert refused({"pickled": str(folder), "sha256": pin}).details["path"] == "target.sha256"


@pytest.mark.parametrize("path", ["relative.pkl", "/nowhere/program.pkl", "", 5, "/proc/self"])
def test_a_path_that_is_none(path: Any) -> None:
    assert refused({"pickled": path, "sha256": "0" * 64}).details["path"] == "target.pickled"


def test_an_unknown_key(folder: Path) -> None:
    assert refused({**pinned(folder), "md5": "x"}).details["path"] == "target.md5"


def test_a_folder_without_a_program(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "program.pkl" in refused(pinned(tmp_path)).message


@pytest.mark.parametrize("name", ["link", "two\nlines"])
def test_a_folder_that_cannot_be_pinned(tmp_path: Path, name: str) -> None:
    (tmp_path / "program.pkl").write_bytes(b"x")
    if name == "link":
        (tmp_path / name).symlink_to(tmp_path / "program.pkl")
    else:
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="cannot be pinned"):
        pickled.digest(tmp_path)
    assert "cannot be pinned" in refused({"pickled": str(tmp_path), "sha256": "0" * 64}).message


def test_what_another_python_has_pickled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dspy.Predict("a -> b").save(tmp_path, save_program=True)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    metadata["dependency_versions"]["python"] = "3.8"
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    assert "Python 3.8" in refused(pinned(tmp_path)).message
    del metadata["dependency_versions"]["python"]
    metadata["dependency_versions"]["dspy"] = "0.1"
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with caplog.at_level(logging.WARNING):
        assert pickled.read(pinned(tmp_path), is_allowed=True).data
    assert "pickled_by_another_dspy" in caplog.text


def test_what_never_ends_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large.pkl"
    os.mkfifo(pipe)
    large.write_bytes(b"x" * 65)
    monkeypatch.setattr(pickled, "MAX_FILE_BYTES", 64)
    for path, why in ((pipe, "no regular file"), (Path("/dev/zero"), "no regular file"), (large, "more than 64 bytes")):
        assert why in refused({"pickled": str(path), "sha256": "0" * 64}).message
        with pytest.raises(OSError, match=why):
            pickled.digest(path)
    large.write_bytes(b"x" * 64)
    assert pickled.digest(large) == hashlib.sha256(b"x" * 64).hexdigest()
