"""The local actuator: a manifest made true on one machine, by real processes."""
