"""Print the timeline of a short run, by the driver's clock: python tests/benchmarks/timeline.py INPUT OUTPUT [--limit 10].

Prints when each step of `imagemill compress` began and how long it took.
"""

import importlib
import sys
import time

BEGAN = time.monotonic()
STEPS = {
    "imagemill.pipeline.run": (
        "resolve",
        "check_output_task",
        "settle",
        "build_plan",
        "execute",
        "account",
        "write_run_report",
        "compact",
    ),
    "imagemill.pipeline.engines.ray_engine": ("check_model", "write_all"),
    "imagemill.pipeline.cluster.connection": ("start_ray",),
    "ray": ("shutdown",),
}


def timed(module: str, name: str) -> None:
    """Make a function of a module print its start and duration."""
    there = importlib.import_module(module)
    function = getattr(there, name)

    def wrapped(*args, **more):
        began = time.monotonic()
        try:
            return function(*args, **more)
        finally:
            print(f"{began - BEGAN:6.2f} s  {name:13}{time.monotonic() - began:6.2f} s", file=sys.stderr)

    setattr(there, name, wrapped)


if __name__ == "__main__":
    from imagemill.__main__ import main

    for module, names in STEPS.items():
        for name in names:
            timed(module, name)
    print(f"{time.monotonic() - BEGAN:6.2f} s  imported (ray too, which a run imports later)", file=sys.stderr)
    sys.argv = ["imagemill", "compress", *sys.argv[1:]]
    main()
