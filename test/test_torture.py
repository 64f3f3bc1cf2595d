"""Whether programs can tell that their heap is meshed: no write may get lost.

Runs torture.c, which writes to the heap in every way it knows while the heap is
meshed without pause.  MESH_TORTURE_SECONDS sets how long each run takes.
"""

import os

import pytest

SECONDS = int(os.environ.get("MESH_TORTURE_SECONDS", "20"))
BACKGROUND = "abort_conf:true,mesh:true,mesh_period_ms:0"
TICKS = BACKGROUND + ",background_thread:false"
SIGNAL = BACKGROUND + ",mesh_barrier:signal"
SIGNAL_TICKS = TICKS + ",mesh_barrier:signal"
# Kernel writes, signals, mutexes; and passes by arena.4096.mesh, too.
ALL = "-ykl"
PASSES = "-yklp"


@pytest.mark.parametrize("lib, threads, conf, flags", [
    ("release", 4, BACKGROUND, PASSES),
    ("release", 4, BACKGROUND, ALL),
    ("release", 4, TICKS, ALL),
    ("release", 1, BACKGROUND, ALL),
    ("debug", 4, BACKGROUND, PASSES),
    ("debug", 4, TICKS, ALL),
    ("debug", 1, TICKS, ALL),
    ("release", 4, SIGNAL, ALL),
    ("release", 4, SIGNAL_TICKS, PASSES),
    ("debug", 4, SIGNAL, PASSES),
])
def test_no_damage(program, lib, threads, conf, flags):
    """Objects, system calls and mutexes come through thousands of meshes."""
    run = program("torture").run("-t", threads, "-s", SECONDS, flags, lib=lib,
                                 conf=conf, timeout=4 * SECONDS + 60)
    assert run.returncode == 0, run
    result = run.json
    assert (result["bad"], result["efault"], result["short"]) == (0, 0, 0), run
    assert result["checked"] > 100000 and result["syscalls"] > 1000, run
    assert result["mesh"]["nmeshes"] > 1000, run


@pytest.mark.parametrize("lib", ["release", "debug"])
def test_no_damage_by_purging(program, lib):
    """Pages inside slabs are purged while regions of them are allocated.

    No mapping may be made, no cache is in between, and slabs have many pages.
    """
    run = program("torture").run(
        "-t", 4, "-s", SECONDS, "-b", 3, "-p", "-m", 2200, "-M", 14000, lib=lib,
        conf=BACKGROUND + ",mesh_max_maps:1,tcache:false", timeout=4 * SECONDS + 60)
    assert run.returncode == 0 and run.json["bad"] == 0, run
    assert run.json["checked"] > 100000 and run.json["mesh"]["nmeshes"] == 0, run


def test_damage_without_barrier(program):
    """The negative control: without a barrier the same program finds damage.

    mesh_barrier:none, which only the debug library knows, meshes with nothing to
    keep writers away.  Damage is a matter of chance, so several seeds get a try;
    runs that crash, as a damaged program may, prove nothing.
    """
    runs = []
    for seed in range(1, 11):
        run = program("torture").run("-s", 5, "-b", 4, "-p", "-r", seed,
                                     lib="debug", conf=BACKGROUND + ",mesh_barrier:none")
        if run.json and run.json["bad"] > 0:
            assert run.json["mesh"]["barrier"] == "none", run
            return
        runs.append(run)
    pytest.fail(f"no damage seen: {runs}")


def test_program_is_right(program):
    """On unpatched jemalloc the program finds nothing."""
    run = program("torture").run("-s", 2, "-ykl", lib="stock")
    assert run.returncode == 0, run
    assert run.json["checked"] > 100000 and run.json["mesh"] is None, run
