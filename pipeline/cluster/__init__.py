"""Ray: a connection, the room there is for actors, and what they and the driver tell each other."""
