"""What several trainings reached: their runs compared, judged for significance, and reported."""
