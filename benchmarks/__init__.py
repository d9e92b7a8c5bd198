"""The figures of the README, each made again by one command."""
