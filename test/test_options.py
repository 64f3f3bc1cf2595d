"""Options: wrong values, reasons why meshing is off, and what is reported."""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import LIBS, TEST

ON = "mesh:true,mesh_period_ms:-1"
CLEAR = ("--clear-groups", "--bounding-set=-all")
MAY_TRACE = ("--clear-groups", "--inh-caps=-all,+sys_ptrace",
             "--ambient-caps=-all,+sys_ptrace", "--bounding-set=-all,+sys_ptrace")
# What allows userfaultfd, and is named where it is refused.
CURES = ("CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd", "/dev/userfaultfd")
# The number of the system call.
USERFAULTFD = {"x86_64": 323, "aarch64": 282}


def probe(program, conf, *args, **kwargs):
    run = program("probe").run(*args, conf=conf, **kwargs)
    assert run.returncode == 0, run
    return run


def sentences(text):
    return [line for line in text.splitlines() if line]


def descriptors(result, what):
    return [target for target in result["fds"] if what in target]


def unmeshed(result):
    """Whether meshing is off, and says so to whom asks for a pass."""
    mesh = result["mesh"]
    return not result["pass"] and mesh["off"] != "" and mesh["nmeshes"] == 0


def test_on(program):
    """The other tests here mean something: meshing works with these options."""
    run = probe(program, "abort_conf:true," + ON)
    mesh = run.json["mesh"]
    assert run.stderr == ""
    assert mesh["followers"] > 1000
    assert mesh["barrier"] == "move" and mesh["off"] == ""
    assert mesh["barrier_reason"] == ""
    assert descriptors(run.json, "memfd:jemalloc-mesh")


@pytest.mark.parametrize("conf", ["mesh:false", ""])
def test_off(program, conf):
    """Without mesh:true there is no memfd, no userfaultfd and no thread."""
    run = probe(program, conf)
    assert run.stderr == "" and unmeshed(run.json), run
    assert len(run.json["threads"]) == 1, run
    assert not descriptors(run.json, "memfd"), run
    assert not descriptors(run.json, "userfaultfd"), run


def test_background_thread(program):
    """mesh:true starts a background thread when there is something to do, unless the
    user said no; one that shall be there in any case is there from the start."""
    constantly = ON.replace("-1", "0")
    assert len(probe(program, constantly).json["threads"]) > 1
    assert len(probe(program, ON + ",background_thread:true").json["threads"]) > 2
    run = probe(program, constantly + ",background_thread:false")
    assert len(run.json["threads"]) == 1 and run.json["mesh"]["followers"] > 1000


@pytest.mark.parametrize("option", [
    "mesh:maybe",
    "mesh_period_ms:soon",
    "mesh_period_ms:-2",
    "mesh_barrier:wall",
    "mesh_max_maps:many",
    "mesh_random:often",
    "mesh_colour:green",
])
def test_wrong_value(program, option):
    """A wrong option is named, ignored, and does no harm."""
    run = probe(program, f"mesh:true,{option}")
    key, value = option.split(":")
    assert len(sentences(run.stderr)) == 1, run
    assert key in run.stderr and value in run.stderr, run
    assert run.json["bad"] == 0, run


def test_barrier_refused(program):
    """No barrier at all, which loses writes, is not to be had."""
    run = probe(program, ON + ",mesh_barrier:none")
    assert len(sentences(run.stderr)) == 1, run
    assert "mesh_barrier" in run.stderr and "none" in run.stderr, run
    assert run.json["mesh"]["barrier"] == "move", run


def test_hpa(program):
    """Slabs of the huge page allocator are no candidates; that is said."""
    run = probe(program, ON + ",hpa:true")
    assert len(sentences(run.stderr)) == 1 and "hpa" in run.stderr, run
    assert unmeshed(run.json) and "hpa" in run.json["mesh"]["off"], run


def test_statistics_json(program):
    """malloc_stats_print() reports as JSON what mallctl() does."""
    first, printed = probe(program, ON, "-s", "J").stdout.split("\n", 1)
    mesh = json.loads(first)["mesh"]
    printed = json.loads(printed)["jemalloc"]
    assert mesh["followers"] > 1000
    assert printed["stats"]["mesh"] == mesh
    arenas = [arena["mesh"] for number, arena in printed["stats.arenas"].items()
              if number.isdigit()]
    for name in ("nmeshes", "groups", "followers", "saved"):
        assert sum(arena[name] for arena in arenas) == mesh[name]
    assert printed["config"]["mesh"] is True
    assert printed["opt"]["mesh"] is True
    assert printed["opt"]["mesh_period_ms"] == -1


def test_statistics_text(program):
    """The same for people."""
    first, printed = probe(program, ON, "-s", "").stdout.split("\n", 1)
    section = printed.split("\nMeshing:\n", 1)[1]
    for name, value in json.loads(first)["mesh"].items():
        line = f'  {name}: "{value}"' if isinstance(value, str) else f"  {name}: {value}"
        assert re.search(f"^{line}$", section, re.M), (line, section)


def test_file_size_limit(program):
    """Where no large file may be made, as after ulimit -f, nothing is meshed."""
    run = probe(program, ON, before=["prlimit", "--fsize=1048576"])
    assert run.json["bad"] == 0 and run.json["mesh"]["nmeshes"] == 0, run
    assert run.json["mesh"]["nrefused"] > 0, run


@pytest.fixture
def as_nobody(program):
    """A function that probes as user nobody, who cannot read the build."""
    directory = Path(tempfile.mkdtemp(prefix="mesh-test-"))
    directory.chmod(0o755)
    shutil.copy(program("probe").path, directory)
    shutil.copy(LIBS["release"] / "libjemalloc.so.2", directory)

    def run(*setpriv, before=(), conf=ON):
        return probe(
            program, conf, at=directory / "probe", libs={"release": directory},
            before=[*before, "setpriv", "--reuid=nobody", "--regid=nogroup", *setpriv])

    yield run
    shutil.rmtree(directory)


def skip_if_permitted_to_all():
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() != "0\n":
        pytest.skip("vm.unprivileged_userfaultfd permits it to everyone here")


def test_not_permitted(as_nobody):
    """The program is meshed by the other barrier; statistics say why."""
    skip_if_permitted_to_all()
    run = as_nobody(*CLEAR)
    mesh = run.json["mesh"]
    assert run.stderr == "" and run.json["bad"] == 0, run
    assert mesh["barrier"] == "signal" and mesh["followers"] > 0, run
    assert all(cure in mesh["barrier_reason"] for cure in CURES), run
    assert not descriptors(run.json, "userfaultfd"), run


def test_not_permitted_but_asked_for(as_nobody):
    """One sentence names what to permit; the program runs on unmeshed."""
    skip_if_permitted_to_all()
    run = as_nobody(*CLEAR, conf=ON + ",mesh_barrier:userfaultfd")
    assert len(sentences(run.stderr)) == 1, run
    assert all(cure in run.stderr for cure in CURES), run
    assert unmeshed(run.json) and "userfaultfd" in run.json["mesh"]["off"], run
    assert not descriptors(run.json, "memfd"), run
    assert run.json["bad"] == 0, run


@pytest.mark.parametrize("error, reason", [
    ("EPERM", "may not use userfaultfd"), ("ENOSYS", "has no userfaultfd")])
def test_refused_by_seccomp(as_nobody, error, reason):
    """A container's filter takes away what a capability permits."""
    number = USERFAULTFD.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of the system call is not known here")
    run = as_nobody(*MAY_TRACE,
                    before=[sys.executable, TEST / "seccomp.py", number, error])
    mesh = run.json["mesh"]
    assert run.stderr == "" and run.json["bad"] == 0, run
    assert mesh["barrier"] == "signal" and mesh["followers"] > 0, run
    assert reason in mesh["barrier_reason"], run


def test_permitted_by_capability(as_nobody):
    """CAP_SYS_PTRACE alone is enough, as the sentence says."""
    run = as_nobody(*MAY_TRACE)
    assert run.stderr == "" and run.json["mesh"]["followers"] > 1000, run
    assert run.json["mesh"]["barrier"] == "move", run


def test_permitted_by_device(as_nobody):
    """So is access to /dev/userfaultfd."""
    # A device node of its own, in a mount namespace that nobody else sees.
    device = ("set -e; mount -t tmpfs tmpfs /mnt; "
              "mknod /mnt/userfaultfd c $(stat -c '0x%t 0x%T' /dev/userfaultfd); "
              "chmod 666 /mnt/userfaultfd; "
              "mount --bind /mnt/userfaultfd /dev/userfaultfd; exec \"$@\"")
    run = as_nobody(*CLEAR, before=["unshare", "--mount", "sh", "-c", device, "sh"])
    assert run.stderr == "" and run.json["mesh"]["followers"] > 1000, run
    assert run.json["mesh"]["barrier"] == "move", run


@pytest.mark.parametrize("barrier", ["signal", "auto"])
def test_no_proc(program, barrier):
    """Threads cannot be found without /proc; only who asks for that is told."""
    hide = "set -e; mount -t tmpfs tmpfs /proc; exec \"$@\""
    preload = f"LD_PRELOAD={LIBS['release'] / 'libjemalloc.so.2'}"
    run = program("probe").run(
        conf=f"{ON},mesh_barrier:{barrier}", at="/bin/true",
        before=["unshare", "--mount", "sh", "-c", hide, "sh", "env", preload])
    assert run.returncode == 0, run
    if barrier == "signal":
        assert len(sentences(run.stderr)) == 1 and "/proc" in run.stderr, run
    else:
        assert run.stderr == "", run
