"""The command line: flags, commands, text tools, sweeps, ahead-of-time compilation."""
