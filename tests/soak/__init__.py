"""Mixed load on two workers for as long as wanted, with random faults: what is lost, and what grows. `make soak MINUTES=20`."""
