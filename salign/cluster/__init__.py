"""Where the units of a run are done: schedulers behind one interface, their status, and estimates."""
