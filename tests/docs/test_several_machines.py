"""What `deploy/kubernetes` and the page on scale hold, against the schemas of what reads them."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import Shape, validate_config
from dagster._core.instance.config import dagster_instance_config_schema

from rhei_pipeline import Settings

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "deploy" / "kubernetes"
PAGE = (PROJECT / "docs" / "scale.md").read_text()
#: As the page says.
KUBERNETES = "1.33"


def manifests() -> list[dict[str, Any]]:
    """Return every object that is applied."""
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [one for name in listed for one in yaml.safe_load_all((FOLDER / name).read_text())]


def pod(name: str) -> dict[str, Any]:
    """Return what the pods of a StatefulSet or Deployment are."""
    (found,) = (m for m in manifests() if m["metadata"]["name"] == name and "template" in m["spec"])
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def test_there_is_a_code_server_for_each_shard_and_dagster_knows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RHEI__SOURCE__DSN", "service=shop")  # a secret, which no file has
    shards = Settings.load(FOLDER / "pipeline.yaml").pipelines()
    (code,) = (m for m in manifests() if m["kind"] == "StatefulSet")
    assert code["spec"]["replicas"] == len(shards)
    listed = yaml.safe_load((FOLDER / "workspace.yaml").read_text())["load_from"]
    service, port = code["spec"]["serviceName"], 4000
    assert [one["grpc_server"] for one in listed] == [
        {"host": f"{service}-{n}.{service}", "port": port, "location_name": f"shard_{n + 1}"}
        for n in range(len(shards))
    ]
    (container,) = pod(service)["containers"]
    (script,) = container["args"]
    assert f"-p {port} " in script
    volumes = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for shard in shards:
        for path in (shard.mirror.path, shard.registry.path):
            assert path.is_relative_to(volumes["mirror"])
    (environment,) = container["env"]
    assert environment == {
        "name": "RHEI_CONFIG",
        "value": f"{volumes['declaration']}/pipeline.yaml",
    }


def test_what_pods_mount_and_services_choose_is_there() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    assert all((FOLDER / name).exists() for name in made["files"])
    labels = []
    for manifest in manifests():
        template = manifest["spec"].get("template") if "spec" in manifest else None
        if template is None:
            continue
        labels.append(template["metadata"]["labels"])
        assert manifest["spec"]["selector"]["matchLabels"].items() <= labels[-1].items()
        claims = manifest["spec"].get("volumeClaimTemplates", [])
        there = {one["name"] for one in template["spec"].get("volumes", [])}
        there |= {claim["metadata"]["name"] for claim in claims}
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there
        for volume in template["spec"].get("volumes", []):
            assert volume["configMap"]["name"] == made["name"]
    for manifest in manifests():
        if manifest["kind"] == "Service":
            chosen = manifest["spec"]["selector"].items()
            assert any(chosen <= found.items() for found in labels)


@pytest.mark.cluster
def test_each_manifest_is_what_kubernetes_takes() -> None:
    validation = import_module("kubernetes_validate")
    for manifest in manifests():
        validation.validate(manifest, KUBERNETES, strict=True)
    assert f"schemas of Kubernetes {KUBERNETES}" in " ".join(PAGE.split())


@pytest.mark.cluster
@pytest.mark.parametrize("launcher", ["K8sRunLauncher", "CeleryRunLauncher"])
def test_the_settings_of_a_launcher_are_those_that_it_takes(launcher: str) -> None:
    blocks = re.findall(r"```yaml\n(run_launcher:.*?)```", PAGE, re.DOTALL)
    (found,) = (
        one for one in map(yaml.safe_load, blocks) if one["run_launcher"]["class"] == launcher
    )
    assert validate_config(dagster_instance_config_schema(), found).success
    taken = getattr(import_module(found["run_launcher"]["module"]), launcher).config_type()
    shape = Shape(taken) if isinstance(taken, dict) else taken  # type: ignore[no-untyped-call]
    assert validate_config(shape, found["run_launcher"]["config"]).success
