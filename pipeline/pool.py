"""Size the pool: decide how many workers a run has, and which resources each worker takes."""

from dataclasses import dataclass, replace

from imagemill.pipeline.config import PoolConfig
from imagemill.pipeline.errors import ConfigError

Nodes = list[tuple[float, float]]
"""(CPUs, GPUs) of each node."""
WITHOUT_CUDA = "Ray has GPUs, but torch finds no CUDA device"
UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths, so room is computed in the same integers."""


@dataclass(frozen=True)
class Pool:
    """The workers of a run, and the resources of each."""

    workers: int
    num_cpus: float
    num_gpus: float
    """Share of one GPU, 0 to 1."""
    threads: int
    """Threads that decode and encode; they also read files of a local disk."""
    batch_size: int

    def no_more_than(self, images: int) -> "Pool":
        """Return the pool with at most one worker for each image."""
        return replace(self, workers=min(self.workers, images))

    def record(self) -> dict[str, float]:
        """Return the pool for run.json, where `actors` is the number of workers."""
        return {
            "actors": self.workers,
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "threads": self.threads,
            "batch_size": self.batch_size,
        }

    @property
    def torch_threads(self) -> int:
        """Threads of torch in a worker whose model runs on the CPU: as many as the worker has CPUs."""
        return max(1, int(self.num_cpus))

    @property
    def each(self) -> str:
        """Description of the resources of a worker."""
        cpus = format_count(self.num_cpus, "CPU")
        if not self.num_gpus:
            return cpus
        return f"{cpus} and {'a' if self.num_gpus == 1 else f'{self.num_gpus:g} of a'} GPU"

    def __str__(self) -> str:
        return f"{format_count(self.workers, 'worker')} of {self.each} each"

    def on(self, nodes: Nodes) -> str:
        """Describe the workers and the cluster in words."""
        usable = [node for node in nodes if any(node)]
        cpus, gpus = sum(cpu for cpu, _ in usable), sum(gpu for _, gpu in usable)
        cluster = f"{format_count(cpus, 'CPU')} and {format_count(gpus, 'GPU')} on {format_count(len(usable), 'node')}"
        return f"{self}; cluster: {cluster}"


def format_count(count: float, noun: str) -> str:
    """Return a count with its noun: `1 worker`, `2 workers`."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def units(amount: float) -> int:
    """Return an amount of CPUs or GPUs in the units of Ray."""
    return round(amount * UNITS)


def gpu_slots(gpus: float, share: float) -> int:
    """Return how many workers the GPUs of a node have room for; a worker's share must be on one GPU."""
    return int(gpus) * (UNITS // units(share))


def room_for(pool: Pool, nodes: Nodes) -> int:
    """Return how many workers can run at once; a worker's CPUs and its share of a GPU must be on one node."""
    if not units(pool.num_cpus):
        return 0
    rooms = [(units(cpu) // units(pool.num_cpus), gpu) for cpu, gpu in nodes]
    return sum(min(room, gpu_slots(gpu, pool.num_gpus)) if pool.num_gpus else room for room, gpu in rooms)


def pool_for(want: PoolConfig, nodes: Nodes, shrink: bool = False) -> Pool:
    """Return the pool that suits a cluster.

    Args:
        want: the config; absent values are chosen to suit the nodes.
        nodes: resources of the cluster.
        shrink: reduce the number of workers to what the cluster has room for.

    Raises:
        ConfigError: when the workers cannot all run at once, unless `want.wait_s` announces more nodes.
    """
    # A node without CPUs, such as a head node, gets no workers.
    hosts = [(cpu, slots) for cpu, gpu in nodes if cpu and (slots := gpu_slots(gpu, want.gpus_per_worker))]
    if want.gpu if want.gpu is not None else bool(hosts):
        # All workers have equal resources, so each takes what the smallest GPU node can give.
        share = min((units(cpu) // slots for cpu, slots in hosts), default=UNITS)
        num_cpus = share // UNITS if share >= UNITS else share / UNITS
        default_workers = sum(slots for _, slots in hosts)
        threads, batch_size = want.threads or max(2, int(num_cpus)), want.batch_size or 32
        pool = Pool(want.workers or default_workers, num_cpus, want.gpus_per_worker, threads, batch_size)
    else:
        # If every node has less than one CPU, a worker takes what the largest node has.
        num_cpus = min(1.0, max((cpu for cpu, _ in nodes if cpu), default=1.0))
        default_workers = sum(int(cpu / num_cpus) for cpu, _ in nodes)
        pool = Pool(want.workers or default_workers, num_cpus, 0, want.threads or 2, want.batch_size or 8)
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
            f"pool.workers={pool.workers}: there is room for {format_count(room, 'worker')}; each takes {pool.each} of the "
            f"nodes' (CPUs, GPUs) {nodes}. Lower pool.workers. If an autoscaler adds nodes, set pool.wait_s "
            "to the seconds to wait"
        )
    return pool


def describe_free(pool: Pool, free: Nodes, nodes: Nodes) -> str:
    """Describe how many CPUs or GPUs that a pool needs are free: `0 of 1 CPUs are free`."""
    kind, name = (1, "GPUs") if pool.num_gpus else (0, "CPUs")
    return f"{sum(node[kind] for node in free):g} of {sum(node[kind] for node in nodes):g} {name} are free"
