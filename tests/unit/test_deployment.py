"""cluster/: every file against the schema of who reads it, and what is promised of all of them."""

import json
import os
import re
import subprocess
import time
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import fer_scale
from fer_scale import cli
from tests.unit.test_cli import parsed

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = sorted((CLUSTER / "kubernetes").glob("ray*.yaml"))
SCHEMAS = Path(os.environ.get("FER_SCALE_KUBERAY", ROOT.parent / "shared/schemas/kuberay"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's specification in a manifest."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for below in value.values():
            yield from pods(below)
    elif isinstance(value, list):
        for below in value:
            yield from pods(below)


def closed(schema: Any) -> Any:
    """A CRD's schema that refuses fields it does not know, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = bool(made.get("x-kubernetes-preserve-unknown-fields"))
    if made.pop("x-kubernetes-int-or-string", False):
        made = {"type": ["integer", "string"]}
    return made


@cache
def custom_resource(kind: str) -> dict[str, Any]:
    """KubeRay's definition of it, or a skip."""
    if not SCHEMAS.is_dir():
        pytest.skip("KubeRay's CRDs are not here; FER_SCALE_KUBERAY names their folder")
    text = (SCHEMAS / f"ray.io_{kind.lower()}s.yaml").read_text()
    found: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kuberay_takes_the_manifests(path: Path) -> None:
    (manifest,) = documents(path)
    definition = custom_resource(manifest["kind"])["spec"]
    group, version = manifest["apiVersion"].split("/")
    assert definition["group"] == group
    (schema,) = (one["schema"] for one in definition["versions"] if one["name"] == version)
    # not jsonschema.validate, which would check the schema, too, and take ten seconds for that
    validator = jsonschema.Draft202012Validator(closed(schema["openAPIV3Schema"]["properties"]["spec"]))
    validator.validate(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError, match="headGroup"):
        validator.validate({"headGroup": {}, **manifest["spec"]})


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_every_pod_is_bounded_unprivileged_and_looked_after(path: Path) -> None:
    (manifest,) = documents(path)
    found = list(pods(manifest))
    assert len(found) >= 2
    for pod in found:
        assert pod["serviceAccountName"] == "fer-scale"
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            limits = container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(limits)
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["image"].partition(":")[2].startswith(fer_scale.__version__)
            if container["name"] == "submitter":
                continue
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= set(container)
            assert container["envFrom"] == [{"secretRef": {"name": "fer-scale-s3"}}]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in pod["volumes"]}
    ray = next(iter(re.findall(r"rayVersion: (\S+)", path.read_text())))
    assert f"ray=={ray}\n" in (ROOT / "constraints.txt").read_text()
    assert "authOptions: {mode: token}" in path.read_text()
    named = {one["metadata"]["name"] for one in documents(CLUSTER / "kubernetes/access.yaml")}
    assert {"fer-scale", "fer-scale-s3", "fer-scale-endpoint"} == named


@pytest.mark.parametrize("name", ["rayjob-tune.yaml", "rayjob-label.yaml"])
def test_jobs_give_arguments_that_their_verb_takes(name: str) -> None:
    (manifest,) = documents(CLUSTER / "kubernetes" / name)
    python, job, *arguments = manifest["spec"]["entrypoint"].split()
    assert (python, job) == ("python", f"/app/jobs/{Path(job).name}")
    assert (ROOT / "jobs" / Path(job).name).exists()
    call = parsed(Path(job).stem, *arguments)
    assert isinstance(call, cli.Call)
    assert call.json
    assert manifest["spec"]["shutdownAfterJobFinishes"]


def test_serve_takes_the_services_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    from fer_scale.verbs.serve import app

    (manifest,) = documents(CLUSTER / "kubernetes/rayservice.yaml")
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"])).applications
    assert application.import_path == f"{app.__name__}:{app.build.__name__}"
    cpus = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
        for group in manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    )
    assert application.args["replicas"] < cpus, "a new version rolls in beside the old one"


def test_serve_takes_the_configuration_file(tmp_path: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.schema import ServeDeploySchema

    from fer_scale.errors import InputError
    from fer_scale.verbs.serve.app import build

    (document,) = documents(CLUSTER / "serve.yaml")
    (application,) = ServeDeploySchema.model_validate(document).applications
    (tmp_path / "token").write_text("0123456789abcdef")
    args = {**application.args, "bundle": str(tmp_path), "token_file": str(tmp_path / "token")}
    built = call_user_app_builder_with_args_if_necessary(build, args)
    assert built._bound_deployment._deployment_config.autoscaling_config.max_replicas == 8
    assert build({**args, "replicas": 2})._bound_deployment._deployment_config.autoscaling_config.min_replicas == 2
    assert build({**args, "replicas": 0})._bound_deployment._deployment_config.autoscaling_config.min_replicas == 0
    for wrong in ({"replicas": 9}, {"max_replicas": 0}, {"replica": 1}):
        with pytest.raises(InputError):
            build({**args, **wrong})


def test_ray_up_takes_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(CLUSTER / "aws/cluster.yaml")
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError, match="head_type"):
        validate_config({**config, "head_type": "head"})
    assert prepare_config(config)["provider"]["type"] == "aws"
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == 0
    assert fer_scale.__version__ in config["docker"]["image"]


@pytest.mark.parametrize("path", sorted((CLUSTER / "aws").glob("iam-*.json")), ids=lambda path: path.name)
def test_roles_may_change_only_what_is_theirs(path: Path) -> None:
    for statement in json.loads(path.read_text())["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all("*" not in action for action in actions)
        if statement["Resource"] == "*":
            assert statement["Sid"].startswith(("Look", "Once")), statement["Sid"]


def test_the_runtime_environment_is_the_packages_own_with_every_version_pinned() -> None:
    from ray.runtime_env import RuntimeEnv

    (given,) = documents(CLUSTER / "runtime_env.yaml")
    pins, *packages = RuntimeEnv(**given)["pip"]["packages"]
    assert pins == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[\[><=]", text)[0] for text in project["dependencies"]]
    assert packages == [name for name in needed if name != "ray"], "the image brings Ray"
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.replace("_", "-") for name in packages} <= {name.replace("_", "-") for name in pinned}


def test_what_a_job_uploads_is_small(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = package.namelist()
    assert (tmp_path / "package.zip").stat().st_size < 5 * 2**18
    assert {"jobs/label.py", "fer_scale/cli.py", "constraints.txt"} <= set(names)
    assert {name.split("/")[0] for name in names}.isdisjoint({"tests", "docs", "benchmarks", ".venv"})
    assert {verb.stem for verb in (ROOT / "jobs").glob("*.py")} == set(fer_scale.__all__) & set(cli.HOW_TO_GO_ON)


@pytest.mark.parametrize("name", ["slurm.sh"])
def test_scripts_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)


def test_kuberay_finds_the_port_to_make_a_service_of() -> None:
    (manifest,) = documents(CLUSTER / "kubernetes/rayservice.yaml")
    (head,) = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "serve", "containerPort": 8000} in head["ports"]


def test_slurm_tells_the_verb_to_stop_and_gives_its_code(tmp_path: Path) -> None:
    stubs = {
        "activate": "",
        "scontrol": "echo here",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
        "hostname": "echo 127.0.0.1",
        "ray": '[ "$1" = health-check ] || exec sleep 1',
        "fer-scale": f"trap 'echo stopped $1; exit 130' TERM\necho begun > {tmp_path}/begun\n"
        "for _ in $(seq 100); do sleep 0.1; done",
    }
    (tmp_path / "bin").mkdir()
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2"}
    found = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FER_SCALE_ENV": str(tmp_path), **job}
    script = subprocess.Popen([CLUSTER / "slurm.sh", "label", "a", "b"], env=found, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    script.terminate()
    out, _ = script.communicate(timeout=20)
    assert (script.returncode, out) == (130, "stopped label\n")


def test_the_image_has_what_it_copies() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists()
            assert source in allowed
    assert text.count("USER 1000:1000") == text.count(" AS cpu") + text.count(" AS gpu")
