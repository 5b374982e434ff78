"""Print what a run would do, without doing it."""

import logging
from collections import Counter
from typing import Any

from imagemill.jobs.console import number, print_facts, print_json
from imagemill.pipeline.cluster.connection import address_of, connected
from imagemill.pipeline.cluster.nodes import free_resources, nodes_with_room, nodes_without_cuda
from imagemill.pipeline.config import PoolConfig, RunConfig
from imagemill.pipeline.engines.fork_server import call_in_worker
from imagemill.pipeline.engines.selection import select_engine
from imagemill.pipeline.output.run_history import read_last_records
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.pool import WITHOUT_CUDA, describe_free, pool_for, room_for
from imagemill.pipeline.progress import clock, rate_text
from imagemill.pipeline.resolve import ResolvedRun, build_plan, check_model, check_output_task, resolve
from imagemill.pipeline.run_progress import ON_CPU
from imagemill.pipeline.sources.folder import OTHER_KIND
from imagemill.pipeline.sources.system_files import EXCLUDED
from imagemill.pipeline.user_code import permitted

log = logging.getLogger("imagemill.run")
SHOWN_KINDS = 5
SIMILAR_SHARES = 0.02
"""Two runs are comparable if the shares of images whose quality they measure differ by less than this.

Measuring an image takes ten times as long as processing it, so 0.02 more makes a run a fifth slower.
"""


def show_plan(config: RunConfig, as_json: bool = False) -> None:
    """Print what a run would do, and on a cluster which workers would do it; change nothing.

    Args:
        config: the config of the run.
        as_json: print one JSON object with the keys of `plan_values` instead of text.

    Raises:
        ConfigError: if the config is invalid, or the cluster has no room for the workers.
        CheckpointError: if the checkpoint cannot do the task.
        StorageError: if the input or the output cannot be read.
    """
    job = resolve(config)
    engine, reason = select_engine(config)
    check_output_task(job)
    plan = build_plan(job)
    with permitted(job.code):
        call_in_worker(check_model, job)
    if plan.new_input:
        log.warning("a run would refuse this plan: %s", plan.new_input)
    values = {**plan_values(job, plan), "engine": engine.name, "engine_reason": reason}
    facts = plan_facts(job, plan, values)
    address = address_of(config.address)
    # On this machine a run uses all CPUs; on a cluster the user cannot know what is free.
    if len(plan.todo) and address:
        cluster_values, cluster_facts = workers_on_cluster(config.pool, address, len(plan.todo))
        values |= cluster_values
        facts += cluster_facts
    if as_json:
        print_json(values)
    else:
        print_facts(facts)


def plan_values(job: ResolvedRun, plan: Plan) -> dict[str, Any]:
    """Return the object that `imagemill plan --json` prints. Its keys are an interface: they stay, new ones may come.

    task, model_id, checkpoint_sha256, input, prefix, output, found, ignored, ignored_by_kind, done_before, rejects_waiting
    and planned mean the same as in run.json, except that prefix is null without one. In addition:

    - planned_bytes: size of the images to process, in bytes; images behind a URL count as 0.
    - estimated_s: expected duration in seconds, at the rate of the last run; null before the first run.
    - input_warning: why INPUT may be the wrong place; null if nothing suggests so.
    - refusal: why a run with this config would stop before it starts; null if it would start.
    - engine, engine_reason: the engine that a run uses, local or ray, and why.
    - workers, workers_free: how many workers a run starts, and for how many a cluster has room now; null unless the
      run uses a cluster.
    """
    last = last_rated_record(job)
    planned = len(plan.todo)
    return {
        "task": job.task.name,
        "model_id": job.card.name,
        "checkpoint_sha256": job.card.sha256,
        "input": job.source.url,
        "prefix": job.config.prefix,
        "output": job.output.url,
        "found": plan.found,
        "ignored": plan.ignored.total(),
        "ignored_by_kind": dict(plan.ignored.most_common()),
        "done_before": plan.done,
        "rejects_waiting": plan.rejects_waiting,
        "planned": planned,
        "planned_bytes": plan.bytes_todo,
        "estimated_s": round(planned / last["images_per_s"], 1) if last else None,
        "input_warning": plan.input_warning,
        "refusal": plan.new_input,
        "workers": None,
        "workers_free": None,
    }


def plan_facts(job: ResolvedRun, plan: Plan, values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines that `imagemill plan` prints: a name and a value each."""
    return [
        ("task", f"{values['task']} with {values['model_id']} ({values['checkpoint_sha256'][:12]})"),
        ("engine", f"{values['engine']} ({values['engine_reason']})"),
        ("found", f"{number(plan.found, 'image')}, {other_files(plan.ignored)}"),
        ("done before", f"{plan.done:,}"),
        ("rejects waiting", f"{plan.rejects_waiting:,}"),
        ("planned", f"{number(values['planned'], 'image')}, {plan.bytes_todo / 1e6:,.1f} MB"),
        ("time", expected_time(job, values["planned"])),
    ]


def other_files(kinds: Counter[str]) -> str:
    """Describe the files that are no images: 315 other files (txt 300, md 12, excluded 3)."""
    excluded = kinds[EXCLUDED]
    shown = Counter({kind: count for kind, count in kinds.items() if kind not in (OTHER_KIND, EXCLUDED)}).most_common(
        SHOWN_KINDS
    )
    rest = kinds.total() - excluded - sum(count for _, count in shown)
    counts = ", ".join(f"{kind} {count:,}" for kind, count in [*shown, (OTHER_KIND, rest), (EXCLUDED, excluded)] if count)
    return number(kinds.total(), "other file") + (f" ({counts})" if counts else "")


def last_rated_record(job: ResolvedRun) -> dict[str, Any] | None:
    """Return the record of the newest run that measured a rate; None before the first run."""
    records = [record for record in read_last_records(job.output) if record.get("images_per_s")]
    return records[-1] if records else None


def expected_time(job: ResolvedRun, planned: int) -> str:
    """Estimate how long a run takes, from the rate of the last run, and say if the two runs are not comparable."""
    if not planned:
        return "nothing to do"
    last = last_rated_record(job)
    if last is None:
        return "unknown before the first run"
    rate, last_share, share = last["images_per_s"], last.get("measured_share"), job.config.measured_share(planned)
    text = f"about {clock(planned / rate)} at the last run's {rate_text(rate)}"
    if last_share is None or abs(last_share - share) < SIMILAR_SHARES:
        return text
    difference = "less time" if share < last_share else "longer"
    return (
        f"{text}; it measured the quality of {last_share:.0%} of its images, this run {share:.0%}, which takes {difference}"
    )


def workers_on_cluster(pool_config: PoolConfig, address: str, images: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return how many workers a run starts on a cluster and for how many there is room now, as JSON values and as lines.

    Raises:
        ConfigError: if the cluster cannot be reached, or has no room for the workers.
    """
    with connected(address):
        nodes, free = nodes_with_room(pool_config), free_resources()
        pool = pool_for(pool_config, nodes).no_more_than(images)
        if pool.num_gpus and (nodes_on_cpu := nodes_without_cuda()):
            log.warning("%s (%s): %s", WITHOUT_CUDA, ", ".join(nodes_on_cpu), ON_CPU)
    workers_free = min(pool.workers, room_for(pool, free))
    facts = [
        ("cluster", pool.on(nodes)),
        ("free now", f"{describe_free(pool, free, nodes)}: {workers_free} of {pool.workers} workers can start"),
    ]
    return {"workers": pool.workers, "workers_free": workers_free}, facts
