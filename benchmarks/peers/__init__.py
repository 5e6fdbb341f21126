"""Other runtimes on the networks that mdrt runs: how they are installed, converted to, and timed."""
