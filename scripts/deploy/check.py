"""Lints the Dockerfile and the manifest beside this file, without Docker and without a cluster: `make lint-deploy`.

hadolint reads the Dockerfile. The claim and the pods are held against Kubernetes's own schemas, where a field that does
not exist is an error. KubeRay's resource has no schema in a package: the names of its fields are held against those of
KubeRay's API reference that stand here. A wheel is built of the files that the Docker build would get.
"""

import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
FIELDS: Final[Mapping[str, str]] = {
    "RayJob": "apiVersion kind metadata spec",
    "spec": "entrypoint backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished activeDeadlineSeconds suspend "
    "submissionMode submitterPodTemplate submitterConfig runtimeEnvYAML entrypointNumCpus entrypointNumGpus "
    "rayClusterSpec",
    "rayClusterSpec": "rayVersion enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs "
    "gcsFaultToleranceOptions authOptions suspend",
    "autoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts",
    "headGroupSpec": "template headService enableIngress rayStartParams serviceType",
    "workerGroupSpecs": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams template "
    "scaleStrategy numOfHosts",
}
"""Of `ray.io/v1`, KubeRay 1.5.1 and newer, by what they stand in."""


def problems_of_rayjob(job: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a RayJob, a line each; `job` is the manifest's document."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    parts = {"RayJob": [job], "spec": [spec], "rayClusterSpec": [cluster], "headGroupSpec": [head]}
    parts |= {"autoscalerOptions": [cluster.get("autoscalerOptions", {})], "workerGroupSpecs": workers}
    for name, several in parts.items():
        for part in several:
            if unknown := set(part) - set(FIELDS[name].split()):
                yield f"{name} has no field {', '.join(sorted(unknown))}; its fields are {FIELDS[name]}"
    images = set()
    for group in (head, *workers):
        for key, value in group["rayStartParams"].items():
            if not isinstance(value, str):
                yield f"rayStartParams.{key} is {value!r}, but should be a text"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]}
        yield from problems_of_schema(pod)
        images |= {container["image"] for container in pod["spec"]["containers"]}
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pinned and cluster["rayVersion"] != pinned[1]:
        yield f"rayVersion is {cluster['rayVersion']}, but the image has {pinned[1]}, as constraints.txt says"
    if len(images) > 1:
        yield f"head and workers need the same image; they have {', '.join(sorted(images))}"


def problems_of_schema(resource: Mapping[str, Any]) -> Iterator[str]:
    """What Kubernetes's schema says of a resource of its own."""
    try:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{resource['kind']}: {'.'.join(map(str, error.path))}: {error.message}"


def problems_of_manifest(text: str) -> Iterator[str]:
    """What is wrong with the manifest."""
    for resource in yaml.safe_load_all(text):
        yield from problems_of_rayjob(resource) if resource["kind"] == "RayJob" else problems_of_schema(resource)


def context(folder: Path) -> None:
    """Copy what the Docker build would get of the repository, by `Dockerfile.dockerignore`, into a folder."""
    lines = (HERE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    hidden = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=lambda _, names: {found for found in names for rule in hidden if fnmatch.fnmatch(found, rule)},
            )
        else:
            shutil.copy(ROOT / name, folder / name)


def main() -> int:
    """Lint everything; returns 1 where something is wrong."""
    wrong = subprocess.run([Path(sys.executable).with_name("hadolint"), HERE / "Dockerfile"], check=False).returncode
    for problem in problems_of_manifest((HERE / "rayjob.yaml").read_text(encoding="utf-8")):
        print(f"scripts/deploy/rayjob.yaml: {problem}")
        wrong = 1
    with tempfile.TemporaryDirectory() as made:
        source = Path(made) / "source"
        source.mkdir()
        context(source)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", made, str(source)]
        wrong = subprocess.run(build, check=False).returncode or wrong
    print("the deployment's files are in order" if not wrong else "see above")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
