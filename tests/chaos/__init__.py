"""Random faults for whole programs, chosen by a seed."""
