"""The commands of `dovetail`, a module each."""
