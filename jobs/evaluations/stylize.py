"""Evaluate `stylize`: the content loss of stronger styles, and one pass compared with optimising the image."""

import numpy as np
import torch

from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Measured,
    TableRow,
    check_config,
    mean,
    pick_evenly,
    read_images,
    read_outputs,
    run_pipeline,
)
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models import checkpoint as checkpoints
from imagemill.models.batches import to_float_batch
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.objectives.stylize import STYLE_SIDE
from imagemill.models.resizing import limit_side
from imagemill.models.ripples import all_blocks, find_flat_blocks, gradient_energy
from imagemill.models.style_transfer import StyleTransfer
from imagemill.models.tasks.stylize import GATYS_SIDE, METHOD_PARAMS, StylizeParams
from imagemill.models.type_checks import require_type
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet

ALPHAS = [100.0, 10.0, 1.0, 0.1]
COMPARED = [0, 10, 50, 100]
SHOWN = 4


def evaluate_stylize(config: EvaluateConfig) -> Evaluation:
    """Measure the losses of both methods on a folder of content images.

    The sweep runs `gatys` with falling α and one β. The comparison measures `adain`, and `gatys` after different numbers of
    steps at the default α and β, by the losses of the same network, and the model time of an image. Ripples are compared
    where the content images are flat.
    """
    for key in ("method", "strength", "size"):
        if key in config.params:
            raise ConfigError(f"params.{key}: the evaluation sets it itself. Remove it")
    once = {k: v for k, v in config.params.items() if k not in METHOD_PARAMS["gatys"]} | {
        "method": "adain",
        "size": GATYS_SIDE,
    }
    one_pass = config.model_copy(update={"params": once})
    config = config.model_copy(update={"params": config.params | {"method": "gatys", "size": GATYS_SIDE}})
    job = check_config(config, "alpha")
    params = job.params
    params = require_type(params, StylizeParams)
    net = checkpoints.build(job.card, job.weights)
    style_images = [decode_image(data).rgb for _, data in job.style_images]
    contents = read_images(str(config.input), config.storage)
    shown = pick_evenly(list(contents), SHOWN)
    style = Tile(limit_side(style_images[0], 256), "the style" if len(style_images) == 1 else "one of the styles")

    sweep, columns = [], []
    for alpha in config.at or ALPHAS:
        with run_pipeline(config, {"alpha": alpha}, str(config.input)) as (output, _):
            rows, images = read_newest_rows(output, ["content_loss", "style_loss"]), read_outputs(output)
        line: TableRow = {"alpha / beta": alpha / params.beta if params.beta else float("inf")}
        for name in ("content_loss", "style_loss"):
            line[name.replace("_", " ")] = mean([row[name] for row in rows.values()])
        sweep.append(line)
        columns.append([Tile(limit_side(images[name], 256), f"style loss {rows[name]['style_loss']:.4f}") for name in shown])

    with run_pipeline(config, {}, str(config.input)) as (output, record):
        curves, slow = read_newest_rows(output, ["losses"]), model_seconds_per_image(record)
        optimised = read_outputs(output)
    stylist = TASK_OBJECTIVES[job.task.name].prepare(net, params, style_images, "cpu")
    stylist = require_type(stylist, StyleTransfer)
    compared: list[TableRow] = []
    if net.decoder is not None:
        with run_pipeline(one_pass, {}, str(config.input)) as (output, record):
            images, fast = read_outputs(output), model_seconds_per_image(record)
        totals = {name: total_loss(stylist, picture.rgb, images[name], params) for name, picture in contents.items()}
        as_good = [steps_to(curves[name]["losses"], total) for name, total in totals.items()]
        compared.append(
            {"method": "adain", "loss": mean(list(totals.values())), "model s/image": fast, "times faster": slow / fast}
        )
        columns.append([Tile(limit_side(images[name], 256), "adain") for name in shown])
    photos = {name: limit_side(picture.rgb, GATYS_SIDE) for name, picture in contents.items()}
    painted = {f"gatys, {params.steps} steps": optimised} | ({"adain": images} if net.decoder is not None else {})
    ripples = compare_ripples(photos, painted, [limit_side(rgb, STYLE_SIDE) for rgb in style_images])
    for steps in [*(n for n in COMPARED if n < params.steps), params.steps]:
        loss = mean([loss_after(row["losses"], steps, params.steps) for row in curves.values()])
        compared.append({"method": f"gatys, {steps} steps", "loss": loss, "model s/image": slow * steps / params.steps})
    notes = [
        f"losses in units of the content's energy, network {job.card.name}; content at {stylist.content_layer}, style at "
        f"{', '.join(stylist.target.weights)}; long side at most {GATYS_SIDE} pixels"
    ]
    headline = f"style loss {sweep[-1]['style loss']:.4f} at alpha {(config.at or ALPHAS)[-1]:g}"
    if net.decoder is not None:
        median = int(np.median(as_good))
        notes.append(f"one pass reaches the loss of {median} steps of gatys (median; {min(as_good)} to {max(as_good)})")
        headline = f"one pass: loss {compared[0]['loss']:.3f}, like {median} steps of gatys"
    return Evaluation(
        len(contents),
        {
            "gatys with falling weight of the content": sweep,
            "one pass and optimisation": compared,
            "share of the gradient that repeats every 8 pixels, where the contents are flat": ripples,
        },
        [Measured(config.weights, headline, [*sweep, *compared, *ripples])],
        draw_contact_sheet(
            [
                "content",
                "style",
                *(f"gatys, alpha {alpha:g}" for alpha in config.at or ALPHAS),
                *(["one pass"] if len(columns) > len(sweep) else []),
            ],
            [
                [Tile(limit_side(contents[n].rgb, 256), n), style, *(column[i] for column in columns)]
                for i, n in enumerate(shown)
            ],
        ),
        notes,
    )


def compare_ripples(
    photos: dict[str, np.ndarray], painted: dict[str, dict[str, np.ndarray]], style_images: list[np.ndarray]
) -> list[TableRow]:
    """Return the share of ripples in painted images, where the photos are flat, and in the whole style images.

    Args:
        photos: content images (H,W,3) uint8, by name.
        painted: for each method, the output of each content image. The ripples of the first method are the unit.
        style_images: images (H,W,3) uint8.
    """
    flat = {name: find_flat_blocks(rgb) for name, rgb in photos.items()}
    table: list[TableRow] = []
    for method, images in {**painted, "the contents": photos}.items():
        share = ripple_share([gradient_energy(images[name], corners) for name, corners in flat.items()])
        line: TableRow = {"picture": method, "ripples %": share}
        unit = table[0]["ripples %"] if table else share
        table.append({**line, "times gatys": share / unit if share is not None and unit else None})
    style = ripple_share([gradient_energy(rgb, all_blocks(rgb)) for rgb in style_images])
    return [*table, {"picture": "the style, everywhere", "ripples %": style}]


def ripple_share(energies: list[tuple[float, float]]) -> float | None:
    """Return the share of ripples in percent, as the mean of images with a gradient in these blocks; None without any."""
    shares = [100 * repeated / total for repeated, total in energies if total]
    return mean(shares) if shares else None


def model_seconds_per_image(record: dict[str, object]) -> float:
    """Return the seconds that the model needed for an image of a run."""
    stages, ok = record["stage_seconds"], record["ok"]
    stages = require_type(stages, dict)
    ok = require_type(ok, int)
    return float(stages["model"]) / ok


def total_loss(stylist: StyleTransfer, content: np.ndarray, painted: np.ndarray, params: StylizeParams) -> float:
    """Return α·content loss + β·style loss of the output of a run."""
    x, t = (to_float_batch([limit_side(rgb, GATYS_SIDE)], stylist.stride, "cpu") for rgb in (content, painted))
    with torch.inference_mode():
        features = stylist.network.features(x, {stylist.content_layer})[stylist.content_layer]
        content_B, style_B = stylist.losses(t, features)
    return float(params.alpha * content_B + params.beta * style_B)


def steps_to(losses: list[float], total: float) -> int:
    """Return the number of steps after which a curve of losses reaches `total`; all steps if it never does."""
    below = [step for step, loss in enumerate(losses) if loss <= total]
    return below[0] if below else len(losses) - 1


def loss_after(losses: list[float], steps: int, of: int) -> float:
    """Return the loss after `steps` of `of` steps: at the end the loss of the output, before it the lowest loss so far.

    A curve contains each evaluation of the loss, also at points that the line search rejected.
    """
    return losses[-1] if steps == of else min(losses[: steps + 1])
