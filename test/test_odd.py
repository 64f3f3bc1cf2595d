"""Whether programs that do odd things keep all their objects when meshed.

Runs odd.c (descriptors, signals, processes, threads), arenas.c (jemalloc's own
interfaces), kernel.c (what the kernel does to the heap), and other programs in
other languages and builds.  Each scenario checks every byte of its objects.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from conftest import LIBS

BACKGROUND = "abort_conf:true,mesh:true,mesh_period_ms:0"
TICKS = BACKGROUND + ",background_thread:false"
SIGNAL = "abort_conf:true,mesh:true,mesh_period_ms:5,mesh_barrier:signal"
# Passes only where the program asks for them.
REQUEST = "abort_conf:true,mesh:true,mesh_period_ms:-1"


def name(value):
    """How pytest shall call a scenario."""
    return "-".join(value) if isinstance(value, tuple) else None


def good(run):
    """The numbers of a run in which nothing was lost and much was meshed."""
    assert run.returncode == 0, run
    result = run.json
    assert result["bad"] == 0 and result["checked"] > 10000, run
    assert result["mesh"]["nmeshes"] > 100, run
    return result


@pytest.mark.parametrize("lib, conf", [("release", BACKGROUND), ("debug", TICKS)])
@pytest.mark.parametrize("scenario, children", [
    # All descriptors are closed, and the numbers taken over by other files:
    # before anything is meshed, when it is, in a child, while a child lives.
    (("close", "first"), True),
    (("close", "meshed"), True),
    (("close", "child"), True),
    (("close", "alive"), True),
    # Handlers of SIGSEGV and SIGBUS: none is ever called.
    (("handlers",), True),
    (("blocked",), True),
    (("handler_malloc",), False),
    (("coroutines",), False),
    # system, popen, posix_spawn, vfork, fork and exec.
    (("commands",), False),
    (("daemon",), True),
    (("threads",), False),
    (("main_exit",), True),
    (("ends",), True),
], ids=name)
def test_process(program, lib, conf, scenario, children):
    """What programs do to their process costs no object, and meshing goes on."""
    result = good(program("odd").run(*scenario, lib=lib, conf=conf))
    if children:
        assert result["child_meshes"] > 20, result
    if scenario == ("handlers",):
        assert result["count"] == 0, result
    if scenario in (("main_exit",), ("coroutines",)):
        assert result["count"] > 20, result
        assert result["mesh"]["off"] == "", result


@pytest.mark.parametrize("scenario", [
    ("close", "meshed"), ("close", "child"), ("handlers",), ("blocked",),
    ("handler_malloc",), ("coroutines",), ("commands",), ("daemon",), ("rights",),
    ("threads",), ("main_exit",), ("ends",)], ids=name)
def test_process_signal(program, scenario):
    """The same where threads are stopped by signals: it meshes less, at worst."""
    result = good(program("odd").run(*scenario, conf=SIGNAL))
    if scenario == ("handlers",):
        assert result["count"] == 0, result


NUMBERS = [("release", BACKGROUND), ("debug", TICKS), ("release", SIGNAL),
           ("debug", BACKGROUND + ",mesh_barrier:userfaultfd")]


@pytest.mark.parametrize("lib, conf", NUMBERS)
@pytest.mark.parametrize("scenario", [
    # Standard descriptors that are closed stay closed.
    ("standard",),
    # What close() has freed is what open() gets.
    ("lowest",),
    # A program near its limit has all the descriptors that the limit grants.
    ("limit",), ("limit", "early"),
    # Another program gets none of ours.
    ("inherited",),
], ids=name)
def test_numbers(program, lib, conf, scenario):
    """A program never sees a descriptor of ours, nor misses one of its own."""
    result = good(program("odd").run(*scenario, lib=lib, conf=conf))
    assert result["lost"] == 0 and result["count"] > 20, result


@pytest.mark.parametrize("lib, conf", [
    *NUMBERS, ("debug", REQUEST), ("release", REQUEST + ",background_thread:true")])
def test_dead_slabs(program, lib, conf):
    """Slabs that wait for leaving the store may do so at a fork."""
    good(program("odd").run("dead", lib=lib, conf=conf))


@pytest.mark.parametrize("barrier", ["move", "userfaultfd", "signal"])
def test_closed_often(program, barrier):
    """A program that closes all there is all the time is told what that costs."""
    result = good(program("odd").run(
        "close_often", conf=f"{BACKGROUND},mesh_barrier:{barrier}"))
    assert "leave open those named memfd:jemalloc-mesh" in result["mesh"]["off"], result


@pytest.mark.parametrize("lib", ["release", "debug"])
def test_signals_of_children(program, lib):
    """A handler that runs in a child as it is born writes to the child's memory."""
    result = good(program("odd").run("interrupted", lib=lib, conf=REQUEST))
    assert result["count"] > 0, result


@pytest.mark.parametrize("lib", ["release", "debug"])
@pytest.mark.parametrize("conf", ["", ",background_thread:false", ",mesh_barrier:signal"])
def test_what_libc_sets_back(program, lib, conf):
    """A child's C library leaves locks of streams and threads' values to the parent."""
    result = good(program("odd").run("libc", lib=lib, conf=REQUEST + conf))
    assert result["count"] > 50, result


@pytest.mark.xfail(reason="a child needs a descriptor or userfaultfd for what is meshed")
def test_rights_given_up(program):
    """A daemon closes all, is no longer root, and forks."""
    good(program("odd").run("rights", conf=BACKGROUND))


def test_cancelled(program):
    """A thread that is to be cancelled is not cancelled by malloc or a pass."""
    result = good(program("odd").run("cancel", conf=TICKS))
    assert result["lost"] == 0 and result["count"] > 1000, result


@pytest.mark.parametrize("lib, conf", [("release", BACKGROUND), ("debug", TICKS)])
@pytest.mark.parametrize("scenario", [
    ("hooks",), ("hooks", "unmap"), ("manual",), ("migrants",), ("toggle",)], ids=name)
def test_arenas(program, lib, conf, scenario):
    """Hooks see no meshed range; manual arenas and threads come and go."""
    if scenario == ("toggle",):
        conf = BACKGROUND
    if scenario == ("hooks", "unmap"):
        # Who retains address space may not unmap some of it.
        conf += ",retain:false"
    good(program("arenas").run(*scenario, lib=lib, conf=conf))


@pytest.mark.parametrize("scenario", ["private", "shared"])
@pytest.mark.parametrize("place", ["heap", "manual", "aligned"])
def test_known_by_page(program, scenario, place):
    """Who sleeps on a futex is woken, be it of the process alone or shared."""
    result = good(program("kernel").run(scenario, place, conf=REQUEST))
    assert result["lost"] == 0, result
    assert (result["count"] > 20) == (place == "heap"), result


def test_protected_pages(program):
    """mprotect and madvise of page-aligned objects hold: they do not mesh."""
    result = good(program("kernel").run("protected", conf=BACKGROUND))
    assert (result["count"], result["lost"]) == (0, 0), result


@pytest.mark.parametrize("way", ["vm", "mem"])
def test_poked(program, way):
    """What process_vm_writev and /proc/self/mem have written is there.

    The latter fails with EIO, as the documentation says, while a slab moves.
    """
    result = good(program("kernel").run("poke", way, conf=BACKGROUND))
    assert result["lost"] == 0 and result["count"] > 10000, result


def test_core_dump(program):
    """A dump has the objects, and no windows, which have memory only in part."""
    assert good(program("kernel").run("dump", conf=REQUEST))["count"] > 20


@pytest.mark.parametrize("lib, conf", [
    ("release", "narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0,junk:true"),
    ("debug", "percpu_arena:percpu,retain:false,zero:true"),
    ("release", "percpu_arena:phycpu,thp:always,metadata_thp:always,dirty_decay_ms:0"),
    ("release", "tcache:false,thp:never,cache_oblivious:false,junk:alloc"),
    ("debug", "tcache_max:65536,bin_shards:1-14336:4,max_background_threads:1,"
     "oversize_threshold:65536"),
    ("debug", "retain:false,dirty_decay_ms:0,tcache:false,junk:free,xmalloc:true"),
    ("release", "slab_sizes:1-14336:16,muzzy_decay_ms:100,san_guard_small:8"),
])
def test_options(program, lib, conf):
    """jemalloc's other options, a handful at a time, go with meshing."""
    run = program("torture").run("-s", 2, "-ykl", lib=lib, conf=f"{BACKGROUND},{conf}")
    result = good(run)
    assert (result["efault"], result["short"]) == (0, 0), run


def test_sbrk(program):
    """Memory from sbrk is not meshed, and comes to no harm."""
    run = program("torture").run("-s", 2, conf=BACKGROUND + ",dss:primary")
    assert run.returncode == 0 and run.json["bad"] == 0, run


@pytest.mark.parametrize("link", ["archive", "static", "prefix", "dlopen"])
def test_builds(program, link):
    """Linked statically, with a prefix, or dlopen'ed: it meshes and forks."""
    lib = "release" if link in ("archive", "static") else "prefix"
    good(program("torture", link).run("-s", 1, "-ykl", lib=lib, conf=BACKGROUND))
    forker = program("forker", link).run("-n", 2, "-b", 16, lib=lib, conf=BACKGROUND)
    assert good(forker)["child_meshes"] > 100, forker


def test_heap_profile(program):
    """Sampled objects do not get in the way of others."""
    good(program("torture", "prefix").run(
        "-s", 2, "-yl", lib="prefix",
        conf=BACKGROUND + ",prof:true,lg_prof_sample:12,prof_accum:true"))


def test_cplusplus(program):
    """Containers, exceptions and memory resources in several threads."""
    run = program("cplusplus").run(conf=TICKS)
    assert run.returncode == 0 and run.json["nmeshes"] > 1000, run


PYTHON = """
import ctypes, json, multiprocessing, random, subprocess, sys, threading

jemalloc = ctypes.CDLL(None)

def make(n):
    return {random.random(): (str(i) * random.randrange(1, 99), [i] * 9) for i in range(n)}

def good(objects):
    return all(text == str(some[0]) * (len(text) // len(str(some[0])))
               for text, some in objects.values())

def thin(objects):
    for key in list(objects):
        if random.random() < 0.9:
            del objects[key]

def mesh():
    jemalloc.mallctl(b"thread.tcache.flush", None, None, None, 0)
    jemalloc.mallctl(b"arena.4096.mesh", None, None, None, 0)

def count():
    jemalloc.mallctl(b"epoch", None, None, ctypes.byref(ctypes.c_uint64(1)), 8)
    number, size = ctypes.c_uint64(), ctypes.c_size_t(8)
    jemalloc.mallctl(b"stats.mesh.nmeshes", ctypes.byref(number), ctypes.byref(size), None, 0)
    return number.value

def job(seed):
    random.seed(seed)
    before = count()
    ok = good(shared)
    for _ in range(3):
        mine = make(20000)
        thin(mine)
        mesh()
        ok = ok and good(mine)
    thin(shared)
    return ok and good(shared), count() - before

shared = make(100000)
thin(shared)
mesh()
ok = good(shared)
threads = [threading.Thread(target=job, args=(i,)) for i in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    for thread in threads:
        thread.start()
    results = pool.map(job, range(6))
for thread in threads:
    thread.join()
out = subprocess.run([sys.executable, "-c", "print('x' * 100000)"], capture_output=True)
print(json.dumps({"ok": ok and good(shared) and all(r[0] for r in results)
                        and out.stdout == b"x" * 100000 + b"\\n",
                  "nmeshes": count(), "child_meshes": sum(r[1] for r in results)}))
"""


def test_python():
    """Python on a meshed heap: threads, forked workers, other programs."""
    run = subprocess.run(
        ["/usr/bin/python3", "-c", PYTHON], text=True, timeout=120,
        stdout=subprocess.PIPE, check=True, env=dict(
            os.environ, PYTHONMALLOC="malloc", MALLOC_CONF=BACKGROUND,
            LD_PRELOAD=str(LIBS["release"] / "libjemalloc.so.2")))
    result = json.loads(run.stdout)
    assert result["ok"], result
    assert result["nmeshes"] > 1000 and result["child_meshes"] > 1000, result


@pytest.fixture
def huge_pages_always():
    """The kernel backs everything with huge pages for the time of a test."""
    paths = [Path("/sys/kernel/mm/transparent_hugepage") / name
             for name in ("enabled", "shmem_enabled")]
    if not all(os.access(path, os.W_OK) for path in paths):
        pytest.skip("transparent huge pages cannot be set here")
    before = [re.search(r"\[(\w+)\]", path.read_text())[1] for path in paths]
    for path in paths:
        path.write_text("always")
    yield
    for path, value in zip(paths, before):
        path.write_text(value)


def test_huge_pages(program, huge_pages_always):
    """Where huge pages are always used, meshing saves memory all the same."""
    run = program("release").run(
        "-n", 1, conf=REQUEST + ",dirty_decay_ms:0,muzzy_decay_ms:0")
    assert run.returncode == 0, run
    steps = {step["step"]: step["rss_anon"] + step["store"] for step in run.json}
    assert steps["meshed"] < 0.65 * steps["thinned"], run


@pytest.mark.parametrize("name, scenario", [
    ("odd", "commands"), ("odd", "threads"), ("odd", "ends"), ("arenas", "hooks"),
    ("arenas", "migrants"), ("pins", "pinned"), ("kernel", "poke")])
def test_program_is_right(program, name, scenario):
    """On unpatched jemalloc the programs find nothing."""
    run = program(name).run(scenario, "heap", lib="stock")
    if run.returncode != 77:
        assert run.returncode == 0 and run.json["lost"] == 0, run
