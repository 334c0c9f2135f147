"""Two hosts, made of network namespaces: the cable cut, one frozen, one that cannot write.

Slow, and skipped where namespaces may not be made (they need root and `ip`).
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import ROOT, tiny
from tests.runtime.test_real_faults import errors, steps
from unit_jax.runtime import exits

pytestmark = pytest.mark.slow

ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}
FREEZE = 60  # seconds within which the others must have noticed


class Host:
    """A namespace of its own for network, host name and mounts; ends with `close`."""

    def __init__(self, name: str, hosts_file):
        self.name = name
        script = f"hostname {name} && mount --bind {hosts_file} /etc/hosts && echo up && sleep 3000"
        self._keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        self.is_up = self._keeper.stdout.readline() == "up\n"

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._keeper.pid), "--net", "--uts", "--mount",
                f"--wd={ROOT}", *command]  # fmt: skip

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True, capture_output=True)

    def adopt(self, link: str) -> None:
        """Takes an end of a cable."""
        subprocess.run(["ip", "link", "set", link, "netns", str(self._keeper.pid)], check=True)
        self.run("ip", "link", "set", link, "name", "cable")
        self.run("ip", "address", "add", f"{ADDRESSES[self.name]}/24", "dev", "cable")
        for name in ("lo", "cable"):
            self.run("ip", "link", "set", name, "up")

    def close(self) -> None:
        os.killpg(self._keeper.pid, signal.SIGKILL)
        self._keeper.communicate()


@pytest.fixture
def hosts(tmp_path):
    if not all(map(shutil.which, ("ip", "unshare", "nsenter", "prlimit"))):
        pytest.skip("needs ip, unshare, nsenter and prlimit")
    file = tmp_path / "hosts"
    lines = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    file.write_text("127.0.0.1 localhost\n" + "".join(lines))
    both = [Host(name, file) for name in ADDRESSES]
    ends = [f"end{i}-{os.getpid() % 10_000}" for i in range(2)]
    cable = ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]
    try:
        if not all(host.is_up for host in both) or subprocess.run(cable).returncode:
            pytest.skip("namespaces may not be made here")
        for host, end in zip(both, ends, strict=True):
            host.adopt(end)
        yield both
    finally:
        for host in both:
            host.close()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"), ("qqp",))


def start(host: Host, process: int, data_dir, workdir, *flags: str) -> subprocess.Popen:
    group = dict(coordinator="left:4567", processes=2, process=process)
    command = [
        sys.executable, "-m", "unit_jax.main",
        f"--config=tests/runtime/test_real_faults.py:{data_dir}", f"--workdir={workdir}",
        "--config.mesh.fsdp=2", *flags,
        *(f"--config.distributed.{key}={value}" for key, value in group.items()),
    ]  # fmt: skip
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(host.inside(*command), cwd=ROOT, env=environment, **pipes)


def newest(workdir) -> int:
    found = (workdir / "checkpoints").glob("*")
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def until_saved(pair, workdir, step: int) -> None:
    while newest(workdir) < step:
        for process in pair:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def told(process: subprocess.Popen, since: float) -> str:
    """The line with which a process ends, soon enough."""
    err = process.communicate(timeout=300)[1]
    assert time.monotonic() - since < FREEZE, err
    errors(err)  # no traceback
    (line,) = [line for line in err.splitlines() if "stops after step" in line]
    return line


@pytest.mark.parametrize("fault", ["cable cut", "frozen", "full"])
def test_what_happens_to_one_of_two_hosts(hosts, data_dir, tmp_path, fault):
    """Both end with a line each that names the newest checkpoint, which is whole."""
    workdir = tmp_path / "run"
    pair = [start(host, i, data_dir, workdir) for i, host in enumerate(hosts)]
    try:
        until_saved(pair, workdir, 20)
        since = time.monotonic()
        if fault == "cable cut":
            hosts[0].run("ip", "link", "set", "cable", "down")
            lines = [told(process, since) for process in pair]
        elif fault == "frozen":
            pair[1].send_signal(signal.SIGSTOP)
            lines = [told(pair[0], since)]
            pair[1].send_signal(signal.SIGCONT)
            lines.append(told(pair[1], time.monotonic()))
        else:  # from now on no file of this process grows
            subprocess.run(["prlimit", "--pid", str(pair[1].pid), "--fsize=0:"], check=True)
            lines = [told(process, since) for process in pair]
            assert pair[1].returncode == exits.DISK
            assert "a checkpoint could not be written" in lines[1]
        assert 0 not in [process.returncode for process in pair]
        for index, line in enumerate(lines):
            assert line.startswith(f"process {index} of 2 ({hosts[index].name}) stops after step")
        if fault != "full":
            assert "process 1 was lost" in lines[0] and "process 0 was lost" in lines[1]
        assert f"newest checkpoint: {workdir}/checkpoints/{newest(workdir)};" in lines[0]
    finally:
        for process in pair:
            process.kill()
    if fault == "cable cut":
        hosts[0].run("ip", "link", "set", "cable", "up")
    saved = newest(workdir)
    until = f"--config.train.steps={saved + 2}"
    pair = [start(host, i, data_dir, workdir, until) for i, host in enumerate(hosts)]
    outputs = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert f"continuing from step {saved} in " in outputs[0][0]
    assert steps(workdir) == list(range(1, saved + 3))
