"""What the tests of other people's tools share."""
