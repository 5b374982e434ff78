"""Everything about Ray: connecting, sizing the pool, watching it, and messages between workers and the driver."""
