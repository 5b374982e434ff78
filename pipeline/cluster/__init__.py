"""Everything about Ray: connect, size the pool, watch the workers, and pass messages between workers and the driver."""
