#!/usr/bin/python3
"""How long a client of a redis-server waits while slabs mesh: on stock jemalloc and
with meshing, by userfaultfd and by signals, in several situations.

Each run fills and fragments a server anew (load.py) and loads it from that moment on.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import common
import load

QUOTA_PERIOD_US = 100_000
BESIDE_S = 1  # from one thing that is done beside the load to the next

COLUMNS = (  # key, heading, format, with ratio to stock
    ("longest_ms", "longest wait ms", "{:.1f}", True),
    ("most_ms", "99.9 % ms", "{:.2f}", True),
    ("median_us", "half us", "{:,.0f}", True),
    ("rate", "commands/s", "{:,.0f}", True),
    ("throttled", "periods throttled", "{:,.0f}", False),
    ("memory", "physical MB", "{:,.1f}", True),
    ("nmeshes", "slabs meshed", "{:,.0f}", False),
)


class Quota:
    """A cgroup (v1 or v2) that bounds the processor time of those in it."""

    def __init__(self):
        name = f"jemalloc-bench-{os.getpid()}"
        for parent, self.limit_file in ((common.CGROUPS / "cpu", "cpu.cfs_quota_us"),
                                        (common.CGROUPS, "cpu.max")):
            self.path = parent / name
            try:
                self.path.mkdir()
            except OSError:
                continue
            if (self.path / self.limit_file).exists():
                return
            self.path.rmdir()
        common.fail("no cgroup with a CPU quota can be made here; run as root where "
                    "/sys/fs/cgroup is writable.")

    def enter(self):
        """Moves the calling process into the group."""
        (self.path / "cgroup.procs").write_text("0")

    def limit(self, percent):
        """From now on they have so much of one processor."""
        quota = QUOTA_PERIOD_US * percent // 100
        if self.limit_file == "cpu.max":
            (self.path / self.limit_file).write_text(f"{quota} {QUOTA_PERIOD_US}")
        else:
            (self.path / "cpu.cfs_period_us").write_text(str(QUOTA_PERIOD_US))
            (self.path / self.limit_file).write_text(str(quota))

    def throttled(self):
        """In how many periods they had to wait."""
        return int(dict(line.split() for line in (
            self.path / "cpu.stat").read_text().splitlines())["nr_throttled"])

    def remove(self):
        """Removes the group; the processes in it must have ended."""
        self.path.rmdir()


def nothing(server):
    """What else is done beside the load, until it is killed."""


def monitor(server):
    """As monitors of memory do."""
    while True:
        for name in ("smaps", "maps", "smaps_rollup"):
            Path(f"/proc/{server.pid}/{name}").read_bytes()
        time.sleep(BESIDE_S)


def purge(server):
    """As another client may."""
    with common.connect(server.address) as connection:
        while True:
            for command in (common.resp(b"MEMORY", b"PURGE"),
                            common.resp(b"SELECT", b"1"), common.resp(b"FLUSHDB")):
                common.exchange(connection, command, b"+OK\r\n")
            time.sleep(BESIDE_S)


# By name: what is done beside, and whether there is a quota.
SITUATIONS = {"alone": (nothing, False), "quota": (nothing, True),
              "monitor": (monitor, False), "purge": (purge, False)}


def measure(args, beside, quota, server):
    """The figures of one run on a server that has just started."""
    keys = load.fill(server, args.mb)
    made = load.exchanges(keys)
    nmeshes = server.mesh_stats().get("nmeshes", 0)
    client = load.Client(server.address, made)
    other = multiprocessing.get_context("fork").Process(
        target=beside, daemon=True, args=(server,))
    other.start()
    time.sleep(args.seconds)
    waits = [ns for _, ns in client.stop()]
    other.kill()
    other.join()
    stats = server.mesh_stats()
    figures = {"longest_ms": max(waits) / 1e6,
               "most_ms": statistics.quantiles(waits, n=1000)[-1] / 1e6,
               "median_us": statistics.median(waits) / 1e3,
               "rate": len(waits) * load.COMMANDS / args.seconds,
               "memory": sum(common.physical(server.pid)) / common.MB,
               "nmeshes": stats.get("nmeshes", 0) - nmeshes,
               "mesh_off": stats.get("off", "")}
    if quota:
        figures["throttled"] = quota.throttled()
    print(f" {figures['longest_ms']:.1f} ms", flush=True)
    return figures


def run(args, situation, malloc, directory):
    """One run; returns its figures."""
    beside, has_quota = SITUATIONS[situation]
    quota = Quota() if has_quota else None
    if quota:
        quota.limit(args.quota)
    try:
        server = common.Redis(args.redis, malloc, directory, cgroup=quota)
        try:
            return measure(args, beside, quota, server)
        finally:
            server.stop()
    finally:
        if quota:
            quota.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    parser.add_argument("--mb", type=int, default=256,
                        help="memory that Redis uses (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=10,
                        help="of load (default %(default)s)")
    parser.add_argument("--quota", type=int, default=50,
                        help="per cent of a processor (default %(default)s)")
    parser.add_argument("--situation", nargs="+", choices=SITUATIONS,
                        default=list(SITUATIONS), help="only these")
    parser.add_argument("--redis", help="the redis-server to run")
    args = parser.parse_args()
    args.redis = args.redis or common.redis_server()
    variants = common.select(common.linked_servers(args), args.only)

    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for situation in args.situation:
            print(f"{situation}:")
            figures = {name: [] for name in variants}
            for name in common.turns(variants, args.runs):
                figures[name].append(
                    run(args, situation, variants[name], directory))
            results[situation] = common.against_stock(figures)
            common.variant_table(situation, results[situation], COLUMNS)
    path = common.OUT / "clients.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
