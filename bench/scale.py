#!/usr/bin/python3
"""What meshing costs by the size of the heap: a pass over an unchanged heap, an idle
second, and memory for its own data.
"""

import argparse

import common
from common import MB

COLUMNS = (  # key, heading, format
    ("memory", "memory MB", "{:,.0f}"),
    ("saved_mb", "saved MB", "{:,.0f}"),
    ("followers", "followers", "{:,.0f}"),
    ("first_ms", "CPU ms, 1st pass", "{:,.0f}"),
    ("unchanged_ms", "unchanged", "{:,.2f}"),
    ("idle_ms", "idle second", "{:,.2f}"),
    ("idle_passes", "passes in it", "{:.1f}"),
    ("metadata_mb", "metadata MB", "{:.2f}"),
    ("metadata_grown_mb", "over mesh off", "{:.2f}"),
    ("scratch_mb", "scratch MB", "{:.2f}"),
    ("kernel_mb", "kernel MB", "{:,.1f}"),
    ("overhead", "own/heap %", "{:.3f}"),
)
GOAL_PERCENT = 0.5


def figures(phases, curve, seconds):
    freed, meshed, unchanged, idled = (phases[name] for name in (
        "freed", "meshed", "unchanged", "idled"))
    during = [memory for at, memory in curve
              if meshed["at"] <= at <= unchanged["at"]]
    result = {"memory": idled["memory"], "saved_mb": idled["saved"] / MB,
              "followers": idled["followers"],
              "first_ms": meshed["pass_ms"],
              "unchanged_ms": unchanged["pass_ms"],
              "idle_ms": 1e3 * (idled["cpu_s"] - unchanged["cpu_s"]) / seconds,
              "idle_passes":
                  (idled["npasses"] - unchanged["npasses"]) / seconds,
              "metadata_mb": idled["metadata"] / MB,
              "scratch_mb": max(0, max(during) - unchanged["memory"]),
              "mesh_off": idled.get("mesh_off")}
    if "cgroup_pages" in idled:
        # Page tables and mappings; the program reads no file meanwhile.
        result["kernel_mb"] = idled["cgroup_charged"] - idled["cgroup_pages"]
    return result


def add_overhead(runs, megabytes):
    """What mesh needs for itself, in per cent of the heap before the frees."""
    for each in runs.values():
        for off, one in zip(runs["mesh off"], each):
            one["metadata_grown_mb"] = one["metadata_mb"] - off["metadata_mb"]
            one["overhead"] = 100 * (one["metadata_grown_mb"]
                                     + one["scratch_mb"]) / megabytes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    parser.add_argument("--mb", type=int, nargs="+", default=[1024, 2048, 4096],
                        help="sizes of the heap (default 1024 2048 4096)")
    parser.add_argument("--size", type=int, default=256,
                        help="of the objects (default %(default)s)")
    parser.add_argument("--freed", type=int, default=80,
                        help="per cent of them (default %(default)s)")
    parser.add_argument("--idle", type=int, default=10, metavar="SECONDS",
                        help="in the end (default %(default)s)")
    parser.add_argument("--max-map-count", type=int, metavar="N",
                        help="vm.max_map_count meanwhile")
    args = parser.parse_args()
    args.only = ["mesh off", "mesh", *(args.only or ())]
    mallocs = common.mallocs(args, "background_thread:true")
    program = common.compile_program("scale", common.HERE / "report.c",
                                     common.TEST / "measure.c")
    results = {}
    with common.max_map_count(args.max_map_count):
        for megabytes in args.mb:
            runs = {name: [] for name in mallocs}
            for i, name in enumerate(common.turns(mallocs, args.runs)):
                phases, curve = common.watch(mallocs[name], [
                    program, megabytes * MB, args.size, args.freed, args.idle,
                    1 + i // len(mallocs)], period=0.01)
                runs[name].append(figures(phases, curve, args.idle))
                print(f" {runs[name][-1]['unchanged_ms']:.2f} ms", flush=True)
            add_overhead(runs, megabytes)
            results[megabytes] = common.against_stock(runs)
            common.variant_table(
                f"{megabytes} MB of {args.size} B", results[megabytes],
                [(*column, False) for column in COLUMNS])

    own = [result["medians"]["mesh"] for result in results.values()]
    first, last = own[0], own[-1]
    print(f"a pass over an unchanged heap: {first['unchanged_ms']:.2f} ms at "
          f"{args.mb[0]} MB, {last['unchanged_ms']:.2f} ms at {args.mb[-1]} MB "
          f"(wanted: no growth)\nown memory: {last['overhead']:.3f} % of the "
          f"heap (wanted: at most {GOAL_PERCENT} %)")
    path = common.OUT / "scale.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
