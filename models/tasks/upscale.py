"""Upscale: an image at twice its size, or at what its checkpoint enlarges by, sharper than bicubic."""

from imagemill.models.tasks.task import Task


class Upscale(Task):
    name = "upscale"
    summary = "Enlarge images to twice their width and height, or by the scale of the checkpoint."
    default_checkpoint = "upscale-small"
    columns = {"scale": int}
    report_crops = True
