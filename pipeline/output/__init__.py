"""What lies in OUTPUT: who may write there, what is committed, and the rows as those see them who read."""
