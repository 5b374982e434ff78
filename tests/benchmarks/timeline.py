"""Print the timeline of a short run, by the driver's clock: python tests/benchmarks/timeline.py INPUT OUTPUT [--engine ray].

Prints when each step of `imagemill denoise --limit 10` began and how long it took. Steps that run in other threads overlap.
"""

import importlib
import sys
import time

BEGAN = time.monotonic()
STEPS = {
    "imagemill.pipeline.run": ("resolve", "build_plan", "execute", "account", "write_run_report", "compact"),
    "imagemill.pipeline.cluster.connection": ("start_ray", "wait_for_end"),
    "imagemill.pipeline.engines.ray_engine": ("nodes_with_room", "run_blocks"),
    "imagemill.jobs.process": ("wait_for_end",),
}
"""Functions that are timed, by module."""


def timed(module: str, name: str) -> None:
    """Make a function of a module print its start and duration."""
    owner = importlib.import_module(module)
    function = getattr(owner, name)

    def wrapped(*args, **options):
        began = time.monotonic()
        try:
            return function(*args, **options)
        finally:
            print(f"{began - BEGAN:6.2f} s  {name:17}{time.monotonic() - began:6.2f} s", file=sys.stderr)

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    from imagemill.__main__ import main

    for module, names in STEPS.items():
        for name in names:
            timed(module, name)
    print(f"{time.monotonic() - BEGAN:6.2f} s  imported", file=sys.stderr)
    sys.argv = ["imagemill", "denoise", *sys.argv[1:], "--limit", "10"]
    main()
