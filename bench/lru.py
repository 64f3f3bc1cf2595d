"""The Redis experiment of the Mesh paper, for demo.py and redis.py: an LRU cache of
100 MB gets 700,000 random keys with values of 240 bytes, then 170,000 new keys with
values of 492 bytes, which evict most of the first ones and leave the slabs of those
mostly empty; then it idles.
"""

import itertools
import random
import time

import common
from common import MB

PHASES = ((700_000, 240), (170_000, 492))
MAXMEMORY_MB = 100
INSERTED = "begin and end of " + " and ".join(
    f"{count:,} x {size} B" for count, size in PHASES)


def add_arguments(parser):
    parser.add_argument("--idle", type=float, default=10, metavar="SECONDS",
                        help="idle time in the end (default %(default)s)")
    parser.add_argument("--pipeline", type=int, default=500, metavar="N",
                        help="commands in a pipeline (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", help="the redis-server to run")


def pipelines(args, scale=1):
    """For each phase the list of (bytes to send, replies to expect); made
    before the runs, so that the client costs little during them."""
    total = sum(count for count, _ in PHASES) * scale
    print(f"{total:,} keys are being generated", flush=True)
    rng = random.Random(args.seed)
    keys = (b"key:%012d" % n for n in rng.sample(range(10**12), total))
    phases = []
    for count, size in PHASES:
        length = args.pipeline
        whole, rest = divmod(count * scale, length)
        phases.append([
            (b"".join(common.resp(b"SET", key, rng.randbytes(size))
                      for key in itertools.islice(keys, n)), b"+OK\r\n" * n)
            for n in [length] * whole + [rest] if n])
    return phases


def insert(server, phase):
    """Sends the pipelines of a phase one by one; returns the longest wait."""
    return max(common.exchange(server.socket, *pipeline)
               for pipeline in phase) / 1e6


def run(executable, malloc, phases, idle, directory, *options, scale=1):
    """One experiment; returns its figures, its curve and the times of begin and end
    of each phase."""
    cgroup = common.Cgroup()
    try:
        server = common.Redis(
            executable, malloc, directory, "--maxmemory",
            f"{MAXMEMORY_MB * scale}mb", "--maxmemory-policy", "allkeys-lru",
            *options, cgroup=cgroup)
        try:
            return measure(server, phases, idle, cgroup)
        finally:
            server.stop()
    finally:
        cgroup.remove()


def await_tick():
    """Waits until Redis' LRU clock, which has whole seconds and is looked at
    ten times in each, has ticked: which keys are evicted must not depend on how
    fast this machine is.
    """
    time.sleep(1.1 - time.time() % 1)


def measure(server, phases, idle, cgroup):
    pid = server.pid
    await_tick()
    sampler = common.Sampler(pid)
    start = time.monotonic()
    main, everything = common.cpu_main(pid), common.cpu_all(pid)
    seconds, stall, marks = 0, 0, []
    for (_, size), phase in zip(PHASES, phases):
        print(f" {size} B ..", end="", flush=True)
        if marks:
            await_tick()
        begin = time.monotonic()
        stall = max(stall, insert(server, phase))
        end = time.monotonic()
        seconds += end - begin
        marks += begin - start, end - start
    inserted = common.cpu_all(pid)
    figures = {"cpu_main": common.cpu_main(pid) - main,
               "cpu_all": inserted - everything,
               "insert_s": seconds, "stall_ms": stall}
    print(f" idle {idle:g} s ..", end="", flush=True)
    time.sleep(idle)
    sampler.stop()
    figures |= sampler.figures() | cgroup.figures()
    figures["cpu_idle"] = common.cpu_all(pid) - inserted
    figures["mappings"] = common.mappings(pid)
    figures["keys"] = server.command("DBSIZE")
    for key, field in (("used_memory_mb", "used_memory"),
                       ("jemalloc_mb", "allocator_allocated")):
        figures[key] = int(server.info(field)) / MB
    mesh = server.mesh_stats()
    figures |= {f"mesh_{name}": value for name, value in mesh.items()}
    if "saved" in mesh:
        figures |= {"mesh_saved_mb": mesh["saved"] / MB,
                    "mesh_time_ms": mesh["time_ns"] / 1e6,
                    "mesh_time_max_ms": mesh["time_max_ns"] / 1e6}
    curve = [(round(t - start, 3), (anon + store) / MB)
             for t, anon, store in sampler.samples]
    print(f" {figures['memory_final']:.1f} MB", flush=True)
    return figures, curve, marks
