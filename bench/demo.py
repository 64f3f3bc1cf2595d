#!/usr/bin/python3
"""The Redis experiment of the Mesh paper: physical memory and CPU time of an
unmodified redis-server on stock jemalloc and on jemalloc with meshing.
"""

import argparse
import tempfile

import common
import lru

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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, runs=3)
    lru.add_arguments(parser)
    args = parser.parse_args()
    args.redis = args.redis or common.redis_server()
    variants = common.linked_pair(args)

    phases = lru.pipelines(args)
    figures, curves, marks = ({name: [] for name in variants}
                              for _ in range(3))
    with tempfile.TemporaryDirectory() as directory:
        for name in common.turns(variants, args.runs):
            for kept, got in zip((figures, curves, marks), lru.run(
                    args.redis, variants[name], phases, args.idle, directory)):
                kept[name].append(got)

    middle, ratios = common.compare(figures, ROWS)
    out = common.BUILD / "demo"
    image = out / "redis-memory.png"
    common.draw(image, "redis-server as an LRU cache of 100 MB", curves, marks,
                lru.INSERTED)
    common.save(out / "redis-memory.json",
                {"medians": middle, "ratios": ratios, "runs": figures,
                 "curves": curves, "marks": marks})
    print(f"memory over time: {image}\nall figures: {out}/redis-memory.json")


if __name__ == "__main__":
    main()
