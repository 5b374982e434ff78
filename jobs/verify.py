"""An OUTPUT checked against itself, as a person sees it."""

from imagemill.jobs.console import console, number
from imagemill.jobs.outputs import check_exists
from imagemill.jobs.status import waits
from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store


def show_verified(output: Store) -> None:
    """Raises: VerificationError when something is wrong."""
    check_exists(output)
    seen = verify(output)
    verdict = number(len(seen.problems), "problem") if seen.problems else "all well"
    counts = {"image": seen.images, "row": seen.rows, "reject row": seen.rejects, "file": seen.files}
    listed = ", ".join(number(count, noun) for noun, count in counts.items())
    console.print(f"{listed} and {number(seen.latents, 'latent')} checked: {verdict}")
    if seen.waiting:
        console.print(waits(seen.waiting))
    for problem in seen.problems[:100]:
        console.print(f"  {problem}")
    if seen.problems:
        raise VerificationError(f"{output.url}: {verdict}")
