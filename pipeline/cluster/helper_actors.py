"""Replace Ray Data's helper actors by objects in the driver, where one machine needs no actors for them.

Next to the workers, Ray Data starts three actors for a cluster: one collects statistics for the dashboard, one shares the
resources of the cluster between programs, and one remembers on which node each worker runs. Each of them is a process that
imports Ray Data for a CPU-second, and no image is processed before the second one has answered. Ray is pinned to a version
(pyproject.toml), and a test lists the processes of a private Ray.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any


class Call:
    """A method of an object that is called like the method of an actor."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class Recipient:
    """Stands in for an actor: all calls are ignored. A copy may be sent to workers."""

    def __getattr__(self, name: str) -> Call:
        if name.startswith("__"):
            raise AttributeError(name)
        return Call(ignore)


class Reservations(Recipient):
    """Stands in for the actor that shares resources: this program may use all resources of its nodes."""

    @cached_property
    def get_reserved_resources(self) -> Call:
        """A call that returns a reference to the resources of each node, like the actor."""
        import ray

        resources = ray.put({node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]})
        return Call(lambda requester: resources)


class Locations(Recipient):
    """Stands in for the actor that knows the node of each worker: Ray Data then takes the node that the worker names."""

    @property
    def get_actor_locations(self) -> Call:
        """A call that returns a reference to the node of each worker, like the actor."""
        return Call(put_unknown_locations)


def ignore(*args: Any, **options: Any) -> None:
    """Ignore a call."""


def put_unknown_locations(workers: list[str]) -> Any:
    """Return a reference to an unknown location for each worker."""
    import ray

    return ray.put(dict.fromkeys(workers))


@contextmanager
def helper_actors_in_driver() -> Iterator[None]:
    """Let Ray Data call objects of this process instead of its helper actors in the `with` block."""
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.data._internal.utils import cached_ray_internals

    with ExitStack() as stack:
        for owner, name, value in (
            (stats, "get_or_create_stats_actor", Recipient),
            (default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator", Reservations),
            (actor_pool_map_operator, "get_or_create_actor_location_tracker", Locations),
            (cached_ray_internals, "get_or_create_actor_location_tracker", Locations),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
