#!/usr/bin/python3
"""The Redis experiment of the Mesh paper: physical memory and CPU time of an
unmodified redis-server on stock jemalloc and on jemalloc with meshing.

Redis is an LRU cache of 100 MB.  It gets 700,000 random keys with values of 240
bytes, then 170,000 new keys with values of 492 bytes, which evict most of the
first ones and leave the slabs of those mostly empty; then it idles.
"""

import argparse
import itertools
import random
import tempfile
import time
from pathlib import Path

import common
from common import MB

PHASES = ((700_000, 240), (170_000, 492))
OPTIONS = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")

ROWS = (  # key, label, format
    ("memory_peak", "physical memory, peak (MB)", "{:.1f}"),
    ("memory_mean", "physical memory, mean (MB)", "{:.1f}"),
    ("memory_final", "physical memory, final (MB)", "{:.1f}"),
    ("cgroup_pages", "  the same by the memory cgroup", "{:.1f}"),
    ("cgroup_charged", "  with page tables, mappings, cache", "{:.1f}"),
    ("cpu_main", "CPU, insertions, main thread (s)", "{:.2f}"),
    ("cpu_all", "CPU, insertions, all threads (s)", "{:.2f}"),
    ("cpu_idle", "CPU, idle, all threads (s)", "{:.2f}"),
    ("insert_s", "time of the insertions (s)", "{:.2f}"),
    ("stall_ms", "longest wait for a reply (ms)", "{:.1f}"),
    ("keys", "keys in the end", "{:,.0f}"),
    ("mappings", "mappings", "{:,.0f}"),
    ("mesh_npasses", "mesh: passes", "{:,.0f}"),
    ("mesh_time_ms", "mesh: time in passes (ms)", "{:,.0f}"),
    ("mesh_time_max_ms", "mesh: longest slice (ms)", "{:.2f}"),
    ("mesh_groups", "mesh: groups", "{:,.0f}"),
    ("mesh_followers", "mesh: followers", "{:,.0f}"),
    ("mesh_saved_mb", "mesh: saved (MB)", "{:.1f}"),
)


def pipelines(seed, length):
    """For each phase the list of (bytes to send, replies to expect); made
    before the runs, so that the client costs little during them."""
    rng = random.Random(seed)
    keys = (b"key:%012d" % n for n in
            rng.sample(range(10**12), sum(count for count, _ in PHASES)))
    phases = []
    for count, size in PHASES:
        sizes = [length] * (count // length) + [count % length]
        phases.append([
            (b"".join(common.resp(b"SET", key, rng.randbytes(size))
                      for key in itertools.islice(keys, n)), b"+OK\r\n" * n)
            for n in sizes if n])
    return phases


def insert(server, phase):
    """Sends the pipelines of a phase one by one; returns the longest wait."""
    return max(common.exchange(server.socket, *pipeline)
               for pipeline in phase) / 1e6


def run(args, libdir, conf, phases, directory):
    """One experiment; returns its figures and its curve."""
    cgroup = common.Cgroup()
    try:
        server = common.Redis(args.redis, libdir, directory, *OPTIONS,
                              conf=conf, cgroup=cgroup)
        try:
            return measure(args, server, phases, cgroup)
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


def measure(args, server, phases, cgroup):
    pid = server.pid
    await_tick()
    sampler = common.Sampler(pid)
    start = time.monotonic()
    main, everything = common.cpu_main(pid), common.cpu_all(pid)
    seconds, stall, marks = 0, 0, []
    for (count, size), phase in zip(PHASES, phases):
        print(f" {count:,} x {size} B ..", end="", flush=True)
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
    print(f" idle {args.idle:g} s ..", end="", flush=True)
    time.sleep(args.idle)
    sampler.stop()
    figures |= sampler.figures() | cgroup.figures()
    figures["cpu_idle"] = common.cpu_all(pid) - inserted
    figures["mappings"] = common.mappings(pid)
    figures["keys"] = server.command("DBSIZE")
    figures["used_memory_mb"] = int(server.info("used_memory")) / MB
    mesh = server.mesh_stats()
    figures |= {f"mesh_{name}": value for name, value in mesh.items()}
    if "saved" in mesh:
        figures |= {"mesh_saved_mb": mesh["saved"] / MB,
                    "mesh_time_ms": mesh["time_ns"] / 1e6,
                    "mesh_time_max_ms": mesh["time_max_ns"] / 1e6}
    curve = {"marks_s": marks,
             "samples": [(round(t - start, 3), anon, store)
                         for t, anon, store in sampler.samples]}
    print(f" {figures['memory_final']:.1f} MB", flush=True)
    return figures, curve


def draw(path, curves):
    """Physical memory over time, one line a run, dots around the phases."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for (name, runs), colour in zip(curves.items(), ("tab:red", "tab:blue")):
        for i, curve in enumerate(runs):
            times = [t for t, _, _ in curve["samples"]]
            total = [(anon + store) / MB for _, anon, store in curve["samples"]]
            axes.plot(times, total, color=colour, linewidth=1.2, alpha=0.8,
                      label=None if i else name)
            dots = [min(range(len(times)), key=lambda j: abs(times[j] - mark))
                    for mark in curve["marks_s"]]
            axes.plot([times[j] for j in dots], [total[j] for j in dots], "o",
                      color=colour, markersize=4)
    axes.plot([], [], "o", color="grey", markersize=4, label="begin and end of "
              + " and ".join(f"{count:,} x {size} B" for count, size in PHASES))
    axes.set(xlabel="seconds", ylabel="physical memory (MB)",
             title="redis-server as an LRU cache of 100 MB", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3,
                        help="runs of each library (default %(default)s)")
    parser.add_argument("--idle", type=float, default=10, metavar="SECONDS",
                        help="idle time in the end (default %(default)s)")
    parser.add_argument("--pipeline", type=int, default=500, metavar="N",
                        help="commands in a pipeline (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--redis", help="the redis-server to run")
    parser.add_argument("--stock-lib", default=common.BUILD / "stock/lib",
                        help="directory of the stock libjemalloc.so.2")
    parser.add_argument("--mesh-lib", default=common.BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    parser.add_argument("--mesh-conf", default="mesh:true",
                        help="MALLOC_CONF of the latter (default %(default)s)")
    args = parser.parse_args()
    args.redis = args.redis or common.redis_server()
    variants = {"stock": (args.stock_lib, ""),
                "mesh": (args.mesh_lib, args.mesh_conf)}
    for libdir, _ in variants.values():
        common.library(libdir)

    out = common.BUILD / "demo"
    out.mkdir(parents=True, exist_ok=True)
    print(f"{sum(count for count, _ in PHASES):,} keys are being generated",
          flush=True)
    phases = pipelines(args.seed, args.pipeline)
    figures = {name: [] for name in variants}
    curves = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as directory:
        for i in range(args.runs):
            # Who goes first alternates, so that neither always runs on the
            # warmer machine.
            for name in list(variants)[::-1 if i % 2 else 1]:
                print(f"run {i + 1} of {args.runs}, {name}:", end="",
                      flush=True)
                result, curve = run(args, *variants[name], phases, directory)
                figures[name].append(result)
                curves[name].append(curve)

    middle, ratios = common.compare(figures, ROWS)
    image = out / "redis-memory.png"
    draw(image, curves)
    common.save(out / "redis-memory.json",
                {"medians": middle, "ratios": ratios, "runs": figures,
                 "curves": curves})
    print(f"memory over time: {image}\nall figures: {out}/redis-memory.json")


if __name__ == "__main__":
    main()
