"""Evaluations by the task that they measure. A new one is one file here and one row in this table."""

from jobs.evaluations.colorize import evaluate_colorize
from jobs.evaluations.compress import evaluate_compress
from jobs.evaluations.denoise import evaluate_denoise
from jobs.evaluations.evaluation import Evaluate
from jobs.evaluations.inpaint import evaluate_inpaint
from jobs.evaluations.stylize import evaluate_stylize
from jobs.evaluations.upscale import evaluate_upscale

EVALUATIONS: dict[str, Evaluate] = {
    "colorize": evaluate_colorize,
    "compress": evaluate_compress,
    "denoise": evaluate_denoise,
    "inpaint": evaluate_inpaint,
    "stylize": evaluate_stylize,
    "upscale": evaluate_upscale,
}
