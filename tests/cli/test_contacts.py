"""A run folder, which may be anybody's, contacts nobody; only the command line may."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import yaml

from running import alone, call
from unixkd.errors import is_reachable
from unixkd.training.run import run

REMOTE = ("hub:owner/set", "hub:.", "stream:owner/set", "cifar10", "cifar100")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run(alone(epochs=1), folder := tmp_path_factory.mktemp("teacher") / "run")
    return folder


@pytest.fixture(params=REMOTE)
def received(request, trained, tmp_path, monkeypatch) -> Path:
    """A run folder that names data to download, where nothing has been downloaded before."""
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "checksums.json").unlink()
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["data"]["name"] = request.param
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def calls(monkeypatch) -> list[object]:
    """Whom it was tried to reach; nobody can be."""
    calls: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("options", [[], ["--data.limit", "50"]])
@pytest.mark.parametrize("words", [["evaluate"], ["plan", "--student", "resnet8", "--teacher"]])
def test_data_to_download_are_named_on_the_command_line_or_not_used(words, options, received, calls, capsys):
    assert call(*words, received, *options) == 1
    error = capsys.readouterr().err
    if words[0] == "plan" and "cifar" in (received / "run.yaml").read_text():
        assert "data have 3 channels" in error  # their shape is known, and is not the network's
    else:
        assert f"{received / 'run.yaml'} names data to download" in error
        assert "give --data " in error
    assert calls == []


def test_an_export_is_verified_on_random_pixels_and_a_report_needs_no_data(received, calls, tmp_path, capsys):
    assert call("export", received, "--formats", "safetensors", "--out", tmp_path / "export") == 0
    assert "compared on random pixels only" in capsys.readouterr().out
    assert call("report", received) == 0
    assert calls == []


def test_data_named_on_the_command_line_are_fetched_and_a_missing_network_is_answered_soon(
    trained, calls, tmp_path, capsys, monkeypatch
):
    (tmp_path / "empty").mkdir()
    assert call("evaluate", trained, "--data", "cifar10", "--data.root", tmp_path / "empty") == 1
    assert "data.root" in capsys.readouterr().err
    assert len(calls) == 1
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits"))
    assert call("evaluate", trained, "--data", "hub:owner/set") == 1
    assert "parquet:PATH or folder:PATH" in capsys.readouterr().err
    assert len(calls) == 2  # one look whether the Hub is there


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "transformers:owner/net"], "transformers:FOLDER"),
        (["--model", "transformers:owner/net", "--model.pretrained", "true"], "transformers:FOLDER"),
        (["--model", "timm:resnet18.a1_in1k", "--model.pretrained", "true"], "weights FILE"),
    ],
)
def test_networks_of_the_hub_without_one_are_answered_soon(words, told, calls, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits"))
    assert call("train", *words, "--data", "digits", "--data.limit", "100", "--out", tmp_path / "out") == 1
    assert told in capsys.readouterr().err
    assert 1 <= len(calls) <= 2


def test_a_server_that_is_there_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert not is_reachable("http://127.0.0.1:1")
