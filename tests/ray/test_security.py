"""Names that a dataset brings along stay text; a local Ray asks for its token and listens on loopback alone."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from pipelines import shards
from pipelines.config.jobs import IngestConfig
from pipelines.pairs.ingest import ingest
from tests.ray.processes import LOOPBACK, listening

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_pair_ids_that_look_like_paths_name_no_file(lol_folder: Path, tmp_path: Path) -> None:
    names = ["../../escaped", "/escaped", "a/../../../escaped", "C:\\escaped"]
    table = tmp_path / "pairs.csv"
    sides = lol_folder / "our485"
    rows = [f"{name},{sides}/low/{n}.png,{sides}/high/{n}.png" for n, name in enumerate(names, start=1)]
    table.write_text("\n".join(["pair_id,low,normal", *rows]))
    before = {*tmp_path.rglob("*"), *Path("/").glob("*")}
    output = tmp_path / "a" / "b" / "pairs"
    ingest(IngestConfig(source=str(table), layout="table", output=str(output), validation_share=0))

    after = {*tmp_path.rglob("*"), *Path("/").glob("*")}
    assert all(output in path.parents or path in (output, *output.parents) for path in after - before)
    assert not [path for path in after if "escaped" in path.name]
    manifest = shards.read_manifest(str(output), "pairs")
    tables = [shards.read_shard(str(output), entry) for entry in manifest.shards]
    found = [pair_id for table in tables for pair_id in table.column("pair_id").to_pylist()]
    assert sorted(found) == sorted(names)


ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]).internal_kv_keys(b'', None, 20)"


@pytest.mark.parametrize(
    ("variables", "let_in"),
    [({}, True), ({"RAY_AUTH_TOKEN": "0" * 64}, False), ({"RAY_AUTH_MODE": "disabled"}, False)],
    ids=["its token", "another token", "none"],
)
def test_a_local_ray_answers_only_those_who_have_its_token(variables: dict[str, str], let_in: bool) -> None:
    """Its ports are open to whoever has an account on the machine, so this is what keeps others out."""
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_AUTH_MODE": "token", **variables}
    command = [sys.executable, "-c", ASK, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == let_in, done.stdout + done.stderr
    assert let_in or "authentication" in done.stderr.lower()


SERVE = """
from pipelines.cluster import start_ray
import ray
start_ray(dashboard=True)
ray.get(ray.remote(lambda: None).remote())
print(flush=True)
input()
"""


@pytest.mark.parametrize("dashboard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_local_ray_listens_on_loopback_alone(dashboard: bool) -> None:
    """The Ray of this process has no dashboard; another one has."""
    if dashboard:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with psutil.Popen([sys.executable, "-c", SERVE], env=environment, **pipes) as process:
            process.stdout.readline()
            addresses = listening(process)
            process.communicate(b"\n")
    else:
        ray.get(ray.remote(lambda: None).remote())
        addresses = listening(psutil.Process())
    assert addresses and addresses <= LOOPBACK
