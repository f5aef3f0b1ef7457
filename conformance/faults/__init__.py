"""Every system call of ours fails once, or is our last: nothing runs unlowered, nothing is left after the next call."""
