"""The environment variables of processes that run models, on every engine."""

WORKER_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    # With the system allocator Arrow shares the memory that glibc keeps.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""By default, glibc returns large blocks to the kernel and faults them in again for every image. Keeping the blocks made the
models 2 to 2.5 times faster (measured, see DECISIONS.md). A variable that the user has set wins."""
