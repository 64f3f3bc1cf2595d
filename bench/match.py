#!/usr/bin/python3
"""The share of slabs that matching releases: what jemalloc does against SplitMesher
of Mesh and against exhaustive searches, on random slabs and on those of a heap.
"""

import argparse
import itertools
import json
import subprocess

import common

SRC = common.HERE.parent / "src"
REGIONS = (8, 16, 32, 64)
OCCUPANCIES = (10, 20, 30, 40, 50)  # per cent
# Random placement, and nothing meshed while the heap is looked at.
CONF = "mesh:true,mesh_period_ms:-1"
GOAL = 0.95

COLUMNS = (  # key, heading
    ("bound", "live bytes allow"),
    ("split_1", "SplitMesher"),
    ("split_10", "10 times"),
    ("first_fit", "first fit"),
    ("best_fit", "best fit"),
    ("ours", "here"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5,
                        help="seeds (default %(default)s)")
    parser.add_argument("--slabs", type=int, default=10_000,
                        help="slabs to match (default %(default)s)")
    parser.add_argument("--only", choices=("random", "heap"))
    parser.add_argument("--mesh-lib", default=common.BUILD / "lib",
                        help="directory of the libjemalloc.so.2 that meshes")
    args = parser.parse_args()
    program = common.compile_program("match", SRC / "mesh_match.c",
                                     flags=("-O3",))
    malloc = common.Malloc(common.library(args.mesh_lib), CONF)

    results = []
    for source in (args.only,) if args.only else ("random", "heap"):
        rows = []
        for nregs, occupancy in itertools.product(REGIONS, OCCUPANCIES):
            runs = []
            for seed in range(args.runs):
                end = subprocess.run(
                    [program, source, str(nregs), str(args.slabs),
                     str(occupancy), str(seed)], check=True, text=True,
                    stdout=subprocess.PIPE, env=malloc.environment())
                runs.append(json.loads(end.stdout))
            middle = common.medians(runs)
            quotient = common.ratio(runs, [
                {"first_fit": run["ours"]} for run in runs], "first_fit")
            results.append({"source": source, "regions": nregs,
                            "occupancy": occupancy, "medians": middle,
                            "of_first_fit": quotient, "runs": runs})
            rows.append((f"{nregs:3} regions, {occupancy} % live",
                         *(f"{middle[key]:.3f}" for key, _ in COLUMNS),
                         "-" if quotient is None else f"{quotient:.3f}",
                         f"{1e6 * middle['ours_ms'] / middle['slabs']:.0f}"))
        common.table((f"slabs released, {source}",
                      *(heading for _, heading in COLUMNS),
                      "of first fit", "ns a slab"), rows)
        print(flush=True)
    worst = min(each["of_first_fit"] for each in results
                if each["of_first_fit"] is not None)
    print(f"worst of first fit: {worst:.3f} (wanted: at least {GOAL})")
    below = [each for each in results for run in each["runs"]
             if run["ours"] < run["split_10"]]
    print(f"runs below SplitMesher after ten passes: {len(below)} (wanted: 0)")
    path = common.OUT / "match.json"
    common.save(path, results)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
