"""The files of infra/, as far as they can be checked without the machines that they are for.

Kubernetes' own objects, pods included, against its published schemas; compose.yaml and the Dockerfile by their own
parsers; cluster.yaml by Ray; every command by the parser of the program that it calls. KubeRay publishes no schema as a
package: its objects are checked for the names of their fields (kuberay_fields.yaml).
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import mlflow.cli
import pytest
import ray.scripts.scripts
import yaml
from compose_spec import PyCompose
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from jobs.cli import Sources, as_flags, flatten, parse
from jobs.serve import JOB as SERVE

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = "1.34"
JOB_COMMAND = re.compile(r"python (?:/app/)?jobs/(\w+)\.py((?:\\\n|[^\n`])*)")
KUBERAY_FIELDS = {
    part: frozenset(names)
    for part, names in yaml.safe_load(Path(__file__).with_name("kuberay_fields.yaml").read_text()).items()
}


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def groups(cluster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def test_the_job_on_kubernetes_is_understood_and_finds_its_cluster(
    check_job_command: Callable[[str, str], None],
) -> None:
    job, cluster = read("kuberay/rayjob.yaml"), read("kuberay/raycluster.yaml")
    (command,) = JOB_COMMAND.findall(job["spec"]["entrypoint"])
    check_job_command(*command)
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    gpus = next(group for group in cluster["spec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert f"--compute.workers 1:{gpus['maxReplicas']}" in job["spec"]["entrypoint"]


def read_service() -> tuple[Any, Any]:
    """The service and the policy of its file."""
    service, policy = yaml.safe_load_all((INFRA / "kuberay" / "rayservice.yaml").read_text())
    return service, policy


def test_the_service_on_kubernetes_is_understood_by_serve_and_by_its_job() -> None:
    service, policy = read_service()
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = deploy.applications
    module, _, builder = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))
    config = parse(SERVE, Sources(), list(as_flags(dict(flatten(application.args)))))
    assert (config.host, config.token) == (deploy.http_options.host, "yes")
    cluster = service["spec"]["rayClusterConfig"]
    (gpus,) = cluster["workerGroupSpecs"]
    assert config.compute.workers == (gpus["minReplicas"], gpus["maxReplicas"])
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for group in groups({"spec": cluster}):
        check_pod(group)
        assert group["template"]["metadata"]["labels"] == labels
        (container,) = group["template"]["spec"]["containers"]
        assert {"secretRef": {"name": "reddit-serve"}} in container["envFrom"]
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)


def check_pod(group: Mapping[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/rayservice.yaml"])
def test_the_fields_of_kuberay_are_its_own(name: str) -> None:
    document = read_service()[0] if "rayservice" in name else read(name)
    assert document["apiVersion"] == "ray.io/v1" and set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(document["spec"]) <= KUBERAY_FIELDS[document["kind"]]
    if document["kind"] == "RayService":
        document = {"kind": "RayCluster", "spec": document["spec"]["rayClusterConfig"]}
        assert set(document["spec"]) <= KUBERAY_FIELDS["RayCluster"]
    for part, known in KUBERAY_FIELDS.items():
        found = document["spec"].get(part, [])
        for group in found if isinstance(found, list) else [found]:
            assert set(group) <= known
    for group in groups(document) if document["kind"] == "RayCluster" else []:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 1)


def test_the_pods_are_what_kubernetes_takes() -> None:
    for group in groups(read("kuberay/raycluster.yaml")):
        check_pod(group)
        (container,) = group["template"]["spec"]["containers"]
        assert {"secretRef": {"name": "reddit-s3"}} in container["envFrom"]
        assert not [item for item in container["env"] if "SECRET" in item["name"] or "TOKEN" in item["name"]]
    policy = read("kuberay/network.yaml")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    labels = [group["template"]["metadata"]["labels"] for group in groups(read("kuberay/raycluster.yaml"))]
    assert all(label == policy["spec"]["podSelector"]["matchLabels"] for label in labels)


def test_a_mistake_in_a_pod_would_be_found() -> None:
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
    template = {"spec": {"containers": [{"name": "c", "image": "i", "envfrom": []}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, "template": template}, KUBERNETES, strict=True)


def check_click(command: click.Command, words: list[str]) -> None:
    """Words through a program's own parser, which does nothing yet."""
    command.make_context(command.name, list(words)).close()


def test_ray_up_takes_the_cluster_file_and_ray_start_its_commands() -> None:
    config = read("cluster.yaml")
    validate_config(prepare_config(config))
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
        assert words[0] == "ray"
        check_click(ray.scripts.scripts.cli.commands[words[1]], words[2:])
        assert words[1] == "stop" or command.startswith("RAY_AUTH_MODE=token ")


def test_compose_is_well_formed_and_publishes_on_loopback_only() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    PyCompose.from_json(json.dumps(yaml.safe_load(text))).validate()
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)
        for name, value in service.get("environment", {}).items():
            secret = re.search("PASSWORD|SECRET|TOKEN|KEY|BACKEND_STORE", name)
            assert not secret or "${" in value, f"{name} is written down"


def test_the_commands_of_compose_are_understood() -> None:
    services = read("compose.yaml")["services"]
    check_click(mlflow.cli.cli.commands[services["mlflow"]["command"][0]], services["mlflow"]["command"][1:])
    check_click(ray.scripts.scripts.cli.commands[services["ray"]["command"][0]], services["ray"]["command"][1:])


def test_the_buckets_of_compose_are_made_and_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - slow to import

    (program,) = read("compose.yaml")["services"]["buckets"]["command"]
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    listing = "import s3fs; print(sorted(s3fs.S3FileSystem().ls('')))"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    shown = subprocess.run([sys.executable, "-c", listing], check=True, timeout=60, capture_output=True, text=True)
    server.stop()
    assert shown.stdout.strip() == "['data', 'mlflow']"


def test_the_dockerfile_passes_its_linter_and_copies_what_is_there() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, INFRA / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    text = (INFRA / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    assert all((ROOT / word).exists() for word in sources if not word.startswith("--"))
    targets = [part for part in re.split(r"^FROM .* AS ", text, flags=re.MULTILINE)[1:] if "ENTRYPOINT" in part]
    assert [part.split()[0] for part in targets] == ["cpu", "cuda", "mlflow"]
    assert all("USER 1000" in part for part in targets)
    built = {service["build"]["target"] for service in read("compose.yaml")["services"].values() if "build" in service}
    assert built <= {"cpu", "cuda", "mlflow"}


def test_what_the_makefile_serves_is_on_loopback() -> None:
    assert "--host 127.0.0.1" in (ROOT / "Makefile").read_text()
