"""The `dovetail` command and the local actuator behind `dovetail up`."""
