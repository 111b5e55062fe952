"""`modularbase pack ...` as a user types it: a fresh environment, the real pip, wheels from this machine alone."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest
from tiny_packs import PACK, manifest
from tiny_wheels import write_wheel

from modularbase_core.sdk.manifest import WEIGHTS_FILE

SQL = manifest("sql_tips", "domain", PACK, aliases=("sql",), base_compatibility=("1",))
NAME = "modularbase-pack-sql"


@pytest.fixture
def shelf(tmp_path):
    """A folder of wheels: two versions of a pack, one for another base, a project that is none."""
    folder = tmp_path / "shelf"
    write_wheel(folder, NAME, "1.0.0", [SQL])
    write_wheel(folder, NAME, "1.1.0", [replace(SQL, version="1.1.0")], seed=1)
    write_wheel(folder, "modularbase-pack-foreign", packs=[manifest("foreign", "domain", PACK, base="other-base")])
    write_wheel(folder, "other", group="console_scripts")
    return folder


@pytest.fixture
def pack(tmp_path, venv, shelf):
    """Run `modularbase pack` in a fresh environment that has core and base, by pip's own environment variables."""
    venv.install("modularbase-nano")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    # an index that is not there: only the shelf answers
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
    settings |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "MODULARBASE_CACHE": str(tmp_path / "cache")}

    def call(*arguments, code=0):
        command = [venv.folder / "bin" / "modularbase", "pack", *arguments]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=inherited | settings, cwd=tmp_path
        )
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    call.venv = venv
    return call


def versions(pack):
    return {one["id"]: one["version"] for one in json.loads(pack("list", "--json"))["packs"]}


def test_a_pack_comes_changes_and_goes(pack, tmp_path):
    said = pack("install", "sql_tips@1.0.0", "--no-takeover")
    assert said.startswith("installed sql_tips 1.0.0 (domain, ")
    assert (
        pack("install", "sql", "--no-takeover") == f"{NAME} is already installed; --upgrade looks for a newer version\n"
    )
    pack("lock")
    assert "installed sql_tips 1.1.0, was 1.0.0" in pack("install", "-U", "sql", "--no-takeover")
    assert versions(pack)["sql_tips"] == "1.1.0"
    # recorded by name: a path that is gone tomorrow would break `pip freeze`
    assert f"{NAME}==1.1.0" in pack.venv.pip("freeze").splitlines()

    assert f"installed {NAME} 1.0.0\neverything is as" in pack("restore")
    assert versions(pack)["sql_tips"] == "1.0.0"
    weights = next(pack.venv.folder.rglob("modularbase_pack_sql/sql_tips/model.safetensors"))
    weights.write_bytes(b"short")
    pack("verify", "sql", "--no-run", code=1)
    assert f"installed {NAME} 1.0.0" in pack("restore")
    assert pack("verify", "sql", "--no-run").startswith("sql_tips  1.0.0  files sound")

    assert f"removed {NAME}" in pack("remove", "sql", "--yes")
    assert "sql_tips" not in versions(pack)
    pack("restore")
    assert versions(pack)["sql_tips"] == "1.0.0"


def test_what_is_refused_leaves_nothing_behind(pack, shelf, tmp_path):
    before = pack.venv.pip("freeze")
    assert "was made for base 'other-base'" in pack("install", "foreign", code=1)
    assert "is no pack: it has no entry point" in pack("install", shelf / "other-1.0.0-py3-none-any.whl", code=1)
    whole = (shelf / "modularbase_pack_sql-1.0.0-py3-none-any.whl").read_bytes()
    (tmp_path / "half-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    assert "is no whole wheel" in pack("install", "./half-1.0-py3-none-any.whl", code=1)
    assert "no pack 'nothing' is offered" in pack("install", "nothing", code=1)
    assert "there are 1.0.0, 1.1.0" in pack("install", "sql@9.9", code=1)
    needy = write_wheel(
        tmp_path,
        "modularbase-pack-needy",
        packs=[manifest("needy", "domain", PACK, base_compatibility=("1",))],
        requires=["gone"],
    )
    assert "no distribution 'gone' is offered" in pack("install", needy, code=1)
    assert pack.venv.pip("freeze") == before


def test_weights_are_fetched_after_pip(pack, shelf, tmp_path):
    whole = write_wheel(tmp_path / "whole", "x", packs=[SQL])
    web = tmp_path / "web"
    shutil.unpack_archive(whole, tmp_path / "unpacked", "zip")
    web.mkdir()
    weights = shutil.copy(tmp_path / "unpacked/x/sql_tips" / WEIGHTS_FILE, web / "w")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(web))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            apart = replace(SQL, downloads={WEIGHTS_FILE: f"http://127.0.0.1:{server.server_port}/w"})
            wheel = write_wheel(tmp_path, "modularbase-pack-apart", packs=[apart], left_out=[WEIGHTS_FILE])
            assert f"fetched sql_tips/{WEIGHTS_FILE}" in pack("install", wheel, "--no-takeover")
        finally:
            server.shutdown()
            thread.join()
    assert pack("verify", "sql", "--no-run").startswith("sql_tips  1.0.0  files sound")
    pack("export", "sql", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == weights.read_bytes()
    assert "of downloaded weights" in pack("remove", "sql", "--yes")
    assert list((tmp_path / "cache/weights").iterdir()) == []


def project(folder, *, ignored=""):
    """Write a pack's project; git ignores what `ignored` names."""
    shutil.unpack_archive(write_wheel(folder.parent / "made", NAME, packs=[SQL]), folder, "zip")
    for path in folder.glob("*.dist-info"):
        shutil.rmtree(path)
    (folder / ".gitignore").write_text(ignored)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "{NAME}"\n'
        'version = "1.0.0"\n[project.entry-points.modularbase]\nsql = "modularbase_pack_sql"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["modularbase_pack_sql"]\n'
    )
    return folder


def test_a_project_becomes_a_wheel_that_installs(pack, tmp_path):
    place = project(tmp_path / "project")
    assert "with sql_tips 1.0.0" in pack("build", place)
    (wheel,) = (place / "dist").iterdir()
    assert "installed sql_tips 1.0.0" in pack("install", wheel, "--no-takeover")
    assert "installed sql_tips 1.0.0, was 1.0.0" in pack("install", place, "--no-takeover")


def test_a_project_whose_weights_are_ignored_is_not_built_without_them(pack, tmp_path):
    place = project(tmp_path / "project", ignored="*.safetensors\n")
    assert "model.safetensors is missing" in pack("build", place, code=1)
    assert not (place / "dist").exists()
    weights = place / "modularbase_pack_sql/sql_tips/model.safetensors"
    weights.write_bytes(b"short")
    assert "has SHA-256" in pack("build", place, code=1)
