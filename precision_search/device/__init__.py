"""What the GPU says of itself: driver, libraries' state, clocks, and profiles of devices for estimates."""
