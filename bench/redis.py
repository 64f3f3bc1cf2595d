#!/usr/bin/python3
"""The Redis experiment on all mallocs: physical memory and CPU time of redis-server,
and of Valkey with active defragmentation.
"""

import argparse
import tempfile

import common
import lru

# As in the servers' own tests of it (tests/unit/memefficiency.tcl).
DEFRAG = ("--activedefrag", "yes", "--active-defrag-threshold-lower", "5",
          "--active-defrag-cycle-min", "65", "--active-defrag-cycle-max", "75",
          "--active-defrag-ignore-bytes", "2mb")
VALKEY = common.BUILD / "server/valkey/src/valkey-server"

COLUMNS = (  # key, heading, format, with ratio to stock
    ("memory_final", "final MB", "{:,.1f}", True),
    ("memory_mean", "mean MB", "{:,.1f}", True),
    ("memory_peak", "peak MB", "{:,.1f}", True),
    ("cgroup_pages", "by cgroup", "{:,.1f}", False),
    ("cgroup_charged", "charged", "{:,.1f}", True),
    ("used_memory_mb", "used_memory", "{:,.1f}", False),
    ("keys", "keys", "{:,.0f}", False),
    ("mappings", "mappings", "{:,.0f}", False),
)
COLUMNS_CPU = (
    ("cpu_main", "main thread s", "{:.2f}", True),
    ("cpu_all", "all threads s", "{:.2f}", True),
    ("cpu_idle", "idle s", "{:.2f}", False),
    ("insert_s", "time s", "{:.2f}", True),
    ("stall_ms", "longest wait ms", "{:.1f}", True),
)


def variants_of(args):
    """By name: server, malloc, options."""
    redis = args.redis or common.redis_server()
    pair = common.linked_pair(args)
    known = {"stock": (redis, pair["stock"]),
             "mesh off": (redis, common.LinkedMalloc(pair["mesh"].path)),
             "mesh": (redis, pair["mesh"]),
             "mesh signal": (redis, common.LinkedMalloc(
                 pair["mesh"].path, args.mesh_conf + ",mesh_barrier:signal"))}
    known |= {name: (redis, malloc)
              for name, malloc in common.peers().items()}
    if VALKEY.exists():
        stock, mesh = (common.LinkedMalloc(
            common.library(common.BUILD / "server" / name / "lib"), conf)
            for name, conf in (("stock", ""), ("mesh", args.mesh_conf)))
        known |= {"valkey": (VALKEY, stock), "valkey mesh": (VALKEY, mesh),
                  "defrag": (VALKEY, stock, *DEFRAG)}
    return common.select(known, args.only)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    lru.add_arguments(parser)
    parser.add_argument("--scale", type=int, default=1, metavar="N",
                        help="N times the memory and the keys (default "
                        "%(default)s)")
    parser.add_argument("--max-map-count", type=int, metavar="N",
                        help="vm.max_map_count meanwhile")
    args = parser.parse_args()
    variants = variants_of(args)

    phases = lru.pipelines(args, args.scale)
    figures, curves, marks = ({name: [] for name in variants}
                              for _ in range(3))
    with tempfile.TemporaryDirectory() as directory, \
            common.max_map_count(args.max_map_count) as limit:
        for name in common.turns(variants, args.runs):
            executable, malloc, *options = variants[name]
            for kept, got in zip((figures, curves, marks), lru.run(
                    executable, malloc, phases, args.idle, directory, *options,
                    scale=args.scale)):
                kept[name].append(got)

    result = common.against_stock(figures)
    for name in common.peers():
        middle = result["medians"].get(name)
        # The server goes on to ask the jemalloc that it is linked to.
        if middle and middle["jemalloc_mb"] > middle["used_memory_mb"] / 2:
            common.fail(f"{name} was preloaded in vain: the memory came from "
                        "jemalloc.")
    title = f"LRU cache of {lru.MAXMEMORY_MB * args.scale} MB"
    common.variant_table(title, result, COLUMNS)
    common.variant_table("CPU of the insertions", result, COLUMNS_CPU)
    stem = common.OUT / f"redis-{args.scale}-{limit}"
    common.draw(stem.with_suffix(".png"), f"redis-server as an {title}", curves)
    common.save(stem.with_suffix(".json"),
                {"curves": curves, "marks": marks, **result})
    print(f"memory over time: {stem}.png\nall figures: {stem}.json")


if __name__ == "__main__":
    main()
