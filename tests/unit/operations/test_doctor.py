"""`ddpm doctor` from the command line, with a fake dashboard; package sizes against Ray's own archive."""

import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from jobs.__main__ import main
from pipeline.config.cluster import RayConfig
from pipeline.config.root import Config
from pipeline.operations import cluster_info, package
from pipeline.operations.cluster_info import status_without_token
from pipeline.operations.doctor import check_cluster
from pipeline.operations.package import UPLOAD_LIMIT, folder_sizes

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two files that Ray packs and files of every kind that Ray excludes."""
    root = tmp_path / "work"
    for name, size in {
        "jobs/a.py": 10,
        "data/big.bin": 5000,
        ".git/objects": 700,
        ".venv/lib.so": 900,
        "jobs/__pycache__/a.pyc": 30,
        "demo-output/x.png": 4000,
        "docs/y.md": 60,
        "own/z.tmp": 80,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(size))
    (root / ".gitignore").write_text("demo-output/\n")
    (root / ".rayignore").write_text("docs/\n")
    monkeypatch.chdir(root)
    return root


def test_what_is_counted_is_what_ray_packs(folder, tmp_path):
    sizes = folder_sizes(folder, ("own/",))
    archive = tmp_path / "package.zip"
    excludes = [*get_runtime_env_default_excludes(), "own/"]
    create_package(str(folder), archive, include_gitignore=True, excludes=excludes)
    packed = sum(info.file_size for info in zipfile.ZipFile(archive).infolist())
    assert sum(sizes.values()) == packed
    assert sizes["data"] == 5000
    assert UPLOAD_LIMIT == 100 * 2**20


def test_a_folder_that_is_too_large_fails_without_being_read_to_its_end(folder, capsys, monkeypatch):
    monkeypatch.setattr(package, "UPLOAD_LIMIT", 1000)
    assert main(["doctor"]) == 1
    assert "fail  working_dir" in capsys.readouterr().out


def test_a_sound_laptop_is_nine_lines_of_ok(folder, tmp_path, capsys):
    assert main(["doctor", "--root", str(tmp_path / "root"), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 9
    assert [found["subject"] for found in json.loads(last)["findings"]][3:5] == ["store", "create-once"]


def test_a_store_that_cannot_be_asked_is_one_line_and_exit_1(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["doctor", "--root", str(tmp_path / "file")]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert line.startswith("fail  store: ")


def test_a_cluster_that_does_not_answer_is_one_line_at_once():
    (finding,) = check_cluster(Config(ray=RayConfig(address="127.0.0.1:1")))
    assert (finding.level, finding.subject) == ("fail", "cluster")
    assert "127.0.0.1:1: start the head" in finding.text


@pytest.mark.parametrize("status", [200, 401, 403])
def test_the_dashboard_is_asked_without_a_token(status, monkeypatch):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            return None

    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-of-thirty-two-characters!")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        assert status_without_token(f"127.0.0.1:{server.server_port}") == status
    assert seen == [("/api/jobs/", None)]


def test_nothing_answers_is_no_status():
    assert status_without_token("127.0.0.1:1") is None


def test_the_driver_s_version_is_read_from_the_kernel_s_words(tmp_path, monkeypatch):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Sun Mar 30 2026\nGCC version: 12\n")
    monkeypatch.setattr(cluster_info, "DRIVER", file)
    node = cluster_info.this_node("here", 1)
    assert (node.driver, node.devices) == ("570.133.20", ())
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    assert cluster_info.this_node("here", 1).driver == "580.65.06"


@pytest.mark.parametrize("address", ["auto", "head:", "head:abc", "ray://head:abc", "head:65536", "[::1"])
def test_an_address_without_a_valid_port_is_left_to_ray(address: str):
    assert cluster_info.is_listening(address)
