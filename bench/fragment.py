#!/usr/bin/python3
"""What a fragmented heap keeps of the memory that it had: objects are allocated,
most are freed in a pattern, and the program idles.
"""

import argparse
import itertools

import common
from common import MB

PATTERNS = ("random", "stride", "front", "runs", "robson")
COLUMNS = (  # key, heading, format, with ratio to stock
    ("peak", "peak MB", "{:,.0f}", True),
    ("after", "at frees' end", "{:,.0f}", False),
    ("final", "final MB", "{:,.1f}", True),
    ("cgroup", "by cgroup", "{:,.1f}", False),
    ("mean", "mean MB", "{:,.0f}", True),
    ("live", "live MB", "{:,.0f}", False),
    ("released", "released MB", "{:,.1f}", False),
    ("share", "% of possible", "{:.1f}", False),
    ("mappings", "mappings", "{:,.0f}", False),
    ("allocating_s", "allocating s", "{:.2f}", True),
    ("freeing_s", "freeing s", "{:.2f}", True),
    ("idle_cpu_s", "CPU idle s", "{:.2f}", False),
    ("emptying_ms", "freeing rest ms", "{:.1f}", True),
    ("empty", "MB after", "{:,.1f}", False),
)


def figures(phases, curve):
    allocated, freed, idled, emptied, ended = (
        phases[name]
        for name in ("allocated", "freed", "idled", "emptied", "ended"))
    result = {"peak": max(memory for _, memory in curve),
              "before": allocated["memory"],
              "after": freed["memory"], "final": idled["memory"],
              "mean": common.mean_over_time(curve, allocated["at"]),
              "live": idled["live"] / MB,
              "mappings": idled["mappings"],
              "allocating_s": allocated["seconds"],
              "freeing_s": freed["seconds"],
              "idle_cpu_s": idled["cpu_s"] - freed["cpu_s"],
              "emptying_ms": emptied["ms"], "empty": ended["memory"],
              "mesh_off": idled.get("mesh_off")}
    if "cgroup_pages" in idled:
        result["cgroup"] = idled["cgroup_pages"]
    return result


def add_released(runs):
    """What each variant has less than stock in the same run, and what share this
    is of all that stock keeps beyond the live bytes."""
    for each in runs.values():
        for stock, one in zip(runs["stock"], each):
            one["released"] = stock["final"] - one["final"]
            one["share"] = 100 * one["released"] / (stock["final"]
                                                    - one["live"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common.add_arguments(parser, runs=3)
    common.add_only(parser)
    parser.add_argument("--mb", type=int, default=1024,
                        help="size of the heap (default %(default)s)")
    parser.add_argument("--size", nargs="+", default=["256"],
                        help="of the objects, or mix for 8 bytes to 14 KiB "
                        "(default 256)")
    parser.add_argument("--freed", nargs="+", type=int, default=[80],
                        help="per cent of the objects (default 80)")
    parser.add_argument("--pattern", nargs="+", default=["random"],
                        choices=PATTERNS,
                        help="random, stride (each n-th stays), front (the first "
                        "of each page stay), runs (neighbours share their fate), "
                        "robson (Robson's adversary, no --freed); default random")
    parser.add_argument("--idle", type=int, default=30, metavar="SECONDS",
                        help="after the frees (default %(default)s)")
    parser.add_argument("--max-map-count", type=int, metavar="N",
                        help="vm.max_map_count meanwhile")
    args = parser.parse_args()
    # mesh turns background threads on; without them an idle stock jemalloc
    # would keep free pages, which is not what this is about.
    mallocs = common.mallocs(args, "background_thread:true")
    program = common.compile_program("fragment", common.HERE / "report.c")

    results = []
    with common.max_map_count(args.max_map_count) as limit:
        for size, freed, pattern in itertools.product(args.size, args.freed,
                                                      args.pattern):
            title = (f"{args.mb} MB of {size} B, " + (
                pattern if pattern == "robson" else f"{freed} % {pattern}"))
            print(title, flush=True)
            runs = {name: [] for name in mallocs}
            curves = {name: [] for name in mallocs}
            for i, name in enumerate(common.turns(mallocs, args.runs)):
                phases, curve = common.watch(mallocs[name], [
                    program, args.mb * MB, 0 if size == "mix" else size, freed,
                    pattern, args.idle, 1 + i // len(mallocs)])
                curve = [(at, memory) for at, memory in curve
                         if at <= phases["idled"]["at"]]
                runs[name].append(figures(phases, curve))
                curves[name].append(curve)
                print(f" {runs[name][-1]['final']:.1f} MB", flush=True)
            add_released(runs)
            result = common.against_stock(runs)
            common.variant_table(title, result, COLUMNS)
            stem = f"fragment-{args.mb}-{size}-{freed}-{pattern}"
            common.draw(common.OUT / f"{stem}.png",
                        f"{title} of the objects freed", curves)
            print(f"memory over time: {common.OUT}/{stem}.png\n", flush=True)
            results.append({"mb": args.mb, "size": size, "freed": freed,
                            "pattern": pattern, "max_map_count": limit,
                            "curves": curves, **result})
    path = common.OUT / f"fragment-{args.mb}-{limit}.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
