"""The files of Ray's cluster launcher pass Ray's own checks, and the providers know the fields that Ray does not."""

from __future__ import annotations

import copy
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "cluster").glob("*.yaml") if not path.name.startswith("kuberay"))
CLOUDS = ("aws", "gcp")
SOURCE = "~/amago_ray_source"

# Fields that node_config may have, down to the ones in use: a nested table where an object is checked further, None
# where any value goes, a set where the provider takes only these words.
Fields = dict[str, "Fields | frozenset[str] | None"]

# EC2 API reference, action RunInstances, as boto3's create_instances takes it. Ray sets counts, keys, subnets and tags.
AWS_FIELDS: Fields = {
    "BlockDeviceMappings": {
        "DeviceName": None,
        "NoDevice": None,
        "VirtualName": None,
        "Ebs": {
            "DeleteOnTermination": None,
            "Encrypted": None,
            "Iops": None,
            "KmsKeyId": None,
            "SnapshotId": None,
            "Throughput": None,
            "VolumeSize": None,
            "VolumeType": frozenset({"gp2", "gp3", "io1", "io2", "sc1", "st1", "standard"}),
        },
    },
    "EbsOptimized": None,
    "IamInstanceProfile": {"Arn": None, "Name": None},
    "ImageId": None,
    "InstanceMarketOptions": {
        "MarketType": frozenset({"spot", "capacity-block"}),
        "SpotOptions": {
            "BlockDurationMinutes": None,
            "InstanceInterruptionBehavior": frozenset({"hibernate", "stop", "terminate"}),
            "MaxPrice": None,
            "SpotInstanceType": frozenset({"one-time", "persistent"}),
            "ValidUntil": None,
        },
    },
    "InstanceType": None,
    "KeyName": None,
    "MetadataOptions": None,
    "Placement": None,
    "SecurityGroupIds": None,
    "SubnetId": None,
    "TagSpecifications": None,
    "UserData": None,
}

# Compute Engine REST reference, method instances.insert, resource Instance. Ray sets names, networks, keys and labels.
GCP_FIELDS: Fields = {
    "canIpForward": None,
    "deletionProtection": None,
    "disks": {
        "autoDelete": None,
        "boot": None,
        "deviceName": None,
        "initializeParams": {
            "diskName": None,
            "diskSizeGb": None,
            "diskType": None,
            "labels": None,
            "sourceImage": None,
            "sourceSnapshot": None,
        },
        "interface": frozenset({"NVME", "SCSI"}),
        "mode": frozenset({"READ_ONLY", "READ_WRITE"}),
        "source": None,
        "type": frozenset({"PERSISTENT", "SCRATCH"}),
    },
    "guestAccelerators": {"acceleratorCount": None, "acceleratorType": None},
    "labels": None,
    "machineType": None,
    "metadata": None,
    "minCpuPlatform": None,
    "networkInterfaces": None,
    "scheduling": {
        "automaticRestart": None,
        "instanceTerminationAction": frozenset({"DELETE", "STOP"}),
        "maxRunDuration": None,
        "onHostMaintenance": frozenset({"MIGRATE", "TERMINATE"}),
        "preemptible": None,
        "provisioningModel": frozenset({"FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"}),
    },
    "serviceAccounts": None,
    "shieldedInstanceConfig": None,
    "tags": None,
}
FIELDS = {"aws": AWS_FIELDS, "gcp": GCP_FIELDS}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


def check_fields(value: Any, fields: Fields | frozenset[str] | None, path: str) -> None:
    """Raises ValueError for a field or word that the table does not have. A list is checked item by item."""
    if isinstance(value, list):
        for item in value:
            check_fields(item, fields, f"{path}[]")
    elif isinstance(fields, frozenset):
        if value not in fields:
            raise ValueError(f"{path}={value!r}: it must be one of {sorted(fields)}")
    elif fields is not None:
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}={value!r}: it must be an object")
        for key, child in value.items():
            if key not in fields:
                raise ValueError(f"{path}.{key}: no such field")
            check_fields(child, fields[key], f"{path}.{key}")


def commands(config: Mapping[str, Any]) -> list[str]:
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def test_the_files_are_these() -> None:
    assert [path.stem for path in FILES] == ["aws", "gcp", "local"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_accepts_the_file(path: Path) -> None:
    validate_config(prepare_config(load(path.stem)))


def test_the_check_notices_a_misspelt_field() -> None:
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config(load("aws") | {"idle_timeout_minuts": 10}))


@pytest.mark.parametrize("name", CLOUDS)
def test_the_provider_knows_every_field(name: str) -> None:
    for node_type, settings in load(name)["available_node_types"].items():
        check_fields(settings["node_config"], FIELDS[name], node_type)


def test_the_field_check_notices_mistakes() -> None:
    node = load("gcp")["available_node_types"]["rollout"]["node_config"]
    for path, value in ((("machinetype",), "x"), (("scheduling", "provisioningModel"), "spot"), (("scheduling",), [1])):
        wrong: Any = copy.deepcopy(node)
        target = wrong
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        with pytest.raises(ValueError, match=path[-1]):
            check_fields(wrong, GCP_FIELDS, "rollout")


@pytest.mark.parametrize("name", CLOUDS)
def test_the_learner_stays_and_rollout_nodes_come_and_go(name: str) -> None:
    config = load(name)
    learner, rollout = config["available_node_types"]["learner"], config["available_node_types"]["rollout"]
    assert config["head_node_type"] == "learner"
    assert (learner["labels"], rollout["labels"]) == ({"pool": "learner"}, {"pool": "rollout"})
    assert 0 < rollout["min_workers"] < rollout["max_workers"]
    assert rollout["max_workers"] + 1 == config["max_workers"], "autoscaler 2 counts the head among them"
    spot = {"aws": ("InstanceMarketOptions", "MarketType", "spot"), "gcp": ("scheduling", "provisioningModel", "SPOT")}
    key, option, word = spot[name]
    assert rollout["node_config"][key][option] == word
    assert learner["node_config"].get(key, {}).get(option) != word


def test_own_machines_are_left_to_the_autoscaler_that_starts_them_all() -> None:
    """max_workers cannot be more than there are worker_ips, and autoscaler 2 counts the head among them."""
    [start] = [command for command in load("local")["head_start_ray_commands"] if "ray start" in command]
    assert "RAY_enable_autoscaler_v2=0 ray start" in start


def test_everything_is_in_one_region() -> None:
    provider = load("aws")["provider"]
    assert provider["availability_zone"][:-1] == provider["region"]
    assert any(f".efs.{provider['region']}.amazonaws.com:" in command for command in load("aws")["setup_commands"])
    provider = load("gcp")["provider"]
    assert provider["availability_zone"].rpartition("-")[0] == provider["region"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_package_and_the_token_get_to_every_node(path: Path) -> None:
    config = load(path.stem)
    mounts = config["file_mounts"]
    for remote, local in mounts.items():
        if remote.startswith((SOURCE, "~/configs")):
            assert (ROOT / local).exists(), local
    # Read by pyproject.toml, or by pip on the way.
    for needed in ("amago_ray", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt"):
        assert mounts[f"{SOURCE}/{needed}"] == needed
    assert mounts["~/configs"] == "configs", "a submitted script runs in ~, where it looks for configs/"
    assert "~/amago_ray" not in mounts, "Python would take it for the package"
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if "ray start" in command)
    assert any("RAY_AUTH_MODE=token" in command and "~/.bashrc" in command for command in config["setup_commands"])
    assert any("RAY_ADDRESS=auto" in command for command in config["head_setup_commands"])
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert len(installs) == 2
    assert all(f"-c {SOURCE}/constraints.txt" in command for command in installs)


@pytest.mark.processes
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_is_a_shell_command(path: Path) -> None:
    for command in commands(load(path.stem)):
        result = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


def test_nodes_are_set_up_alike() -> None:
    def of(name: str) -> list[str]:
        every = load(name)["setup_commands"]
        return every[[("ln -sfn" in command) for command in every].index(True) :]

    assert of("local") == of("aws") == of("gcp")


@pytest.mark.processes
def test_the_shell_setup_puts_what_is_needed_into_bashrc(tmp_path: Path) -> None:
    config = load("local")
    lines = [c for c in (*config["setup_commands"], *config["head_setup_commands"]) if ".bashrc" in c]
    show = "source ~/.bashrc; echo $RAY_AUTH_MODE $RAY_ADDRESS ${PATH%%:*}"
    script = "; ".join(f"( {line} )" for line in [*lines, *lines]) + "; " + show  # twice: `ray up` may run again
    out = subprocess.run(["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, text=True,
                         capture_output=True, check=True)  # fmt: skip
    assert shlex.split(out.stdout) == ["token", "auto", f"{tmp_path}/amago_ray_env/bin"]
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 2
