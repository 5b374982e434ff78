"""The data plane: sources → plan → predict → sink, on Ray Data."""
