"""The command line: a module a command, each with `register` and `execute`."""
