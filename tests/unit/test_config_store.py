"""The store in the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.config.load import load, schema
from orchestrator.config.view import MASK, show
from orchestrator.errors import ConfigError

URL = "postgresql+psycopg://me:geheim@host:5433/db"


def read(store: Any, **environ: str) -> Settings:
    return load(overrides={"store": store, "data_dir": "/data"}, environ={"HOME": "/tmp", **environ})


@pytest.mark.parametrize("store", [None, {}, {"url": None}])
def test_without_a_url_it_is_a_file_in_data_dir(store: Any) -> None:
    settings = read(store)
    assert settings.store.where(settings.data_dir) == "/data/store.sqlite3"
    assert show(settings)["store"] == {"url": None}


@pytest.mark.parametrize("url", [URL, "postgresql://host/db", "postgresql:///db?host=/run/postgresql"])
def test_a_database_by_its_url(url: str) -> None:
    assert read({"url": url}).store.where(Path("/data")) == url
    assert read({"url": "${PG}"}, PG=url).store.where(Path("/data")) == url
    assert load(environ={"HOME": "/tmp", "DSPOOL_STORE__URL": url}).store.where(Path("/data")) == url


@pytest.mark.parametrize(
    "url",
    [URL, "postgresql://me@host/db?password=geheim&sslmode=require", "postgresql:///db?sslpassword=geheim&user=me"],
)
def test_a_password_is_shown_nowhere(url: str) -> None:
    settings = read({"url": url})
    assert "geheim" not in f"{settings!r} {json.dumps(show(settings))}"
    shown = show(settings)["store"]["url"]
    assert MASK in shown
    assert shown.replace(MASK, "geheim").replace(f"{MASK}@", "me:geheim@").endswith(url.rpartition("@")[2])


@pytest.mark.parametrize(
    "url", ["sqlite:///x", "mysql://me:geheim@host/db", "/a/file", "postgres://h/d", "postgresql://", 5]
)
def test_anything_else_is_a_problem_that_shows_no_password(url: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"url": url})
    [problem] = caught.value.problems
    assert problem["path"] == "store.url"
    assert "geheim" not in str(caught.value)


def test_it_has_no_other_keys() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        read({"path": "/a/file"})
    assert list(schema()["$defs"]["StoreModel"]["properties"]) == ["url"]
