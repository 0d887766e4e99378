"""The ground all rooms stand on: types, contracts and pure decisions."""
