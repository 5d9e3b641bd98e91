from __future__ import annotations

from pathlib import Path

from bridge.worker.version import package_version


def test_only_what_is_installed_beside_the_packages_counts(tmp_path: Path) -> None:
    assert package_version(tmp_path) == ""
    for name, version in (("other", "1.0"), ("dspool", "9.9")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert package_version(tmp_path) == "9.9"
