"""What everything stands on: errors, specs, files, progress, interrupts, the machine. It imports nothing above it."""
