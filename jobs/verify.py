"""Check an output against itself and show the problems."""

from imagemill.jobs.console import number, one_line, print_json, print_text
from imagemill.jobs.outputs import check_output
from imagemill.jobs.status import print_pending
from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store

PROBLEMS_SHOWN = 100


def show_verified(output: Store, as_json: bool = False) -> None:
    """Verify an output and print what was checked and every problem, as text or as one JSON object.

    The JSON keys are `output`, `images`, `rows`, `reject_rows`, `files`, `latents`, `images_pending` and `problems` (a list
    of sentences, empty when all is well). Text shows the first PROBLEMS_SHOWN problems.

    Raises:
        VerificationError: after printing, when there are problems.
        StorageError: when the output does not exist or cannot be read.
        ConfigError: when the location holds an export.
    """
    check_output(output)
    result = verify(output)
    problems = number(len(result.problems), "problem") if result.problems else "no problems"
    counts = {
        "images": result.images,
        "rows": result.rows,
        "reject_rows": result.rejects,
        "files": result.files,
        "latents": result.latents,
    }
    if as_json:
        content = {"output": output.url, **counts, "images_pending": result.waiting, "problems": result.problems}
        print_json(content)
    else:
        checked = ", ".join(number(count, key[:-1].replace("_", " ")) for key, count in counts.items())
        print_text(f"checked {checked}: {problems}")
        print_pending(result.waiting)
        for problem in result.problems[:PROBLEMS_SHOWN]:
            print_text(f"  {one_line(problem)}")
    if result.problems:
        raise VerificationError(f"{output.url}: {problems}")
