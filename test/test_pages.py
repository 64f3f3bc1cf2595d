"""Whether what the kernel ties to a page of an object survives that it meshes.

Runs ties.c (locks, protections, advice, policies, mappings), pins.c (devices, pipes,
sockets and other processes, which know pages) and kernel.c (pages that are swapped
out or merged).
"""

import contextlib
import subprocess
import time
from pathlib import Path

import pytest

from test_odd import good

BARRIERS = ["move", "userfaultfd", "signal"]
REQUEST = "abort_conf:true,mesh:true,mesh_period_ms:-1"
# After a fork all ranges get views at once, and mesh anew.
TICKS = REQUEST + ",background_thread:false"
BACKGROUND = "abort_conf:true,mesh:true,mesh_period_ms:0"
# What /proc/self/maps tells, and what does not matter.
KNOWN = ["lock", "read", "none", "exec", "fixed"]
HARMLESS = ["cold", "pageout", "free", "dontneed", "soft_offline"]
# What only the kernel knows, when it is to move a page.
KERNELS = ["pkey", "dontfork", "wipeonfork", "dontdump", "mergeable", "policy", "uffd"]


@pytest.fixture
def run(program):
    """A function that runs a scenario; it skips what cannot be done here."""

    def run(name, *args, barrier, conf=REQUEST, **options):
        done = program(name).run(*args, conf=f"{conf},mesh_barrier:{barrier}", **options)
        if done.returncode == 77:
            pytest.skip(f"not to be had here: {done.stderr}")
        result = good(done)
        assert result["mesh"]["barrier"] == barrier, done
        return result

    return run


@pytest.mark.parametrize("barrier, tie", [
    *(("move", tie) for tie in [*KNOWN, *HARMLESS, *KERNELS]),
    *((barrier, tie) for barrier in BARRIERS[1:] for tie in [*KNOWN, *HARMLESS])])
def test_tied_before(run, barrier, tie):
    """Slabs with a tied page do not mesh, others do."""
    result = run("ties", "before", tie, barrier=barrier)
    assert result["lost"] == 0 and result["count"] > 10, result


@pytest.mark.parametrize("tie", set(KERNELS) - {"pkey", "uffd"})
def test_tied_before_without_move(run, tie):
    """The control: these are lost where the kernel cannot move pages (documented)."""
    assert run("ties", "before", tie, barrier="userfaultfd")["lost"] > 10


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize(
    "tie", [*KNOWN[:-1], "cold", "pageout", "soft_offline"])
def test_tied_after(run, barrier, tie):
    """What is meshed already, and tied then, does not move on, nor is it lost by forks."""
    result = run("ties", "after", tie, barrier=barrier, conf=TICKS)
    assert result["lost"] == 0 and result["count"] > 10, result


@pytest.mark.parametrize("tie", ["wipeonfork", "free", "dontneed", "fixed"])
def test_tied_after_in_the_store(run, tie):
    """The control: the kernel does these to private memory only (documented).

    A file that the program maps over what has meshed is gone from the next fork on.
    """
    conf = TICKS if tie == "fixed" else REQUEST
    assert run("ties", "after", tie, barrier="move", conf=conf)["lost"] > 10


@pytest.mark.parametrize("where", ["heap", "manual", "aligned", "store"])
def test_registered(run, where):
    """Buffers that io_uring has pinned stay where they are."""
    result = run("pins", "pinned", where, barrier="move")
    assert result["lost"] == 0, result


@pytest.mark.parametrize("barrier", BARRIERS[1:])
def test_registered_without_move(run, barrier):
    """No other barrier learns of pins: nothing is meshed, which is said."""
    result = run("pins", "pinned", "heap", barrier=barrier)
    assert (result["count"], result["lost"]) == (0, 0), result
    assert "io_uring" in result["mesh"]["off"], result
    for where in ("manual", "aligned"):
        result = run("pins", "pinned", where, barrier=barrier)
        assert (result["count"], result["lost"]) == (0, 0), result


@pytest.mark.parametrize("way", ["sync", "aio", "uring", "fixed"])
def test_direct_reads(run, way, tmp_path, monkeypatch):
    """A device writes to small objects all the time, and slabs mesh."""
    monkeypatch.chdir(tmp_path)
    result = run("pins", "reads", way, barrier="move")
    assert result["count"] >= 100000 and result["lost"] == 0, result
    assert result["mesh"]["nmeshes"] > 1000, result


@pytest.mark.parametrize("barrier, way", [
    ("userfaultfd", "sync"), ("userfaultfd", "fixed"), ("signal", "sync"),
    ("signal", "fixed")])
def test_direct_reads_without_move(run, barrier, way, tmp_path, monkeypatch):
    """Where that could do harm nothing is meshed from then on, which is said."""
    monkeypatch.chdir(tmp_path)
    result = run("pins", "reads", f"{way},30000", barrier=barrier)
    assert result["lost"] == 0, result
    harmless = (barrier, way) == ("signal", "sync")
    assert ("O_DIRECT" in result["mesh"]["off"]) != harmless, result


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("way", ["vmsplice", "zerocopy"])
def test_sent(run, barrier, way):
    """What is under way in a pipe or socket arrives as it was sent."""
    result = run("pins", "sent", way, barrier=barrier)
    assert result["lost"] == 0 and result["count"] > 10, result


@pytest.mark.parametrize("barrier", BARRIERS)
@pytest.mark.parametrize("way", ["vm", "mem", "ptrace"])
def test_other_process(run, barrier, way):
    """What another process writes is there; it may be refused while a slab moves.

    A signal does not stop other processes: one write in many is lost (documented).
    """
    result = run("pins", "peer", way, barrier=barrier)
    lost = result["count"] // 1000 if barrier == "signal" else 0
    assert result["lost"] <= lost and result["count"] > 1000, result


@contextlib.contextmanager
def settings(values):
    """Files of the kernel's have other values for a while."""
    try:
        before = {path: Path(path).read_text() for path in values}
        for path, value in values.items():
            Path(path).write_text(str(value))
    except OSError as error:
        pytest.skip(f"not to be had here: {error}")
    try:
        yield
    finally:
        for path, value in before.items():
            Path(path).write_text(value)


@pytest.fixture
def swap():
    """A swap device in memory, which nobody uses who is not told to."""
    try:
        number = Path("/sys/class/zram-control/hot_add").read_text().strip()
    except OSError as error:
        pytest.skip(f"no zram: {error}")
    device = f"/dev/zram{number}"
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text("256M")
        for command in (["mkswap", device], ["swapon", device]):
            made = subprocess.run(command, capture_output=True, check=False)
            if made.returncode != 0:
                pytest.skip(f"no swap: {made.stderr}")
        yield
    finally:
        subprocess.run(["swapoff", device], capture_output=True, check=False)
        for _ in range(50):
            with contextlib.suppress(OSError):
                Path("/sys/class/zram-control/hot_remove").write_text(number)
                break
            time.sleep(0.1)


@pytest.mark.parametrize("barrier", BARRIERS)
def test_swapped_out(run, swap, cgroup, barrier):
    """Pages go to swap, private ones and such of the store, and come back right."""
    for name in ("memory.limit_in_bytes", "memory.high"):
        with contextlib.suppress(OSError):
            (cgroup.path / name).write_text(str(16 << 20))
    result = run("kernel", "swap", barrier=barrier, conf=BACKGROUND,
                 before=cgroup.enter)
    # KiB that were swapped out at a time.
    assert result["count"] > 100, result


@pytest.mark.parametrize("barrier", BARRIERS)
def test_merged(run, barrier):
    """Pages that are alike become one page for all who have them, and part again."""
    ksm = "/sys/kernel/mm/ksm/"
    with settings({ksm + "pages_to_scan": 5000, ksm + "sleep_millisecs": 10,
                   ksm + "run": 1}):
        assert run("kernel", "merged", barrier=barrier)["count"] > 100


@pytest.mark.parametrize("args", [
    ("ties", "before", "cold"), ("ties", "before", "exec"), ("pins", "pinned", "heap"),
    ("pins", "reads", "sync,5000"), ("pins", "sent", "zerocopy"), ("pins", "peer", "vm")])
def test_program_is_right(program, args, tmp_path, monkeypatch):
    """On unpatched jemalloc the programs find nothing."""
    monkeypatch.chdir(tmp_path)
    run = program(args[0]).run(*args[1:], lib="stock")
    if run.returncode != 77:
        assert run.returncode == 0 and run.json["lost"] == 0, run
