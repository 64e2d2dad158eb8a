"""What is run and scheduled."""
