"""Upscale: enlarge images by the scale of the checkpoint, sharper than bicubic interpolation."""

from imagemill.models.tasks.task import Task


class Upscale(Task):
    """Enlarge images."""

    name = "upscale"
    summary = "Enlarge images to twice their width and height, or by the scale of the checkpoint."
    default_checkpoint = "upscale-small"
    columns = {"scale": int}
    report_crops = True
