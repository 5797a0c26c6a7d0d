"""Machines of one's own, made of this computer's namespaces: enough of a machine for Ray's cluster launcher.

    account = prepared_account(cache)
    with own_machines(account, runs, ["head", "worker1"]) as machines:
        machines.launcher.run("ray", "up", "cluster.yaml", "--yes")
        machines.cut_off("worker1")

Each has its own network address on a switch, host name, processes, home directory, /tmp, /run and /dev/shm, and an ssh
server. The rest of the file system is this computer's, and cannot be written to. Nothing reaches the outside. All of it
goes with the process that made it, even when that is killed: the kernel takes down namespaces that nobody is in.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from system.processes import wait_until

ROOT = Path(__file__).parents[2]
HOME = "/mnt/home"
RUNS = "/mnt/amago_ray/runs"
KEY = ".ssh/id_ed25519"  # in the launcher's home
NETWORK = "10.77.0"
NAMESPACES = ("--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc")
REQUIRED = {"sshd": "openssh-server", "ip": "iproute2", "rsync": "rsync"}
OF_THEIR_OWN = ("/mnt", "/run", "/tmp")  # folders of a machine, where the computer has others
SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The machine's first process becomes its ssh server. The mounts come from the outside before their places are covered.
BOOT = f"""
set -euo pipefail
name=$1 account=$2 runs=$3 given=$4
mount -t tmpfs tmpfs /mnt
mkdir -p {RUNS} {HOME} /mnt/own/upper /mnt/own/work
cp -a "$given/." /mnt/own
mount --bind "$runs" {RUNS}
mount -t overlay overlay -o lowerdir="$account",upperdir=/mnt/own/upper,workdir=/mnt/own/work {HOME}
cp -a /etc/skel/. {HOME}
mv /mnt/own/home {HOME}/.ssh
sed 's#^root:.*#root:*:0:0:root:{HOME}:/bin/bash#' /etc/passwd > /mnt/own/passwd
mount --bind /mnt/own/passwd /etc/passwd
mount --bind /mnt/own/hosts /etc/hosts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount -o remount,bind,ro /
hostname "$name"
ip link set lo up
mkdir /run/sshd
cd /
exec "$(command -v sshd)" -D -e -f /mnt/own/sshd_config
"""

# Without a way out, pip finds everything installed but what the package is built with, which lies in ~/wheels.
SSHD_CONFIG = f"""
HostKey /mnt/own/host_key
PidFile none
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PrintLastLog no
SetEnv PIP_NO_INDEX=1 PIP_FIND_LINKS={HOME}/wheels PIP_CONFIG_FILE={os.devnull}
"""

# Runs a command where the folder is the home directory, at the path that it will have on the machines.
PREPARE = f"""
set -euo pipefail
account=$1
mount -t tmpfs tmpfs /mnt
mkdir -p {RUNS} {HOME}
mount --bind "$account" {HOME}
cd
bash --login -c -i "$2"
"""


def check_requirements() -> None:
    """Raises RuntimeError, with what to do, unless this computer can play several machines."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [package for program, package in REQUIRED.items() if shutil.which(program, path=path) is None]
    if missing:
        raise RuntimeError(f"machines of one's own need more programs: apt-get install {' '.join(missing)}")
    if subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True).returncode:
        raise RuntimeError("machines of one's own are made of namespaces and mounts: run this as root")
    hidden = next((folder for folder in OF_THEIR_OWN if ROOT.is_relative_to(folder)), None)
    if hidden is not None:
        raise RuntimeError(
            f"machines of one's own have a {hidden} of their own, and {ROOT} lies in it: move it elsewhere"
        )


def prepared_account(cache: Path) -> Path:
    """A home directory in which local.yaml's setup commands have installed everything but the package itself.

    They run here with this computer's network and pip, once for each version of what they depend on. Only torch comes
    from the tests' own environment, so that its build (CPU or CUDA) is the same.
    """
    config = yaml.safe_load((ROOT / "cluster/local.yaml").read_text())
    told = [(ROOT / name).read_text() for name in ("constraints.txt", "pyproject.toml")]
    told += [*config["setup_commands"], sys.version, importlib.metadata.version("torch")]
    account = cache / hashlib.sha256("\0".join(told).encode()).hexdigest()[:12]
    if account.is_dir():
        return account
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        home = Path(unfinished, "home")
        copy_file_mounts(config["file_mounts"], home)
        in_account(home, f"{sys.base_prefix}/bin/python3 -m venv ~/amago_ray_env")
        [packages] = home.glob("amago_ray_env/lib/*/site-packages")
        copy_distribution("torch", packages)
        for command in config["setup_commands"]:
            in_account(home, command)
        needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        pip = "~/amago_ray_env/bin/python -m pip"
        in_account(home, f"{pip} download --no-deps -d ~/wheels '{' '.join(needed)}'")
        in_account(home, f"{pip} uninstall --yes amago_ray")
        for left in home.iterdir():
            if left.name not in ("amago_ray_env", "wheels"):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        home.rename(account)
    return account


def copy_file_mounts(mounts: Mapping[str, str], home: Path) -> None:
    """What `ray up` would copy there, for those that come from the repository."""
    for remote, local in mounts.items():
        source, target = ROOT / local, home / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.is_file():
            shutil.copy2(source, target)


def copy_distribution(name: str, packages: Path) -> None:
    """Copy one installed distribution of this Python's environment, without what it depends on, and without scripts."""
    for file in importlib.metadata.distribution(name).files or ():
        if ".." not in file.parts:
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), target)


def in_account(home: Path, command: str) -> None:
    """Run a command where this folder is the home directory. Raises RuntimeError with its output when it fails."""
    result = subprocess.run(
        ["unshare", "--mount", "bash", "-c", PREPARE, "prepare", str(home), command],
        env=os.environ | {"HOME": HOME, "PIP_NO_CACHE_DIR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{command}\nended with {result.returncode}:\n{result.stdout}")


@dataclass(frozen=True)
class Machine:
    """One machine, seen from outside."""

    name: str
    address: str
    pid: int  # of its first process

    @property
    def home(self) -> Path:
        return Path(f"/proc/{self.pid}/root{HOME}")

    def command(self, *words: str) -> list[str]:
        """The command line that runs this one on the machine, in the repository, with a clean environment."""
        path = f"{Path(sys.executable).parent}:{SBIN}"
        env = [f"HOME={HOME}", f"PATH={path}", "LANG=C.UTF-8", "RAY_USAGE_STATS_ENABLED=0"]
        enter = ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid", "--"]
        return [*enter, "env", "--ignore-environment", f"--chdir={ROOT}", *env, *words]

    def run(self, *words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, and return its exit status and everything that it printed as `stdout`."""
        return subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def processes(self) -> list[str]:
        """Command lines of all its processes, but for the ssh server's."""
        own = os.readlink(f"/proc/{self.pid}/ns/pid")
        lines = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and process.name() != "sshd":
                    lines.append(" ".join(process.cmdline()) or f"[{process.name()}]")
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended meanwhile, or is not ours to look at
        return lines


@dataclass(frozen=True)
class Machines:
    """A launcher, which the switch belongs to, and the machines of the cluster by name."""

    launcher: Machine
    hosts: Mapping[str, Machine]

    def cut_off(self, name: str) -> None:
        """Take down the machine's link: it goes on and hears nothing, as if its cable were pulled."""
        in_network(self.launcher, "ip", "link", "set", name, "down")

    def reconnect(self, name: str) -> None:
        """Bring the link up again."""
        in_network(self.launcher, "ip", "link", "set", name, "up")


@contextmanager
def own_machines(account: Path, runs: Path, names: Sequence[str]) -> Iterator[Machines]:
    """Machines of these names, with copies of the home directory `account`, and a launcher with an empty one.

    All of them see the folder `runs` under the path that cluster/local.yaml expects.
    """
    addresses = {name: f"{NETWORK}.{10 + i}" for i, name in enumerate(["launcher", *names])}
    with ExitStack() as stack:
        given = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given.chmod(0o755)
        empty = given / "empty"
        empty.mkdir()
        write_identity(given, addresses)
        machines = {
            name: stack.enter_context(machine(name, address, empty if name == "launcher" else account, runs, given))
            for name, address in addresses.items()
        }
        launcher = machines.pop("launcher")
        in_network(launcher, "ip", "link", "add", "switch", "type", "bridge")
        in_network(launcher, "ip", "address", "add", f"{launcher.address}/24", "dev", "switch")
        in_network(launcher, "ip", "link", "set", "switch", "up")
        for host in machines.values():
            peer = ["peer", "name", "eth0", "netns", str(host.pid)]
            in_network(launcher, "ip", "link", "add", host.name, "type", "veth", *peer)
            in_network(launcher, "ip", "link", "set", host.name, "master", "switch", "up")
            in_network(host, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            in_network(host, "ip", "link", "set", "eth0", "up")
            in_network(host, "ip", "route", "add", "default", "via", launcher.address)
        yield Machines(launcher, machines)


def write_identity(folder: Path, addresses: Mapping[str, str]) -> None:
    """What every machine gets: the ssh server's settings and key, names of the others, and the account's keys."""
    keys = folder / "home"
    keys.mkdir(mode=0o700)
    for key in (folder / "host_key", keys / Path(KEY).name):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (keys / Path(KEY).name).with_suffix(".pub").rename(keys / "authorized_keys")
    (folder / "sshd_config").write_text(SSHD_CONFIG)
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")


@contextmanager
def machine(name: str, address: str, account: Path, runs: Path, given: Path) -> Iterator[Machine]:
    """One machine with a running ssh server, and no link to anywhere yet."""
    words = [name, str(account), str(runs), str(given)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            # The machine ends with this process, and all that is on it with its first one.
            ["setpriv", "--pdeathsig=KILL", "unshare", "--kill-child", *NAMESPACES, "bash", "-c", BOOT, "boot", *words],
            env={"PATH": SBIN},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def serves() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"machine {name} did not start:\n{log.read()}")
            return any(is_listening(child.pid) for child in psutil.Process(process.pid).children())

        try:
            wait_until(serves, f"the ssh server of {name} is not there", timeout_s=20.0)
            [first] = psutil.Process(process.pid).children()
            yield Machine(name, address, first.pid)
        finally:
            process.kill()
            process.wait()


def is_listening(pid: int, port: int = 22) -> bool:
    """Whether this port is open in the network that a process sees."""
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


def in_network(machine: Machine, *words: str) -> None:
    """Run a command of this computer in a machine's network."""
    subprocess.run(["nsenter", f"--target={machine.pid}", "--net", *words], check=True)


def cluster_file(machines: Machines, head: str) -> dict[str, Any]:
    """cluster/local.yaml with what is marked CHANGE filled in for these machines."""
    config = yaml.safe_load((ROOT / "cluster/local.yaml").read_text())
    addresses = {name: host.address for name, host in machines.hosts.items()}
    config["provider"]["head_ip"] = addresses.pop(head)
    config["provider"]["worker_ips"] = list(addresses.values())
    config["auth"] = {"ssh_user": "root", "ssh_private_key": f"~/{KEY}"}
    return config
