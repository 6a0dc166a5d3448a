"""The launch files of Kubernetes and SkyPilot: what they start, and which exit codes start it again."""

import math
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest
import yaml

from jworld.training import emergency
from jworld.utils import errors

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SCRIPTS / name).read_text())
    return content


def test_jobset_starts_every_host_of_the_slice() -> None:
    spec = load("jobset.yaml")["spec"]
    (job,) = spec["replicatedJobs"]
    pods = job["template"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert pods["parallelism"] == pods["completions"] == hosts == 16
    program, flag, module, *arguments = container["command"]
    assert (program, flag, module) == ("python", "-m", "jworld.train")
    assert {argument.partition("=")[0] for argument in arguments} == {"--config", "--workdir", "--config.data.records"}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert all(mounted["shared"] in argument for argument in arguments[1:])


def test_jobset_has_a_folder_in_memory_for_emergency_checkpoints() -> None:
    text = (SCRIPTS / "jobset.yaml").read_text()
    uncommented, count = re.subn(
        r"^( +)# (- \{name: memory|- --config\.checkpoint\.emergency)", r"\1\2", text, flags=re.M
    )
    assert count == 3
    (job,) = yaml.safe_load(uncommented)["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted["memory"] == emergency.EmergencyConfig().folder
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == mounted.keys()
    # Outlives the pod.
    assert volumes["memory"]["hostPath"] == {"path": "/dev/shm/jworld", "type": "DirectoryOrCreate"}
    assert "--config.checkpoint.emergency.every=50" in container["command"]


def test_jobset_ends_at_mistakes_of_the_user_alone() -> None:
    spec = load("jobset.yaml")["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    pods = spec["replicatedJobs"][0]["template"]["spec"]
    (failure,) = pods["podFailurePolicy"]["rules"]
    assert failure["action"] == "FailJob"
    assert failure["onExitCodes"]["values"] == [2]
    # A failed host ends its job at once, and JobSet starts all of them again.
    assert pods["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_sky_starts_one_process_per_node(rank: int, tmp_path: pathlib.Path) -> None:
    task = load("sky.yaml")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", task["run"]],
        cwd=tmp_path,
        env={**os.environ, **task["envs"], **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    module, *arguments = result.stdout.split("\n")[1:-1]
    assert module == "jworld.train"
    assert arguments == [
        *task["envs"]["TRAIN"].split(),
        "--coordinator=10.0.0.1:8476",
        "--num-processes=2",
        f"--process-id={rank}",
    ]
    assert task["secrets"] == {"JWORLD_TOKEN": None}
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == {1, errors.RESTART}
