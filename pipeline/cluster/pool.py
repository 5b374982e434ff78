"""The workers of a run: how many a cluster has room for."""

import logging
import time
from dataclasses import dataclass, replace

from imagemill.pipeline.config import PoolConfig
from imagemill.pipeline.errors import ConfigError

log = logging.getLogger("imagemill.run")
PATIENCE_SECONDS = 60.0
"""How long a run waits for an image, or for a first node, where actors have no place."""
LOOK_SECONDS = 2.0
Nodes = list[tuple[float, float]]
"""(CPUs, GPUs) of each node."""
WITHOUT_CUDA = "Ray has GPUs, but torch finds no CUDA device on them"
UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths, so room is computed in the same whole numbers."""


@dataclass(frozen=True)
class Pool:
    """The workers of a run."""

    workers: int
    num_cpus: float
    num_gpus: float
    """0, or the share of one GPU, at most 1."""
    threads: int
    batch_size: int

    def no_more_than(self, images: int) -> "Pool":
        """An actor without an image would cost a start."""
        return replace(self, workers=min(self.workers, images))

    def record(self) -> dict[str, float]:
        """Return what run.json says of the pool; its key `actors` is the number of workers."""
        return {
            "actors": self.workers,
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "threads": self.threads,
            "batch_size": self.batch_size,
        }

    @property
    def torch_threads(self) -> int:
        """Threads of torch in an actor whose model runs on a CPU: as many as the actor has CPUs."""
        return max(1, int(self.num_cpus))

    @property
    def each(self) -> str:
        """The resources of an actor, in words."""
        cpus = counted(self.num_cpus, "CPU")
        if not self.num_gpus:
            return cpus
        return f"{cpus} and {'a' if self.num_gpus == 1 else f'{self.num_gpus:g} of a'} GPU"

    def on(self, nodes: Nodes) -> str:
        """What a run uses, in words."""
        able = [node for node in nodes if any(node)]
        cpus, gpus = sum(cpu for cpu, _ in able), sum(gpu for _, gpu in able)
        cluster = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')} on {counted(len(able), 'node')}"
        return f"{counted(self.workers, 'worker')} of {self.each} each; cluster: {cluster}"


def counted(count: float, noun: str) -> str:
    """Return a count with its noun: `1 worker`, `2 workers`."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def units(amount: float) -> int:
    """CPUs or GPUs in Ray's units."""
    return round(amount * UNITS)


def gpu_slots(gpus: float, share: float) -> int:
    """How many actors the GPUs of a node have room for; each finds its share on one of them."""
    return int(gpus) * (UNITS // units(share))


def room_for(pool: Pool, nodes: Nodes) -> int:
    """How many actors like these can run at once; each finds its CPUs, and its share of a GPU, on one node."""
    if not units(pool.num_cpus):
        return 0
    rooms = [(units(cpu) // units(pool.num_cpus), gpu) for cpu, gpu in nodes]
    return sum(min(room, gpu_slots(gpu, pool.num_gpus)) if pool.num_gpus else room for room, gpu in rooms)


def pool_for(want: PoolConfig, nodes: Nodes, shrink: bool = False) -> Pool:
    """The actors that suit a cluster; with `shrink` no more of those that are wanted than it has room for.

    Raises: ConfigError when they cannot all run at once, unless `want.wait_s` says that nodes are yet to come.
    """
    # A node without CPUs, as a head is told to be, gets no actors.
    hosts = [(cpu, slots) for cpu, gpu in nodes if cpu and (slots := gpu_slots(gpu, want.gpus_per_worker))]
    if want.gpu if want.gpu is not None else bool(hosts):
        # An actor lives on one node: it takes what the poorest GPU node can give each of its actors.
        share = min((units(cpu) // slots for cpu, slots in hosts), default=UNITS)
        num_cpus = share // UNITS if share >= UNITS else share / UNITS
        default = sum(slots for _, slots in hosts)
        threads, batch_size = want.threads or max(2, int(num_cpus)), want.batch_size or 32
        pool = Pool(want.workers or default, num_cpus, want.gpus_per_worker, threads, batch_size)
    else:
        # Where every node has less than a CPU, a worker takes what the best of them has.
        num_cpus = min(1.0, max((cpu for cpu, _ in nodes if cpu), default=1.0))
        default = sum(int(cpu / num_cpus) for cpu, _ in nodes)
        pool = Pool(want.workers or default, num_cpus, 0, want.threads or 2, want.batch_size or 8)
    room = room_for(pool, nodes)
    if want.wait_s:
        if not pool.workers:
            raise ConfigError(
                "pool.workers: missing. There are no nodes yet and pool.wait_s is set, so say how many workers to wait for"
            )
        return pool
    if shrink and room:
        return replace(pool, workers=min(pool.workers, room))
    if not room or pool.workers > room:
        raise ConfigError(
            f"pool.workers={pool.workers}: there is room for {counted(room, 'worker')}; each takes {pool.each} of the "
            f"nodes' (CPUs, GPUs) {nodes}. Lower pool.workers. If an autoscaler adds nodes, set pool.wait_s "
            "to the seconds to wait"
        )
    return pool


def node_resources() -> Nodes:
    """(CPUs, GPUs) of each node that is alive."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def free_resources() -> Nodes:
    """(CPUs, GPUs) of each node that is alive, less what any work on the cluster holds."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node().values()
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in free]


def free_of(pool: Pool, free: Nodes, nodes: Nodes) -> str:
    """How much of what the workers of a pool need is free, in words: 0 of 1 CPUs are free."""
    kind, name = (1, "GPUs") if pool.num_gpus else (0, "CPUs")
    return f"{sum(node[kind] for node in free):g} of {sum(node[kind] for node in nodes):g} {name} are free"


def nodes_with_room(want: PoolConfig, patience_s: float = PATIENCE_SECONDS) -> Nodes:
    """The nodes, when there is one that can work: a cluster may have begun a moment ago, or have lost all it had.

    As they are where `want` says that nodes are yet to come: its actors are what an autoscaler waits for.
    """
    end, said = time.monotonic() + (0 if want.wait_s else patience_s), False
    while True:
        nodes = node_resources()
        if any(cpu or gpu for cpu, gpu in nodes) or time.monotonic() >= end:
            return nodes
        if not said:
            log.info("no node has a CPU or a GPU; waiting up to %.0f s for one", patience_s)
            said = True
        time.sleep(LOOK_SECONDS)
