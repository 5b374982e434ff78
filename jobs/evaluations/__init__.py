"""Evaluations by task. A new evaluation needs one file here and one row in this table."""

from imagemill.jobs.evaluations.colorize import evaluate_colorize
from imagemill.jobs.evaluations.compress import evaluate_compress
from imagemill.jobs.evaluations.denoise import evaluate_denoise
from imagemill.jobs.evaluations.evaluation import Evaluate
from imagemill.jobs.evaluations.inpaint import evaluate_inpaint
from imagemill.jobs.evaluations.stylize import evaluate_stylize
from imagemill.jobs.evaluations.upscale import evaluate_upscale

EVALUATIONS: dict[str, Evaluate] = {
    "colorize": evaluate_colorize,
    "compress": evaluate_compress,
    "denoise": evaluate_denoise,
    "inpaint": evaluate_inpaint,
    "stylize": evaluate_stylize,
    "upscale": evaluate_upscale,
}
