"""Find an architecture by its name: a bundled one, or one that an installed package registers as an entry point.

A package registers a subclass of `Autoencoder` in its pyproject.toml:

    [project.entry-points."imagemill.architectures"]
    my-net = "my_package.nets:MyNet"
"""

from importlib.metadata import EntryPoint, entry_points

from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.errors import CheckpointError, describe_error

GROUP = "imagemill.architectures"


def architecture_names() -> list[str]:
    """Return the names of all architectures: the bundled ones, then those of installed packages."""
    return list(dict.fromkeys([*ARCHITECTURES, *sorted(point.name for point in entry_points(group=GROUP))]))


def find_architecture(name: str) -> type[Autoencoder]:
    """Return the class of an architecture.

    Raises:
        CheckpointError: when there is no such architecture, several have the name, or the package cannot be used.
    """
    points = list(entry_points(group=GROUP, name=name))
    bundled = ARCHITECTURES.get(name)
    if len(points) + (bundled is not None) > 1:
        packages = ", ".join([*(["imagemill"] if bundled else []), *map(package_of, points)])
        raise CheckpointError(
            f"architecture {name!r}: registered by {packages}. Rename the entry point, or uninstall a package"
        )
    if bundled is not None:
        return bundled
    if not points:
        raise CheckpointError(f"architecture {name!r}: unknown. Valid: {', '.join(architecture_names())}")
    [point] = points
    try:
        cls = point.load()
    except Exception as e:  # noqa: BLE001 - the code of a package may raise anything
        raise CheckpointError(
            f"architecture {name!r}: {point.value} of {package_of(point)} cannot be imported: {describe_error(e)}"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, Autoencoder)):
        raise CheckpointError(
            f"architecture {name!r}: {point.value} of {package_of(point)} is not a subclass of "
            "imagemill.models.autoencoder.Autoencoder. Import other networks with `imagemill models import`"
        )
    return cls


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that registers an entry point."""
    return point.dist.name if point.dist else point.value
