#!/usr/bin/python3
"""FLUSHALL of a fragmented redis-server: CPU time of the thread that frees all, on
stock jemalloc and with meshing, and how soon the memory is back.
"""

import argparse
import tempfile
import time

import common
import load
from common import MB

AFTER_S = (1, 10)  # when memory is measured after it
GOAL = 1.2

COLUMNS = (  # key, heading, format, with ratio to stock
    ("cpu_ms", "main thread ms", "{:,.0f}", True),
    ("wall_ms", "reply after ms", "{:,.0f}", True),
    ("before", "MB before", "{:,.1f}", True),
    *((f"after_{s}", f"{s} s after", "{:,.1f}", True) for s in AFTER_S),
    ("followers", "followers", "{:,.0f}", False),
    ("mappings", "mappings", "{:,.0f}", False),
    ("mappings_after", "after", "{:,.0f}", False),
)


def memory(server):
    return sum(common.physical(server.pid)) / MB


def measure(args, server):
    load.fill(server, args.mb)
    load.await_meshed(server)
    figures = {"before": memory(server), "mappings": common.mappings(server.pid),
               "followers": server.mesh_stats().get("followers", 0)}
    begin, cpu = time.monotonic(), common.cpu_main(server.pid)
    server.command("FLUSHALL", "SYNC")
    end = time.monotonic()
    figures |= {"cpu_ms": 1e3 * (common.cpu_main(server.pid) - cpu),
                "wall_ms": 1e3 * (end - begin)}
    for seconds in AFTER_S:
        time.sleep(end + seconds - time.monotonic())
        figures[f"after_{seconds}"] = memory(server)
    figures["mappings_after"] = common.mappings(server.pid)
    figures["mesh_off"] = server.mesh_stats().get("off", "")
    print(f" {figures['cpu_ms']:.0f} ms", flush=True)
    return figures


def run(args, malloc, directory):
    server = common.Redis(args.redis, malloc, directory)
    try:
        return measure(args, server)
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, runs=5)
    common.add_only(parser)
    parser.add_argument("--mb", type=int, default=1024,
                        help="memory that Redis uses (default %(default)s)")
    parser.add_argument("--redis", help="the redis-server to run")
    args = parser.parse_args()
    args.redis = args.redis or common.redis_server()
    variants = common.select(common.linked_servers(args), args.only)

    figures = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as directory:
        for name in common.turns(variants, args.runs):
            figures[name].append(run(args, variants[name], directory))
    result = common.against_stock(figures)
    common.variant_table(f"{args.mb} MB", result, COLUMNS)
    print(f"main thread, mesh / stock: wanted: at most {GOAL}")
    path = common.OUT / f"flush-{args.mb}.json"
    common.save(path, result)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
