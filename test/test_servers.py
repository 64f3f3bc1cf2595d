"""Who meshes, and when: programs that become daemons, fork, purge, have one thread, or
do not fragment.  Runs servers.c, which hardly ever asks for a pass, and preloads into
others.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from conftest import LIBS

MESH = "abort_conf:true,mesh:true"
BARRIERS = ("auto", "signal")


def run(program, scenario, conf=MESH, *args, **kwargs):
    result = program("servers").run(scenario, *args, conf=conf, **kwargs)
    assert result.returncode == 0 and result.json["bad"] == 0, result
    return result.json


@pytest.fixture(scope="module")
def undisturbed(program):
    """What a program comes to that has never forked, by barrier."""
    return {barrier: run(program, "live", f"{MESH},mesh_barrier:{barrier}")
            for barrier in BARRIERS}


def test_one_thread_until_there_is_something_to_do(undisturbed):
    """Then there are more, unless one thread has nobody to stop."""
    for barrier, seen in undisturbed.items():
        assert seen["start"]["threads"] == 1, barrier
        assert (seen["idle"]["threads"] > 1) == (barrier == "auto")
        assert seen["idle"]["mesh"]["nmeshes"] > 100, seen
    assert undisturbed["auto"]["start"]["fds"] < undisturbed["auto"]["idle"]["fds"]
    assert undisturbed["auto"]["start"]["mesh"]["barrier"] == "auto"


def test_crowd(program):
    """Threads that free all at once and then sleep are noticed in time.

    Where they waited for each other's locks to look whether there is something to do, and
    did not look again for 256 times as long, 3 of 5 such programs were never meshed.
    """
    seen = run(program, "crowd")
    assert seen["idle"]["mesh"]["nmeshes"] > 10000, seen


@pytest.mark.parametrize("barrier", BARRIERS)
def test_daemon(program, undisturbed, barrier):
    """A process that forked once gives back what others do."""
    seen = run(program, "daemon", f"{MESH},mesh_barrier:{barrier}")
    assert seen["start"]["threads"] == 1
    # The signal's one thread meshes when it runs, and not soon after a fork.
    assert barrier == "signal" or seen["idle"]["mesh"]["nmeshes"] > 100, seen
    assert seen["idle"]["physical"] < 1.15 * undisturbed[barrier]["idle"]["physical"]


def test_daemon_of_few_events(program):
    """So does one whose caches answer nearly all.  Where only events of arenas ticked,
    nothing was meshed in 4 of 5 runs."""
    seen = run(program, "quiet")
    assert seen["start"]["threads"] == 1 < seen["idle"]["threads"], seen
    assert seen["idle"]["mesh"]["nmeshes"] > 100, seen


def test_workers(program, cgroup):
    """Workers that share their parent's heap keep it shared, and have no thread.  Where
    all that is free counted, shared or not, servers.c counted all six as bad, and they
    needed 1.13 times as much as with stock.  What waits to be purged, which is left to
    chance, does not count."""
    decay = "dirty_decay_ms:0,muzzy_decay_ms:0"
    stock, mesh = (
        run(program, "workers", conf, cgroup.usage, lib=lib, before=cgroup.enter)
        for lib, conf in (("stock", decay), ("release", f"{MESH},{decay}")))
    assert mesh["peak"] < 1.03 * stock["peak"], (mesh, stock)
    assert mesh["mean"] < 1.03 * stock["mean"], (mesh, stock)


def test_grandchild(program):
    """So does one that forked twice with a heap that is meshed."""
    seen = run(program, "grandchild")
    assert seen["begun"]["threads"] == 1 < seen["idle"]["threads"], seen
    assert seen["idle"]["mesh"]["nmeshes"] > seen["begun"]["mesh"]["nmeshes"], seen


@pytest.mark.parametrize("barrier", BARRIERS)
def test_children_that_end_soon(program, barrier):
    """Whoever only reads what it sees has no thread; servers.c counts that as bad."""
    run(program, "children", f"{MESH},mesh_barrier:{barrier}")


@pytest.mark.parametrize("barrier", BARRIERS)
def test_purge(program, barrier):
    """arena.<i>.purge takes as long as with stock jemalloc, and slabs mesh, and all is
    given back, nevertheless."""
    stock = run(program, "purge", lib="stock", conf="")
    seen = run(program, "purge", f"{MESH},narenas:1,mesh_barrier:{barrier}")
    assert seen["purge_ms"] < max(20, 2 * stock["purge_ms"])
    assert seen["idle"]["mesh"]["nmeshes"] > 100
    assert seen["freed"]["mesh"]["saved"] == seen["freed"]["mesh"]["store"] == 0


@pytest.mark.parametrize("conf", [
    "", ",mesh_barrier:signal", ",background_thread:false", ",mesh_period_ms:-1",
    ",mesh_period_ms:-1,background_thread:true"])
def test_dead(program, conf):
    """When all is freed, all leaves the store soon, whoever does that."""
    seen = run(program, "dead", MESH + ",narenas:1" + conf)
    assert seen["meshed"]["mesh"]["followers"] > 1000, seen
    assert seen["dead"]["mesh"]["saved"] == seen["dead"]["mesh"]["store"] == 0, seen


def test_dead_slowly(program):
    """The same where slabs that die one by one have used up the mappings."""
    seen = run(program, "dead_slowly", MESH + ",narenas:1,mesh_max_maps:2000")
    assert seen["meshed"]["mesh"]["mappings"] > 1800, seen
    assert seen["dead"]["mesh"]["saved"] == seen["dead"]["mesh"]["store"] == 0, seen
    assert seen["mappings"] < 400, seen


def test_frozen(program):
    """What a fork has frozen counts as the store's for as long as it has memory."""
    seen = run(program, "frozen",
               MESH + ",narenas:1,mesh_period_ms:-1,mesh_barrier:signal")
    assert seen["meshed"]["mesh"]["store"] > 1 << 20, seen
    assert seen["forked"]["mesh"]["store"] == seen["meshed"]["mesh"]["store"], seen
    assert seen["forked"]["physical"] > 0.9 * seen["meshed"]["physical"], seen
    assert seen["dead"]["mesh"]["store"] == 0, seen


def test_alone(program):
    """Who has one thread meshes in it and takes no signal; when there are more, a
    background thread begins."""
    seen = run(program, "alone", MESH + ",mesh_barrier:signal")
    assert seen["alone"]["threads"] == 1 and seen["handlers"] == 0
    assert seen["alone"]["mesh"]["nmeshes"] > 1000, seen
    assert seen["threads"]["threads"] > 3, seen
    assert (seen["threads"]["mesh"]["nmeshes"]
            > 100 + seen["alone"]["mesh"]["nmeshes"]), seen


@pytest.mark.parametrize("conf", [
    MESH, MESH + ",background_thread:true", MESH + ",background_thread:false"])
def test_switched_off(program, conf):
    """Where the program has no background threads, ticks do their work."""
    seen = run(program, "toggle", conf)["off"]
    assert seen["threads"] == 1 and seen["mesh"]["off"] == "", seen
    assert seen["mesh"]["nmeshes"] > 1000, seen


def test_no_thread_to_be_had(program):
    """The same where the kernel refuses one."""
    directory = Path(tempfile.mkdtemp(prefix="mesh-test-"))
    directory.chmod(0o755)
    try:
        shutil.copy(program("servers").path, directory)
        shutil.copy(LIBS["release"] / "libjemalloc.so.2", directory)
        seen = run(program, "refused", at=directory / "servers",
                   libs={"release": directory},
                   before=["setpriv", "--reuid=nobody", "--regid=nogroup",
                           "--clear-groups", "--bounding-set=-all"])["refused"]
    finally:
        shutil.rmtree(directory)
    assert seen["threads"] == 2 and seen["mesh"]["nmeshes"] > 1000, seen


def test_child_of_vfork(program):
    """It uses its parent's memory, but a thread that it made would end with it."""
    seen = run(program, "vfork")
    assert seen["ended"]["threads"] == 1 < seen["served"]["threads"], seen
    assert seen["served"]["mesh"]["nmeshes"] > 1000, seen


def test_no_descriptor_at_first(program):
    """What a process may use is not decided while it has no descriptor to find out."""
    seen = run(program, "descriptors")["end"]["mesh"]
    assert seen["barrier_reason"] == seen["off"] == "", seen
    assert seen["nmeshes"] > 1000, seen


def test_namespaces(program):
    """Who has one thread may enter a user namespace; so may programs as they are."""
    assert run(program, "namespaces")["unshare"] == 0
    env = dict(os.environ, MALLOC_CONF=MESH,
               LD_PRELOAD=str(LIBS["release"] / "libjemalloc.so.2"))
    subprocess.run(["unshare", "-U", "true"], env=env, check=True)
    subprocess.run(["bwrap", "--unshare-user", "--dev-bind", "/", "/", "true"], env=env,
                   check=True)
    with subprocess.Popen(["unshare", "-U", "sh", "-c", "echo; exec sleep 60"],
                          stdout=subprocess.PIPE) as inside:
        try:
            inside.stdout.readline()
            # By setns(2).
            subprocess.run(["nsenter", "-U", "-t", str(inside.pid),
                            "--preserve-credentials", "true"], env=env, check=True)
        finally:
            inside.kill()


def test_system_calls_of_stock(program, tmp_path):
    """A program that does not fragment makes the calls that it makes with stock, and
    no others; how many to get and give back memory depends on where slabs lie."""
    calls = {}
    for lib, conf in (("stock", ""), ("release", MESH)):
        table = tmp_path / lib
        result = program("servers").run(
            "plain", lib=lib, conf=conf, before=["strace", "-f", "-c", "-o", table])
        assert result.returncode == 0, result
        calls[lib] = {
            match[2]: int(match[1]) for match in re.finditer(
                r"^ *\d+\.\d+ +\d+\.\d+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$",
                table.read_text(), re.M) if match[2] != "total"}
    assert calls["stock"]["execve"] == 1 and calls["stock"].keys() == calls["release"].keys()
    for name, number in calls["stock"].items():
        if name not in ("mmap", "munmap", "madvise"):
            assert calls["release"][name] == number, name
