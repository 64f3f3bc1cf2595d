#!/usr/bin/python3
"""BGSAVE of a fragmented redis-server under load, on stock jemalloc and on
jemalloc with meshing: how long clients wait, what fork and memory cost, and
whether the file holds what the server held.

When meshing has come to rest, a client loads the server (load.py), which does not
change what DEBUG DIGEST says, and it is told to BGSAVE.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import common
import load
from common import MB

LOAD_S = 3  # before, and after the BGSAVE
SAVE_TIMEOUT_S = 600
GOAL = 1.5

ROWS = (  # key, label, format
    ("stall_ms", "longest wait during BGSAVE (ms)", "{:.1f}"),
    ("stall_before_ms", "  before it (ms)", "{:.1f}"),
    ("wait_999_us", "99.9 % of waits during BGSAVE (us)", "{:,.0f}"),
    ("wait_median_us", "half of them (us)", "{:,.0f}"),
    ("rate", "commands/s during BGSAVE", "{:,.0f}"),
    ("rate_before", "  before it", "{:,.0f}"),
    ("fork_ms", "fork (ms)", "{:.1f}"),
    ("save_s", "time of the BGSAVE (s)", "{:.1f}"),
    ("memory_before", "physical memory before (MB)", "{:.1f}"),
    ("memory_after", "physical memory after (MB)", "{:.1f}"),
    ("cgroup_before", "memory cgroup before (MB)", "{:.1f}"),
    ("cgroup_peak", "  parent and child, peak (MB)", "{:.1f}"),
    ("cgroup_growth", "  growth for the child (MB)", "{:.1f}"),
    ("used_memory_mb", "used_memory of Redis (MB)", "{:.1f}"),
    ("keys", "keys", "{:,.0f}"),
    ("mappings", "mappings before", "{:,.0f}"),
    ("mesh_followers", "mesh: followers before", "{:,.0f}"),
    ("mesh_saved_mb", "mesh: saved before (MB)", "{:.1f}"),
)


def save(server, cgroup):
    """BGSAVE; returns its begin, its end and the peak of the cgroup."""
    peak = 0
    begin = time.monotonic()
    server.command("BGSAVE")
    while time.monotonic() - begin < SAVE_TIMEOUT_S:
        peak = max(peak, cgroup.figures().get("cgroup_pages", 0))
        if server.info("rdb_bgsave_in_progress") == "0":
            break
        time.sleep(0.02)
    end = time.monotonic()
    if server.info("rdb_last_bgsave_status") != "ok":
        common.fail(f"BGSAVE failed; the server's log is {server.log}.")
    return begin, end, peak


def measure(args, server, cgroup):
    print(" filling ..", end="", flush=True)
    keys = load.fill(server, args.mb)
    made = load.exchanges(keys)
    print(" meshing ..", end="", flush=True)
    load.await_meshed(server)
    digest = server.command("DEBUG", "DIGEST")
    figures = {"keys": server.command("DBSIZE"),
               "used_memory_mb": int(server.info("used_memory")) / MB,
               "mappings": common.mappings(server.pid)}
    stats = server.mesh_stats()
    figures |= {f"mesh_{name}": stat for name, stat in stats.items()}
    if stats:
        figures["mesh_saved_mb"] = stats["saved"] / MB

    print(" saving ..", end="", flush=True)
    client = load.Client(server.address, made)
    time.sleep(LOAD_S)
    before = cgroup.figures().get("cgroup_pages")
    figures["memory_before"] = sum(common.physical(server.pid)) / MB
    begin, end, peak = save(server, cgroup)
    figures["memory_after"] = sum(common.physical(server.pid)) / MB
    time.sleep(LOAD_S)
    waits = client.stop()

    during = [ns for at, ns in waits if begin <= at + ns / 1e9 and at <= end]
    calm = [ns for at, ns in waits if at + ns / 1e9 < begin]
    figures |= {"stall_ms": max(during) / 1e6,
                "stall_before_ms": max(calm) / 1e6,
                "wait_999_us": statistics.quantiles(during, n=1000)[-1] / 1e3,
                "wait_median_us": statistics.median(during) / 1e3,
                "rate": len(during) * load.COMMANDS / (end - begin),
                "rate_before": len(calm) * load.COMMANDS / LOAD_S,
                "fork_ms": int(server.info("latest_fork_usec")) / 1e3,
                "save_s": end - begin}
    if before:
        figures |= {"cgroup_before": before, "cgroup_peak": peak,
                    "cgroup_growth": peak - before}
    if server.command("DEBUG", "DIGEST") != digest:
        common.fail("the load changed what is in the server, as it must not.")
    print(f" {figures['stall_ms']:.1f} ms", flush=True)
    return figures, digest


def run(args, malloc, directory):
    """One experiment; returns its figures."""
    def start(cgroup=None):
        return common.Redis(args.redis, malloc, directory,
                            "--enable-debug-command", "local", cgroup=cgroup)

    dump = Path(directory) / "dump.rdb"
    dump.unlink(missing_ok=True)
    cgroup = common.Cgroup()
    try:
        server = start(cgroup)
        try:
            figures, digest = measure(args, server, cgroup)
        finally:
            server.stop()
    finally:
        cgroup.remove()
    server = start()
    try:
        while server.info("loading") != "0":
            time.sleep(0.1)
        if server.command("DEBUG", "DIGEST") != digest:
            common.fail(f"{dump} does not hold what the server held.")
    finally:
        server.stop()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, runs=3)
    parser.add_argument("--mb", type=int, default=1024,
                        help="memory that Redis uses (default %(default)s)")
    parser.add_argument("--redis", help="the redis-server to run")
    args = parser.parse_args()
    args.redis = args.redis or common.redis_server()
    variants = common.linked_pair(args)

    figures = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as directory:
        for name in common.turns(variants, args.runs):
            figures[name].append(run(args, variants[name], directory))
    middle, ratios = common.compare(figures, ROWS)
    print(f"Each dump loaded back with the digest of the server that saved "
          f"it.\nlongest wait, mesh / stock: {ratios['stall_ms']:.2f} "
          f"(wanted: at most {GOAL})")
    path = common.OUT / "bgsave.json"
    common.save(path, {"medians": middle, "ratios": ratios, "runs": figures})
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
