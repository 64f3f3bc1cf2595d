"""Whether programs live on unharmed when the kernel refuses what meshing asks for.

Runs refused.c, one life of a program told over and over, with faults.c preloaded,
which lets each system call of jemalloc fail in turn; and torture.c with one call
in a hundred failing at random.  MESH_TORTURE_SECONDS sets how long that takes.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

SECONDS = int(os.environ.get("MESH_TORTURE_SECONDS", "20"))
QUIET = "mesh:true,mesh_period_ms:-1,background_thread:false"
BACKGROUND = "mesh:true,mesh_period_ms:0"
TICKS = BACKGROUND + ",background_thread:false"
PARTS = 4
# All that meshing calls after boot.
CALLS = [
    "mmap", "mmap-fixed", "mremap", "munmap", "mprotect", "msync", "ftruncate", "fstat",
    "getrlimit", "memfd_create", "userfaultfd", "open", "read", "close",
    "madvise-populate-write", "madvise-remove", "madvise-nohugepage", "ioctl-api",
    "ioctl-register", "ioctl-protect", "ioctl-wake"]
# What the signal barrier calls instead of ioctl(); the rest does not depend on it.
SIGNAL_CALLS = ["tgkill", "sigaction", "getdents"]


def lives(program, preload, parts, calls, barrier):
    """Lives in which calls fail, by parts of the work; returns what came of them."""
    def part(args):
        return program("refused").run(
            *args, conf=f"abort_conf:true,{QUIET},mesh_barrier:{barrier}",
            before=preload("faults"), timeout=1800)

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(part, parts))
    for run in runs:
        assert run.returncode == 0, run
        seen = run.json["normal"]["seen"]
        assert [call for call in calls if not seen[call]] == [], run
        assert run.json["normal"]["meshes"] > 50, run
    total = {key: sum(run.json[key] for run in runs)
             for key in ("lives", "refused", "injected", "checked")}
    # Some lives have a call less, as threads are not stopped alike each time.
    assert total["refused"] > 0.8 * total["lives"] > 0, total
    print(f"{barrier}: {total}")
    return total


def test_each_call_refused(program, preload):
    """Every call of every kind fails once, and from there on; nothing is lost.

    The data stay right, nothing hangs, aborts or crashes, and when calls are
    answered again meshing works again and nothing is left over.
    """
    total = lives(program, preload, [("-p", i, "-P", PARTS) for i in range(PARTS)],
                  CALLS, "userfaultfd")
    assert total["refused"] > 1000, total


def test_each_call_of_signals_refused(program, preload):
    """The same for what the signal barrier calls."""
    lives(program, preload, [("-k", call) for call in SIGNAL_CALLS], SIGNAL_CALLS, "signal")


def test_each_call_of_boot_refused(program, preload):
    """The same while jemalloc boots; then meshing works, or it says why not."""
    def life(*faults):
        run = program("refused").run("-1", conf=QUIET, before=preload("faults") + [*faults])
        assert run.returncode == 0, (faults, run)
        return run.json

    n = 0
    for kind, calls in life()["boot"].items():
        for first in range(calls):
            for count in (1, 0):
                # Without memory for itself jemalloc cannot boot at all.
                if kind == "mmap":
                    continue
                result = life(f"MESH_FAULTS={kind}:{first}:{count}")["life"]
                assert result["meshes_after"] > 50 or result["off"], (kind, first, result)
                n += 1
    assert n > 10
    print(f"{n} lives")


@pytest.mark.parametrize("conf, flags", [
    # No signals: they would end the wait of a writer whom nobody wakes.
    (BACKGROUND + ",mesh_barrier:userfaultfd", "-ylp"),
    (TICKS + ",mesh_barrier:userfaultfd", "-ykl"),
    (BACKGROUND + ",mesh_barrier:signal", "-yklp"),
])
def test_calls_refused_at_random(program, preload, conf, flags):
    """While threads write, one call in a hundred fails: none loses a write or hangs."""
    run = program("torture").run(
        "-s", SECONDS, flags, conf=conf, timeout=4 * SECONDS + 60,
        before=preload("faults") + ["MESH_FAULTS=rate:100:1"])
    assert run.returncode == 0, run
    result = run.json
    assert (result["bad"], result["efault"], result["short"]) == (0, 0, 0), run
    assert result["mesh"]["nmeshes"] > 1000 and result["mesh"]["nrefused"] > 10, run
